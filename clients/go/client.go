// Package storeapi is the client of the posts-and-comments service for Go: the generated stubs of package
// storeapiv1 on a connection that waits for the server, repeats calls that can be repeated, and returns typed
// errors; iterators over pages; and a watch that continues after restarts.
package storeapi

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"store-service.example/storeapi/storeapiv1"
)

// DefaultTimeout is the deadline of a call, including its repetitions, whose context has none. A watch has no
// deadline after its first response.
const DefaultTimeout = 10 * time.Second

const maxReceiveBytes = 64 << 20

// Client has the services on one connection. It is safe for concurrent use.
type Client struct {
	Posts    storeapiv1.PostServiceClient
	Comments storeapiv1.CommentServiceClient
	Changes  storeapiv1.ChangeServiceClient
	Admin    storeapiv1.AdminServiceClient
	Transfer storeapiv1.TransferServiceClient

	connection *grpc.ClientConn
}

// Dial returns a client for a target such as "localhost:50051". It needs
// grpc.WithTransportCredentials; other options are optional, and override those of the client. Nothing is sent
// before the first call.
//
// Every unary call waits for a connection, and is repeated until its deadline after a broken connection and after
// errors that the service calls transient. A write without a request_id gets one, so that it has one effect.
// Failed calls return an *Error.
func Dial(target string, options ...grpc.DialOption) (*Client, error) {
	defaults := []grpc.DialOption{
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		// Reconnect soon after a restart of the server; the default is up to two minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second,
			},
			MinConnectTimeout: 3 * time.Second,
		}),
		// Detects connections that are dead but not closed. gRPC does not ping more often.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: 10 * time.Second, Timeout: 3 * time.Second, PermitWithoutStream: true,
		}),
		grpc.WithChainUnaryInterceptor(unary),
		grpc.WithChainStreamInterceptor(stream),
	}
	connection, err := grpc.NewClient(target, append(defaults, options...)...)
	if err != nil {
		return nil, err
	}
	return &Client{
		Posts:      storeapiv1.NewPostServiceClient(connection),
		Comments:   storeapiv1.NewCommentServiceClient(connection),
		Changes:    storeapiv1.NewChangeServiceClient(connection),
		Admin:      storeapiv1.NewAdminServiceClient(connection),
		Transfer:   storeapiv1.NewTransferServiceClient(connection),
		connection: connection,
	}, nil
}

// Connection returns the connection, for stubs of other services.
func (client *Client) Connection() *grpc.ClientConn {
	return client.connection
}

// Close ends all calls.
func (client *Client) Close() error {
	return client.connection.Close()
}

// WithAPIKey sends an API key with each call. The connection must have TLS.
func WithAPIKey(key string) grpc.DialOption {
	return grpc.WithPerRPCCredentials(apiKey(key))
}

type apiKey string

func (key apiKey) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(key)}, nil
}

func (apiKey) RequireTransportSecurity() bool { return true }
