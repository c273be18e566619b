package storeapi.client;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.ClientCalls;
import java.time.Duration;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import storeapi.v1.ChangeServiceGrpc;
import storeapi.v1.WatchRequest;
import storeapi.v1.WatchResponse;

/**
 * A stream of changes. After the first response it is opened again without a limit of attempts or time.
 *
 * <p>It is used by one thread at a time.
 */
public final class Watch implements AutoCloseable {
  /** The interval of heartbeats that the service uses for a request without one. */
  private static final long HEARTBEAT_SECONDS = 10;

  private final Channel channel;
  private final Duration silence;
  private WatchRequest request;
  private Attempts attempts;
  private BlockingClientCall<WatchRequest, WatchResponse> stream;

  Watch(Channel channel, WatchRequest request, Duration timeout) {
    this.channel = channel;
    this.request = request;
    this.attempts = new Attempts(timeout);
    long heartbeat = request.hasHeartbeatInterval() ? request.getHeartbeatInterval().getSeconds() : HEARTBEAT_SECONDS;
    this.silence = Duration.ofSeconds(2 * heartbeat + 1);
  }

  /**
   * The next response. After a broken connection, the watch continues after the previous response.
   *
   * <p>Store the resume token together with the effects of the response, to continue from it after a restart of this
   * program.
   *
   * @throws StoreException the watch has failed. The reasons RESUME_TOKEN_EXPIRED and RESUME_TOKEN_FOREIGN mean that
   *     changes were lost: start again with initial_state, and delete what it does not contain.
   * @throws InterruptedException the thread was interrupted
   */
  public WatchResponse next() throws InterruptedException {
    while (true) {
      try {
        WatchResponse response = read();
        attempts = new Attempts();
        request = request.toBuilder().setResumeToken(response.getResumeToken()).build();
        return response;
      } catch (StatusException failure) {
        retry(StoreException.of(failure));
      } catch (TimeoutException failure) {
        retry(StoreException.silent(failure));
      }
    }
  }

  /** Ends the call. */
  @Override
  public void close() {
    if (stream != null) {
      stream.cancel("the watch was closed", null);
      stream = null;
    }
  }

  private WatchResponse read() throws InterruptedException, StatusException, TimeoutException {
    if (stream == null) {
      stream =
          ClientCalls.blockingV2ServerStreamingCall(
              channel, ChangeServiceGrpc.getWatchMethod(), CallOptions.DEFAULT, request);
    }
    // The server sends heartbeats. If nothing arrives, the connection is dead.
    WatchResponse response = stream.read(attempts.remainingNanos(silence), TimeUnit.NANOSECONDS);
    if (response == null) {
      throw new TimeoutException("the stream has ended");
    }
    return response;
  }

  private void retry(StoreException error) {
    close();
    attempts.pause(error);
  }
}
