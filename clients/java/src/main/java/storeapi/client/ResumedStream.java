package storeapi.client;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.MethodDescriptor;
import io.grpc.StatusException;
import io.grpc.stub.BlockingClientCall;
import io.grpc.stub.ClientCalls;
import java.time.Duration;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.BiFunction;

/**
 * A stream of responses. After the first response it is opened again without a limit of attempts or time, except the
 * deadline of the {@link io.grpc.Context}.
 *
 * <p>It is used by one thread at a time.
 */
public final class ResumedStream<Q, R> implements AutoCloseable {
  private final Channel channel;
  private final MethodDescriptor<Q, R> method;
  private final BiFunction<Q, R, Q> continued;
  private final Duration silence;
  private Q request;
  private Attempts attempts;
  private BlockingClientCall<Q, R> stream;

  /**
   * @param timeout the deadline of the first response
   * @param silence the maximum time between two responses
   * @param continued the request that continues after a response
   */
  ResumedStream(
      Channel channel,
      MethodDescriptor<Q, R> method,
      Q request,
      Duration timeout,
      Duration silence,
      BiFunction<Q, R, Q> continued) {
    this.channel = channel;
    this.method = method;
    this.request = request;
    this.attempts = new Attempts(timeout);
    this.silence = silence;
    this.continued = continued;
  }

  /**
   * The next response. After a broken connection, the stream continues after the previous response.
   *
   * @throws StoreException the call has failed
   * @throws InterruptedException the thread was interrupted
   */
  public R next() throws InterruptedException {
    while (true) {
      try {
        R response = read();
        attempts = new Attempts();
        request = continued.apply(request, response);
        return response;
      } catch (StatusException failure) {
        retry(StoreException.of(failure));
      } catch (TimeoutException failure) {
        retry(StoreException.silent(attempts.isOver(), failure));
      }
    }
  }

  /** Ends the call. */
  @Override
  public void close() {
    if (stream != null) {
      stream.cancel("the stream was closed", null);
      stream = null;
    }
  }

  private R read() throws InterruptedException, StatusException, TimeoutException {
    if (stream == null) {
      stream = ClientCalls.blockingV2ServerStreamingCall(channel, method, CallOptions.DEFAULT, request);
    }
    // If nothing arrives, the connection is dead.
    R response = stream.read(attempts.remainingNanos(silence), TimeUnit.NANOSECONDS);
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
