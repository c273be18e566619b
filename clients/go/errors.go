package storeapi

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"store-service.example/storeapi/storeapiv1"
)

const domain = "storeapi"

// Error is the error of a call that failed. Use errors.As to get it, or HasReason.
type Error struct {
	// The gRPC status code.
	Code codes.Code
	// The name of an ErrorReason without its prefix, such as POST_NOT_FOUND; empty if the error is not of the
	// service, but of gRPC or of a proxy.
	Reason string
	// For people.
	Message string
	// The data of the reason, such as current_etag.
	Metadata map[string]string
	// The fields that are not valid.
	Violations []*errdetails.BadRequest_FieldViolation
	// The time after which the same call may succeed; 0 if unknown.
	RetryAfter time.Duration
	// The id of the call in the log of the service; empty if unknown.
	CallID string
	// The request_id of the write. If it is unknown whether the write happened, the same request with this id has one
	// effect.
	RequestID string
	// The number of attempts.
	Attempts int

	status *status.Status
	cause  error
}

func (err *Error) Error() string {
	text := err.Code.String() + ": " + err.Message
	if err.Reason != "" {
		text = err.Reason + ": " + err.Message
	}
	if err.Attempts > 1 {
		text += fmt.Sprintf(" (%d attempts)", err.Attempts)
	}
	return text
}

// GRPCStatus lets status.FromError and status.Code work.
func (err *Error) GRPCStatus() *status.Status { return err.status }

// Unwrap returns the error of gRPC.
func (err *Error) Unwrap() error { return err.cause }

// HasReason returns whether an error is one of the service with this reason.
func HasReason(err error, reason storeapiv1.ErrorReason) bool {
	var failure *Error
	return errors.As(err, &failure) && failure.Reason != "" &&
		failure.Reason == strings.TrimPrefix(reason.String(), "ERROR_REASON_")
}

// newError converts an error of gRPC.
func newError(cause error, trailers metadata.MD) *Error {
	var known *Error
	if errors.As(cause, &known) {
		return known
	}
	// FromContextError converts the errors of a context that has ended.
	received, ok := status.FromError(cause)
	if !ok {
		received = status.FromContextError(cause)
	}
	failure := &Error{Code: received.Code(), Message: received.Message(), Attempts: 1, status: received, cause: cause}
	for _, detail := range received.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.Domain == domain {
				failure.Reason, failure.Metadata = detail.Reason, detail.Metadata
			}
		case *errdetails.BadRequest:
			failure.Violations = detail.FieldViolations
		case *errdetails.RetryInfo:
			failure.RetryAfter = detail.RetryDelay.AsDuration()
		}
	}
	if ids := trailers.Get("x-call-id"); len(ids) > 0 {
		failure.CallID = ids[0]
	}
	return failure
}
