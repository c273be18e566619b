package storeapi

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"store-service.example/storeapi/storeapiv1"
)

// The interval in which the server sends responses if nothing changes and the request has no heartbeat_interval.
const defaultHeartbeat = 10 * time.Second

// An export on which nothing arrives for this long is broken. It has no heartbeats.
const exportSilence = 2 * time.Minute

// typedStream returns an *Error.
type typedStream struct {
	grpc.ClientStream
}

func (stream *typedStream) RecvMsg(message any) error {
	err := stream.ClientStream.RecvMsg(message)
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return newError(err, stream.Trailer())
}

// Page is a response of a list.
type Page interface {
	proto.Message
	GetNextPageToken() string
}

// Pages iterates over the pages of a list, from the page_token of the request. After an error the iteration ends.
//
//	for page, err := range storeapi.Pages(ctx, client.Posts.ListPosts, &storeapiv1.ListPostsRequest{PageSize: 100}) {
func Pages[Request proto.Message, Response Page](
	ctx context.Context,
	list func(context.Context, Request, ...grpc.CallOption) (Response, error),
	request Request,
) iter.Seq2[Response, error] {
	return func(yield func(Response, error) bool) {
		next := proto.Clone(request).(Request)
		token := next.ProtoReflect().Descriptor().Fields().ByName("page_token")
		for {
			page, err := list(ctx, next)
			if !yield(page, err) || err != nil || page.GetNextPageToken() == "" {
				return
			}
			next.ProtoReflect().Set(token, protoreflect.ValueOfString(page.GetNextPageToken()))
		}
	}
}

// Items iterates over the items of all pages of a list. After an error the iteration ends.
//
//	posts := storeapi.Items(ctx, client.Posts.ListPosts, &storeapiv1.ListPostsRequest{}, (*storeapiv1.ListPostsResponse).GetPosts)
//	for post, err := range posts {
func Items[Request proto.Message, Response Page, Item any](
	ctx context.Context,
	list func(context.Context, Request, ...grpc.CallOption) (Response, error),
	request Request,
	items func(Response) []Item,
) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for page, err := range Pages(ctx, list, request) {
			if err != nil {
				var none Item
				yield(none, err)
				return
			}
			for _, item := range items(page) {
				if !yield(item, nil) {
					return
				}
			}
		}
	}
}

// Watch iterates over the responses of a watch, until the context ends or the client is closed, which is an error too.
// Store the resume_token of each response that is processed; a watch with this token in its request continues after
// it.
//
// The first response must arrive before the deadline of the context, or within DefaultTimeout. Later the watch
// survives restarts of the server and lost connections: it reconnects without a limit, and continues after the last
// response. It ends with an *Error if continuing cannot help: after the reasons RESUME_TOKEN_EXPIRED and
// RESUME_TOKEN_FOREIGN begin again with initial_state.
func (client *Client) Watch(
	ctx context.Context, request *storeapiv1.WatchRequest,
) iter.Seq2[*storeapiv1.WatchResponse, error] {
	heartbeat := defaultHeartbeat
	if request.HeartbeatInterval != nil {
		heartbeat = request.HeartbeatInterval.AsDuration()
	}
	// A connection on which nothing arrives for this long is broken.
	silence := 2*heartbeat + time.Second
	processed := func(next *storeapiv1.WatchRequest, response *storeapiv1.WatchResponse) bool {
		next.Start = &storeapiv1.WatchRequest_ResumeToken{ResumeToken: response.ResumeToken}
		return false
	}
	return resumed(ctx, client.connection, client.Changes.Watch, request, silence, processed)
}

// Export iterates over the responses of an export, and ends after the one with resume_token. Earlier records of the
// changed_post_ids and changed_comment_ids of a response are obsolete. Its deadlines and repetitions are those of
// Watch: it continues after the last cursor.
func (client *Client) Export(
	ctx context.Context, request *storeapiv1.ExportRequest,
) iter.Seq2[*storeapiv1.ExportResponse, error] {
	processed := func(next *storeapiv1.ExportRequest, response *storeapiv1.ExportResponse) bool {
		next.Cursor = response.Cursor
		return response.ResumeToken != ""
	}
	return resumed(ctx, client.connection, client.Transfer.Export, request, exportSilence, processed)
}

// resumed iterates over the responses of a stream, which is opened again after a broken connection. processed is called
// for each response that the caller has processed: it lets the request continue after it, and returns whether it is the
// last one.
func resumed[Request proto.Message, Response any](
	ctx context.Context, connection *grpc.ClientConn, open opener[Request, Response], request Request,
	silence time.Duration, processed func(Request, *Response) bool,
) iter.Seq2[*Response, error] {
	return func(yield func(*Response, error) bool) {
		next := proto.Clone(request).(Request)
		beginning, cancel := context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
		limit := beginning
		failures := 0
		handle := func(response *Response) bool {
			limit, failures = ctx, 0
			return yield(response, nil) && !processed(next, response)
		}
		for {
			err := readOnce(ctx, limit, open, next, silence, handle)
			if err == nil {
				return
			}
			failures++
			err.Attempts = failures
			if !repeats(limit, connection, failures, err) {
				yield(nil, err)
				return
			}
		}
	}
}

// opener is the method of a stub that starts a stream.
type opener[Request proto.Message, Response any] = func(
	context.Context, Request, ...grpc.CallOption,
) (grpc.ServerStreamingClient[Response], error)

// readOnce reads one stream until it fails, or until handle returns false; then the result is nil. The first response
// must arrive before the context first ends.
func readOnce[Request proto.Message, Response any](
	ctx, first context.Context, open opener[Request, Response], request Request, silence time.Duration,
	handle func(*Response) bool,
) *Error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Each wait for a response is limited, but not the time in which the caller processes it.
	silent := time.AfterFunc(silence, func() {
		cancel(status.Errorf(codes.Unavailable, "no response from the server for %v", silence))
	})
	defer silent.Stop()
	stopFirst := context.AfterFunc(first, func() { cancel(first.Err()) })
	defer stopFirst()
	failed := func(err error) *Error {
		if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil {
			return newError(cause, nil)
		}
		return newError(err, nil)
	}
	stream, err := open(ctx, request)
	if err != nil {
		return failed(err)
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			err = status.Error(codes.Unavailable, "the server ended the stream without a status")
		}
		if err != nil {
			return failed(err)
		}
		silent.Stop()
		stopFirst()
		if !handle(response) {
			return nil
		}
		silent.Reset(silence)
	}
}
