package storeapi.client;

import io.grpc.Context;
import io.grpc.Deadline;
import java.time.Duration;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/** When a failed call is repeated, and after which pause. */
final class Attempts {
  private static final double FIRST_PAUSE_SECONDS = 0.05;
  private static final double LONGEST_PAUSE_SECONDS = 1;
  private static final double NANOS = 1e9;

  /** Null for attempts without an end. */
  private final Deadline deadline;

  private int failures;

  /** Attempts without an end. */
  Attempts() {
    this.deadline = null;
  }

  /** Attempts that end after this time. */
  Attempts(Duration timeout) {
    this.deadline = Deadline.after(timeout.toNanos(), TimeUnit.NANOSECONDS);
  }

  Deadline deadline() {
    return deadline;
  }

  /** Whether the deadline has passed. */
  boolean isOver() {
    return deadline != null && deadline.isExpired();
  }

  /** The time until the deadline, or the limit if that is shorter. */
  long remainingNanos(Duration limit) {
    return deadline == null
        ? limit.toNanos()
        : Math.min(limit.toNanos(), deadline.timeRemaining(TimeUnit.NANOSECONDS));
  }

  /**
   * Waits before the next attempt.
   *
   * @throws StoreException the error, if another attempt cannot help or no time is left for it
   */
  void pause(StoreException error) {
    double longest = Math.min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * Math.pow(2, Math.min(failures, 10)));
    // Callers that failed together must not retry together.
    double jittered = longest * ThreadLocalRandom.current().nextDouble(0.5, 1);
    double seconds = Math.max(jittered, error.retryAfter().map(it -> it.toNanos() / NANOS).orElse(0.0));
    // The deadline of the context is that of the caller.
    if (!error.isTransient()
        || Context.current().isCancelled()
        || (deadline != null && seconds * NANOS >= deadline.timeRemaining(TimeUnit.NANOSECONDS))) {
      throw error;
    }
    failures++;
    try {
      TimeUnit.NANOSECONDS.sleep((long) (seconds * NANOS));
    } catch (InterruptedException interrupt) {
      Thread.currentThread().interrupt();
      throw error;
    }
  }
}
