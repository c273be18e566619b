package storeapi

import (
	"context"
	"math/rand/v2"
	"regexp"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// Between the first two attempts; doubled for each further one.
	firstPause = 50 * time.Millisecond
	// A restart of the service takes about as long.
	longestPause = time.Second
)

// The statuses that gRPC reports for a broken stream or an HTTP response of a proxy. All of them count as a broken
// connection if the error has no reason.
var broken = []codes.Code{
	codes.Canceled, codes.Unknown, codes.ResourceExhausted, codes.Internal, codes.Unavailable,
}

// Messages of gRPC, with the same statuses, for errors that a repetition cannot change: a message that is too large or
// cannot be decoded, and a proxy that refuses the request.
var (
	lasting    = regexp.MustCompile(`larger than max|marshal|ompress`)
	httpStatus = regexp.MustCompile(`HTTP status code received from server: (\d+)`)
	// The HTTP statuses of proxies that are not lasting.
	transient = []string{"408", "425", "429", "500", "502", "503", "504"}
)

// repeats waits, and returns whether the call is to be repeated after its failure. The context is that of the whole
// call.
func repeats(ctx context.Context, connection *grpc.ClientConn, attempts int, err *Error) bool {
	isOver := ctx.Err() != nil || connection.GetState() == connectivity.Shutdown
	return !isOver && mayHelp(err) && pauseAfter(ctx, attempts, err)
}

// mayHelp returns whether the same call may succeed later.
func mayHelp(err *Error) bool {
	switch {
	case err.RetryAfter > 0:
		return true
	case err.Reason != "":
		return err.Code == codes.Unavailable || err.Code == codes.Canceled
	case err.Code == codes.DeadlineExceeded:
		// The deadline of a proxy: the one of the caller has not passed, and errors of the service have an id.
		return err.CallID == ""
	}
	found := httpStatus.FindStringSubmatch(err.Message)
	isRefused := found != nil && !slices.Contains(transient, found[1])
	return slices.Contains(broken, err.Code) && !lasting.MatchString(err.Message) && !isRefused
}

// pauseAfter waits before the next attempt. It returns false if the context ends first; then it does not wait.
func pauseAfter(ctx context.Context, attempts int, err *Error) bool {
	pause := min(firstPause<<min(attempts-1, 10), longestPause)
	// Callers that failed together must not repeat their calls together.
	pause = time.Duration(float64(pause) * (0.5 + rand.Float64()/2))
	if err.RetryAfter > 0 {
		pause = max(pause, time.Duration(float64(err.RetryAfter)*(1+rand.Float64()/5)))
	}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= pause {
		return false
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unary repeats a call until its deadline, and converts its error.
func unary(
	ctx context.Context, method string, request, response any, connection *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption,
) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	request, requestID := withRequestID(request)
	for attempts := 1; ; attempts++ {
		var trailers metadata.MD
		err := invoke(ctx, method, request, response, connection, append(slices.Clone(options), grpc.Trailer(&trailers))...)
		if err == nil {
			return nil
		}
		failure := newError(err, trailers)
		failure.RequestID, failure.Attempts = requestID, attempts
		if !repeats(ctx, connection, attempts, failure) {
			return failure
		}
	}
}

// withRequestID returns the request of a write with a request_id, in a copy if it had none. Requests without this field
// only read.
func withRequestID(request any) (any, string) {
	message, ok := request.(proto.Message)
	if !ok {
		return request, ""
	}
	field := message.ProtoReflect().Descriptor().Fields().ByName("request_id")
	if field == nil {
		return request, ""
	}
	if id := message.ProtoReflect().Get(field).String(); id != "" {
		return request, id
	}
	id := uuid.NewString()
	completed := proto.Clone(message)
	completed.ProtoReflect().Set(field, protoreflect.ValueOfString(id))
	return completed, id
}

// stream converts the errors of a stream. A stream is not repeated here; Watch does that.
func stream(
	ctx context.Context, description *grpc.StreamDesc, connection *grpc.ClientConn, method string,
	open grpc.Streamer, options ...grpc.CallOption,
) (grpc.ClientStream, error) {
	opened, err := open(ctx, description, connection, method, options...)
	if err != nil {
		return nil, newError(err, nil)
	}
	return &typedStream{opened}, nil
}
