package storeapi

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	v1 "store-service.example/storeapi/storeapiv1"
)

// server responds to calls with its functions.
type server struct {
	v1.UnimplementedPostServiceServer
	v1.UnimplementedChangeServiceServer
	create func(*v1.CreatePostRequest) (*v1.Post, error)
	get    func(context.Context) error
	list   func(*v1.ListPostsRequest) *v1.ListPostsResponse
	watch  func(*v1.WatchRequest, grpc.ServerStreamingServer[v1.WatchResponse]) error
}

func (s *server) CreatePost(_ context.Context, request *v1.CreatePostRequest) (*v1.Post, error) {
	return s.create(request)
}

func (s *server) GetPost(ctx context.Context, _ *v1.GetPostRequest) (*v1.Post, error) {
	return &v1.Post{}, s.get(ctx)
}

func (s *server) ListPosts(_ context.Context, request *v1.ListPostsRequest) (*v1.ListPostsResponse, error) {
	return s.list(request), nil
}

func (s *server) Watch(request *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse]) error {
	return s.watch(request, stream)
}

func connect(t *testing.T, s *server) *Client {
	target := serve(t, s)
	return dial(t, target, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func serve(t *testing.T, s *server, options ...grpc.ServerOption) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	running := grpc.NewServer(options...)
	v1.RegisterPostServiceServer(running, s)
	v1.RegisterChangeServiceServer(running, s)
	go running.Serve(listener)
	t.Cleanup(running.Stop)
	return listener.Addr().String()
}

func dial(t *testing.T, target string, options ...grpc.DialOption) *Client {
	client, err := Dial(target, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	return client
}

func refused(code codes.Code, reason v1.ErrorReason, retryAfter time.Duration) error {
	name := reason.String()[len("ERROR_REASON_"):]
	refusal, err := status.New(code, "refused").WithDetails(
		&errdetails.ErrorInfo{Domain: domain, Reason: name},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)},
	)
	if err != nil {
		return err
	}
	return refusal.Err()
}

func TestOnlyErrorsThatMayPassAreRepeated(t *testing.T) {
	const html = `; transport: received unexpected content-type "text/html"`
	for _, it := range []struct {
		err  *Error
		want bool
	}{
		{&Error{Code: codes.Unavailable}, true},
		{&Error{Code: codes.Internal, Message: "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"}, true},
		{&Error{Code: codes.Unknown, Message: "Data frame with END_STREAM flag received"}, true},
		{&Error{Code: codes.DeadlineExceeded}, true},
		{&Error{Code: codes.DeadlineExceeded, CallID: "1"}, false},
		{&Error{Code: codes.Unavailable, Reason: "OVERLOADED"}, true},
		{&Error{Code: codes.ResourceExhausted, Reason: "RATE_LIMITED", RetryAfter: time.Second}, true},
		{&Error{Code: codes.Internal, Reason: "INTERNAL"}, false},
		{&Error{Code: codes.PermissionDenied}, false},
		{&Error{Code: codes.Unimplemented}, false},
		{&Error{Code: codes.Internal, Message: "grpc: failed to unmarshal the received message: proto"}, false},
		{&Error{Code: codes.ResourceExhausted, Message: "grpc: received message larger than max (5 vs. 4)"}, false},
		{&Error{Code: codes.Unknown, Message: "unexpected HTTP status code received from server: 413 (Request Entity Too Large)" + html}, false},
		{&Error{Code: codes.Unavailable, Message: "unexpected HTTP status code received from server: 502 (Bad Gateway)" + html}, true},
	} {
		if got := mayHelp(it.err); got != it.want {
			t.Errorf("%v: %v", it.err, got)
		}
	}
}

func TestWriteIsRepeatedWithTheSameRequestID(t *testing.T) {
	var ids []string
	client := connect(t, &server{create: func(request *v1.CreatePostRequest) (*v1.Post, error) {
		if ids = append(ids, request.RequestId); len(ids) == 1 {
			return nil, status.Error(codes.Unavailable, "connection reset")
		}
		return &v1.Post{Id: 1}, nil
	}})
	request := &v1.CreatePostRequest{Post: &v1.Post{Body: "a"}}
	if _, err := client.Posts.CreatePost(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 2 || ids[0] == "" || ids[0] != ids[1] {
		t.Errorf("request ids: %q", ids)
	}
	if request.RequestId != "" {
		t.Error("the request of the caller was changed")
	}
}

func TestErrorAtTheDeadlineIsThatOfTheServer(t *testing.T) {
	retryAfter := time.Duration(0)
	client := connect(t, &server{create: func(*v1.CreatePostRequest) (*v1.Post, error) {
		refusal := refused(codes.Unavailable, v1.ErrorReason_ERROR_REASON_OVERLOADED, retryAfter)
		retryAfter = time.Hour
		return nil, refusal
	}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := client.Posts.CreatePost(ctx, &v1.CreatePostRequest{})
	var failure *Error
	if !errors.As(err, &failure) || failure.Attempts != 2 || failure.RequestID == "" {
		t.Errorf("%#v", err)
	}
	if !HasReason(err, v1.ErrorReason_ERROR_REASON_OVERLOADED) || status.Code(err) != codes.Unavailable {
		t.Error(err)
	}
}

func TestAPIKeyIsSentOnlyOverTLS(t *testing.T) {
	if _, err := Dial("localhost:1", WithAPIKey("secret"), grpc.WithTransportCredentials(insecure.NewCredentials())); err == nil {
		t.Error("the key would be sent in plaintext")
	}
	certified := httptest.NewTLSServer(nil)
	defer certified.Close()
	authorization := ""
	target := serve(t, &server{get: func(ctx context.Context) error {
		received, _ := metadata.FromIncomingContext(ctx)
		authorization = received.Get("authorization")[0]
		return nil
	}}, grpc.Creds(credentials.NewServerTLSFromCert(&certified.TLS.Certificates[0])))
	roots := x509.NewCertPool()
	roots.AddCert(certified.Certificate())
	client := dial(t, target, WithAPIKey("secret"), grpc.WithTransportCredentials(credentials.NewClientTLSFromCert(roots, "example.com")))
	if _, err := client.Posts.GetPost(t.Context(), &v1.GetPostRequest{}); err != nil || authorization != "Bearer secret" {
		t.Error(authorization, err)
	}
}

func TestPagesEndWithTheLast(t *testing.T) {
	client := connect(t, &server{list: func(request *v1.ListPostsRequest) *v1.ListPostsResponse {
		if request.PageToken == "" {
			return &v1.ListPostsResponse{Posts: []*v1.Post{{Id: 1}}, NextPageToken: "second"}
		}
		return &v1.ListPostsResponse{Posts: []*v1.Post{{Id: 2}, {Id: 3}}}
	}})
	var ids []int64
	posts := Items(t.Context(), client.Posts.ListPosts, &v1.ListPostsRequest{}, (*v1.ListPostsResponse).GetPosts)
	for post, err := range posts {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, post.Id)
	}
	if len(ids) != 3 || ids[2] != 3 {
		t.Error(ids)
	}
}

func TestWatchContinuesAfterItsLastToken(t *testing.T) {
	var tokens []string
	client := connect(t, &server{watch: func(
		request *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse],
	) error {
		switch tokens = append(tokens, request.GetResumeToken()); len(tokens) {
		case 1, 3:
			return status.Error(codes.Internal, "RST_STREAM")
		case 2:
			stream.Send(&v1.WatchResponse{ResumeToken: "after the first"})
			return nil
		case 4:
			stream.Send(&v1.WatchResponse{ResumeToken: "after the second"})
		}
		return refused(codes.OutOfRange, v1.ErrorReason_ERROR_REASON_RESUME_TOKEN_EXPIRED, 0)
	}})
	var received []string
	var last error
	for response, err := range client.Watch(t.Context(), &v1.WatchRequest{}) {
		received, last = append(received, response.GetResumeToken()), err
	}
	if !HasReason(last, v1.ErrorReason_ERROR_REASON_RESUME_TOKEN_EXPIRED) || len(received) != 3 {
		t.Error(received, last)
	}
	if tokens[1] != "" || tokens[2] != "after the first" || tokens[3] != "after the first" {
		t.Errorf("%q", tokens)
	}
}

func TestWatchEndsAtTheDeadlineOfItsContext(t *testing.T) {
	client := connect(t, &server{watch: func(
		request *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse],
	) error {
		stream.Send(&v1.WatchResponse{ResumeToken: "first"})
		<-stream.Context().Done()
		return nil
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	var last error
	for _, err := range client.Watch(ctx, &v1.WatchRequest{}) {
		last = err
	}
	if status.Code(last) != codes.DeadlineExceeded {
		t.Error(last)
	}
}

func TestWatchEndsWithItsContextOrClient(t *testing.T) {
	for _, closes := range []bool{false, true} {
		client := connect(t, &server{watch: func(
			request *v1.WatchRequest, stream grpc.ServerStreamingServer[v1.WatchResponse],
		) error {
			stream.Send(&v1.WatchResponse{ResumeToken: "first"})
			<-stream.Context().Done()
			return nil
		}})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var last error
		for _, err := range client.Watch(ctx, &v1.WatchRequest{}) {
			if last = err; closes {
				client.Close()
			} else {
				cancel()
			}
		}
		if status.Code(last) != codes.Canceled {
			t.Error(last)
		}
	}
}
