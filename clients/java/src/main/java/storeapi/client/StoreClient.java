package storeapi.client;

import com.google.gson.Gson;
import com.google.protobuf.Descriptors.FieldDescriptor;
import com.google.protobuf.Message;
import io.grpc.CallOptions;
import io.grpc.ConnectivityState;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import storeapi.v1.ChangeServiceGrpc;
import storeapi.v1.ExportRequest;
import storeapi.v1.ExportResponse;
import storeapi.v1.TransferServiceGrpc;
import storeapi.v1.WatchRequest;
import storeapi.v1.WatchResponse;

/**
 * A small client of the service: deadlines, retries that have one effect, errors by reason, and watches that resume.
 *
 * <p>It can be used by several threads.
 */
public final class StoreClient implements AutoCloseable {
  /** The shortest interval that grpc-java permits. The service accepts a ping every 2 seconds. */
  private static final long PING_SECONDS = 10;

  private static final long PING_TIMEOUT_SECONDS = 3;

  private static final long RECONNECT_SECONDS = 1;

  /** The interval of heartbeats that the service uses for a watch without one. */
  private static final long HEARTBEAT_SECONDS = 10;

  /** The maximum time between two responses of an export, which has no heartbeats. */
  private static final Duration EXPORT_SILENCE = Duration.ofMinutes(2);

  private final ManagedChannel channel;
  private final Duration timeout;
  private final ScheduledExecutorService timer = Executors.newSingleThreadScheduledExecutor(StoreClient::daemon);

  /**
   * Connects at the first call.
   *
   * @param builder has the address, and can have credentials and interceptors; see {@link #secureChannel}.
   * @param timeout the deadline of each call with all its attempts. A call waits that long for a server that cannot be
   *     reached.
   */
  public StoreClient(ManagedChannelBuilder<?> builder, Duration timeout) {
    this.channel =
        builder
            .defaultServiceConfig(serviceConfig())
            .keepAliveTime(PING_SECONDS, TimeUnit.SECONDS)
            .keepAliveTimeout(PING_TIMEOUT_SECONDS, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            .build();
    this.timeout = timeout;
    timer.scheduleWithFixedDelay(this::reconnect, RECONNECT_SECONDS, RECONNECT_SECONDS, TimeUnit.SECONDS);
  }

  /**
   * The builder for a connection with TLS.
   *
   * @param authority a PEM file with the authority of the certificate of the service; null for those of Java
   * @param key an API key or a token
   */
  public static ManagedChannelBuilder<?> secureChannel(String target, File authority, String key) throws IOException {
    TlsChannelCredentials.Builder tls = TlsChannelCredentials.newBuilder();
    if (authority != null) {
      tls.trustManager(authority);
    }
    Metadata headers = new Metadata();
    headers.put(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER), "Bearer " + key);
    return Grpc.newChannelBuilder(target, tls.build())
        .intercept(MetadataUtils.newAttachHeadersInterceptor(headers));
  }

  /**
   * Makes a call with one response, for example {@code call(PostServiceGrpc.getGetPostMethod(), request)}.
   *
   * <p>A write gets a new request id if it has none, so its repetitions have one effect. ImportRecords needs none: a
   * record that is stored already is not stored again. gRPC repeats a call that fails
   * with UNAVAILABLE, five attempts at most, and waits for a connection, as the service config says. This method repeats
   * a call until its deadline after any broken connection.
   *
   * @throws StoreException the call has failed
   */
  public <Q extends Message, R> R call(MethodDescriptor<Q, R> method, Q request) {
    Q sent = withRequestId(request);
    Attempts attempts = new Attempts(timeout);
    while (true) {
      CallOptions options = CallOptions.DEFAULT.withDeadline(attempts.deadline());
      try {
        return ClientCalls.blockingUnaryCall(channel, method, options, sent);
      } catch (StatusRuntimeException failure) {
        attempts.pause(StoreException.of(failure));
      }
    }
  }

  /**
   * Follows the changes of posts and comments. The call starts with the first {@link ResumedStream#next}.
   *
   * <p>Store the resume token together with the effects of the response, to continue from it after a restart of this
   * program. The reasons RESUME_TOKEN_EXPIRED and RESUME_TOKEN_FOREIGN mean that changes were lost: start again with
   * initial_state, and delete what it does not contain.
   */
  public ResumedStream<WatchRequest, WatchResponse> watch(WatchRequest request) {
    long heartbeat = request.hasHeartbeatInterval() ? request.getHeartbeatInterval().getSeconds() : HEARTBEAT_SECONDS;
    return new ResumedStream<>(
        channel,
        ChangeServiceGrpc.getWatchMethod(),
        request,
        timeout,
        Duration.ofSeconds(2 * heartbeat + 1),
        (it, response) -> it.toBuilder().setResumeToken(response.getResumeToken()).build());
  }

  /**
   * Exports everything. The last response has a resume_token; do not call {@link ResumedStream#next} after it.
   *
   * <p>Earlier records of the changed_post_ids and changed_comment_ids of a response are obsolete.
   */
  public ResumedStream<ExportRequest, ExportResponse> export(ExportRequest request) {
    return new ResumedStream<>(
        channel,
        TransferServiceGrpc.getExportMethod(),
        request,
        timeout,
        EXPORT_SILENCE,
        (it, response) -> it.toBuilder().setCursor(response.getCursor()).build());
  }

  /** Ends all calls. */
  @Override
  public void close() {
    timer.shutdownNow();
    channel.shutdownNow();
  }

  /** Ends the pause before the next attempt to connect, which gRPC extends to two minutes. */
  private void reconnect() {
    if (channel.getState(false) == ConnectivityState.TRANSIENT_FAILURE) {
      channel.resetConnectBackoff();
    }
  }

  private static Thread daemon(Runnable task) {
    Thread thread = new Thread(task, "storeapi-reconnect");
    thread.setDaemon(true);
    return thread;
  }

  @SuppressWarnings("unchecked") // A builder builds the type of the message that it is made from.
  private static <Q extends Message> Q withRequestId(Q request) {
    FieldDescriptor field = request.getDescriptorForType().findFieldByName("request_id");
    if (field == null || !request.getField(field).equals("")) {
      return request;
    }
    return (Q) request.toBuilder().setField(field, UUID.randomUUID().toString()).build();
  }

  @SuppressWarnings("unchecked") // The file is a JSON object.
  private static Map<String, ?> serviceConfig() {
    try (Reader file =
        new InputStreamReader(
            StoreClient.class.getResourceAsStream("/service_config.json"), StandardCharsets.UTF_8)) {
      return new Gson().fromJson(file, Map.class);
    } catch (IOException error) {
      throw new UncheckedIOException(error);
    }
  }
}
