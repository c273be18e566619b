/** When a failed call is made again, and after which pause. */

import { setTimeout as sleep } from "node:timers/promises";

import { status } from "@grpc/grpc-js";

import { StoreError, UndecodableResponse } from "./errors.js";

/** Between the first two attempts; doubled for each further one. */
const FIRST_PAUSE_MS = 50;
/** A restart of the service takes about as long. */
const LONGEST_PAUSE_MS = 1_000;

/** What gRPC reports for a broken stream or an HTTP response of a proxy. */
const BROKEN = new Set([
  status.CANCELLED,
  status.UNKNOWN,
  status.RESOURCE_EXHAUSTED,
  status.INTERNAL,
  status.UNAVAILABLE,
]);
/** Texts of grpc-js, with the same statuses, for errors that another attempt cannot change. */
const LASTING = /larger than|compress|serializ|HTTP status code (?!408|425|429|500|502|503|504)/;

/** The attempts of one call. */
export class Attempts {
  count = 1;

  /** All attempts together end at `deadline`, in milliseconds since 1970; Infinity for no deadline. */
  constructor(readonly deadline: number) {}

  /** Waits before the next attempt. Throws the error if another attempt cannot help, or not in time. */
  async waitAfter(error: StoreError, signal?: AbortSignal): Promise<void> {
    error.attempts = this.count;
    let ms = Math.min(FIRST_PAUSE_MS * 2 ** Math.min(this.count - 1, 10), LONGEST_PAUSE_MS);
    // Callers that failed together do not come back together.
    ms *= 0.5 + Math.random() / 2;
    if (error.retryAfterMs !== undefined) {
      ms = Math.max(ms, error.retryAfterMs * (1 + Math.random() / 5));
    }
    if (signal?.aborted || !this.#mayHelp(error) || Date.now() + ms >= this.deadline) {
      throw error;
    }
    this.count += 1;
    await sleep(ms, undefined, { signal });
  }

  #mayHelp(error: StoreError): boolean {
    if (error instanceof UndecodableResponse) {
      return false;
    }
    if (error.retryAfterMs !== undefined) {
      return true;
    }
    if (error.reason !== "") {
      return error.code === status.UNAVAILABLE || error.code === status.CANCELLED;
    }
    if (error.code === status.DEADLINE_EXCEEDED) {
      // The deadline of a proxy: the caller's has not passed, and errors of the service have an id.
      return error.callId === undefined;
    }
    return BROKEN.has(error.code) && !LASTING.test(error.message);
  }
}
