package storeapi.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Message;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import java.util.regex.Pattern;
import storeapi.v1.ErrorReason;

/** The error of a call, with the details that the service has sent. */
public final class StoreException extends RuntimeException {
  /** The domain of the reasons of the service. */
  private static final String DOMAIN = "storeapi";

  /** The statuses that gRPC reports for a broken connection or an HTTP response of a proxy. */
  private static final Set<Status.Code> BROKEN =
      Set.of(
          Status.Code.CANCELLED,
          Status.Code.UNKNOWN,
          Status.Code.DEADLINE_EXCEEDED,
          Status.Code.RESOURCE_EXHAUSTED,
          Status.Code.INTERNAL,
          Status.Code.UNAVAILABLE);

  /**
   * Messages of grpc-java, with the same statuses, for errors that a repetition cannot change: a response that cannot be
   * decoded or is too large, and a proxy that refuses the request.
   */
  private static final Pattern PERMANENT =
      Pattern.compile("Failed to read message|exceeds|ompress|HTTP status code (?!408|425|429|500|502|503|504)");

  private final Status status;
  private final ErrorInfo info;
  private final List<BadRequest.FieldViolation> violations;
  private final Duration retryAfter;

  private StoreException(Status status, List<Any> details, Throwable cause) {
    super(status.getCode() + ": " + status.getDescription(), cause);
    this.status = status;
    this.info =
        find(details, ErrorInfo.class).stream()
            .filter(it -> it.getDomain().equals(DOMAIN)) // Proxies may add their own.
            .findFirst()
            .orElseGet(ErrorInfo::getDefaultInstance);
    this.violations =
        find(details, BadRequest.class).stream().flatMap(it -> it.getFieldViolationsList().stream()).toList();
    this.retryAfter =
        find(details, RetryInfo.class).stream()
            .findFirst()
            .map(RetryInfo::getRetryDelay)
            .map(it -> Duration.ofSeconds(it.getSeconds(), it.getNanos()))
            .orElse(null);
  }

  /** The error for a StatusException or StatusRuntimeException. */
  static StoreException of(Exception failure) {
    return new StoreException(
        Status.fromThrowable(failure), StatusProto.fromThrowable(failure).getDetailsList(), failure);
  }

  /** The error for a stream without a response, until the deadline or for too long. */
  static StoreException silent(boolean isDeadline, Exception cause) {
    Status status = isDeadline ? Status.DEADLINE_EXCEEDED : Status.UNAVAILABLE;
    return new StoreException(status.withDescription("no response"), List.of(), cause);
  }

  /** The status of gRPC. */
  public Status.Code code() {
    return status.getCode();
  }

  /**
   * The reason; ERROR_REASON_UNSPECIFIED if the error is not from the service, or its reason is newer than this client.
   */
  public ErrorReason reason() {
    try {
      return ErrorReason.valueOf("ERROR_REASON_" + info.getReason());
    } catch (IllegalArgumentException unknown) {
      return ErrorReason.ERROR_REASON_UNSPECIFIED;
    }
  }

  /** The reason as text, and its metadata; empty if the error is not from the service. */
  public ErrorInfo info() {
    return info;
  }

  /** The fields of the request that are not valid. */
  public List<BadRequest.FieldViolation> violations() {
    return violations;
  }

  /** The time after which the call can be repeated. */
  public Optional<Duration> retryAfter() {
    return Optional.ofNullable(retryAfter);
  }

  /**
   * Whether the same call may succeed later.
   *
   * <p>Each error of the service has a reason. An error without one is a broken connection, whichever of the statuses it
   * has, except where gRPC cannot decode a response or a proxy refuses the request.
   */
  boolean isTransient() {
    if (retryAfter != null) {
      return true;
    }
    if (!info.getReason().isEmpty()) {
      return code() == Status.Code.UNAVAILABLE || code() == Status.Code.CANCELLED;
    }
    String message = Optional.ofNullable(status.getDescription()).orElse("");
    return BROKEN.contains(code()) && !PERMANENT.matcher(message).find();
  }

  private static <D extends Message> List<D> find(List<Any> details, Class<D> type) {
    List<D> found = new ArrayList<>();
    try {
      for (Any it : details) {
        if (it.is(type)) {
          found.add(it.unpack(type));
        }
      }
    } catch (InvalidProtocolBufferException damaged) {
      return found; // The status is still that of the call.
    }
    return found;
  }
}
