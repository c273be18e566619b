/** The errors of calls, with the reason and the details that the service gives. */

import { fromBinary, type DescMessage, type MessageShape } from "@bufbuild/protobuf";
import { anyUnpack, type Any } from "@bufbuild/protobuf/wkt";
import { Metadata, status, type ServiceError } from "@grpc/grpc-js";

import {
  BadRequestSchema,
  type BadRequest_FieldViolation,
  ErrorInfoSchema,
  RetryInfoSchema,
} from "../gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "../gen/google/rpc/status_pb.js";
import { ErrorReason } from "../gen/storeapi/v1/errors_pb.js";

/** A reason of the service. A newer service may send others. */
export type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/** A call has failed. */
export class StoreError extends Error {
  override readonly name = "StoreError";
  /** The status of gRPC: `status.NOT_FOUND`, for example. */
  readonly code: status;
  /** Why the service refused the call; empty if the error is not from the service. */
  readonly reason: Reason | "";
  /** The values that belong to the reason, such as `post_id`. */
  readonly metadata: Readonly<Record<string, string>>;
  /** The fields of the request that are not valid. */
  readonly violations: readonly BadRequest_FieldViolation[];
  /** After how many milliseconds the call may succeed, if the service says so. */
  readonly retryAfterMs: number | undefined;
  /** The id of the call in the log of the service, if the call has reached it. */
  readonly callId: string | undefined;
  /** The `request_id` of the write; with it and the same fields, the call can be made again. */
  requestId = "";
  /** How often the call was made. */
  attempts = 1;

  constructor(code: status, message: string, trailers = new Metadata(), options?: ErrorOptions) {
    super(message, options);
    const details = detailsOf(trailers);
    const info = find(details, ErrorInfoSchema).find((it) => it.domain === "storeapi");
    const delay = find(details, RetryInfoSchema)[0]?.retryDelay;
    this.code = code;
    this.reason = (info?.reason ?? "") as Reason | "";
    this.metadata = info?.metadata ?? {};
    this.violations = find(details, BadRequestSchema).flatMap((it) => it.fieldViolations);
    this.retryAfterMs = delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
    this.callId = trailers.get("x-call-id")[0]?.toString();
  }

  static from(error: ServiceError): StoreError {
    return new StoreError(error.code, error.details, error.metadata, { cause: error });
  }
}

/** A response cannot be decoded. The next one could not be decoded either. */
export class UndecodableResponse extends StoreError {
  constructor(method: string, cause: unknown) {
    super(status.INTERNAL, `the response of ${method} cannot be decoded`, undefined, { cause });
  }
}

function detailsOf(trailers: Metadata): Any[] {
  const encoded = trailers.get("grpc-status-details-bin")[0];
  if (!(encoded instanceof Uint8Array)) {
    return [];
  }
  try {
    return fromBinary(StatusSchema, encoded).details;
  } catch {
    // A proxy has changed them. The status is still that of the call.
    return [];
  }
}

function find<T extends DescMessage>(details: Any[], schema: T): MessageShape<T>[] {
  return details.flatMap((it) => anyUnpack(it, schema) ?? []);
}
