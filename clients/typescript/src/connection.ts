/** What every client of the service has to do: deadlines, retries that never double, watches that go on. */

import { setTimeout as pause } from "node:timers/promises";

import { create, type DescMethod, type MessageInitShape } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel } from "@bufbuild/protobuf/wkt";
import {
  Code,
  ConnectError,
  createClient,
  type Client,
  type Interceptor,
  type Transport,
} from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";

import { type ErrorInfo, ErrorInfoSchema } from "../gen/google/rpc/error_details_pb.js";
import {
  ChangeService,
  WatchRequestSchema,
  type WatchResponse,
} from "../gen/storeapi/v1/changes_pb.js";
import { CommentService } from "../gen/storeapi/v1/comments_pb.js";
import { PostService } from "../gen/storeapi/v1/posts_pb.js";

const DEADLINE_MS = 10_000;

/** The server allows a ping every 10 seconds. */
const KEEPALIVE_MS = 30_000;

/** Pauses between attempts; a restart of the service takes about a second. */
const PAUSES_MS = [200, 400, 800, 1_600];
const LONGEST_PAUSE_MS = 2_000;

/** What Node, Connect and proxies make of a broken connection. */
const BROKEN = new Set([Code.Aborted, Code.Canceled, Code.Internal, Code.Unknown]);
const LASTING = /parse binary|serialize|compress|encoding|content type/;

/** The services on one connection. */
export interface Store {
  posts: Client<typeof PostService>;
  comments: Client<typeof CommentService>;
  changes: Client<typeof ChangeService>;
}

/** Reaches a server at HOST:PORT, without encryption; the connection is made with the first call. */
export function connect(address: string): Store {
  return storeOn(
    createGrpcTransport({
      baseUrl: `http://${address}`,
      defaultTimeoutMs: DEADLINE_MS,
      pingIntervalMs: KEEPALIVE_MS,
      interceptors: [retry],
    }),
  );
}

/** The services on a transport of the caller's, which should have the interceptor `retry`. */
export function storeOn(transport: Transport): Store {
  return {
    posts: createClient(PostService, transport),
    comments: createClient(CommentService, transport),
    changes: createClient(ChangeService, transport),
  };
}

/** Sends a unary call again, until its deadline, if it may have been lost and cannot be done twice. */
export const retry: Interceptor = (next) => async (request) => {
  if (request.stream || !isHarmlessTwice(request.method, request.message)) {
    return await next(request);
  }
  for (const ms of PAUSES_MS) {
    try {
      return await next(request);
    } catch (error) {
      if (request.signal.aborted || !isLost(error)) {
        throw error;
      }
      await pause(spread(ms), undefined, { signal: request.signal });
    }
  }
  return await next(request);
};

/**
 * Follows changes without end. After a lost connection it continues after the last response.
 *
 * A caller that stores the `resumeToken` of the last processed response can start from it later.
 * Leaving the loop ends the watch.
 */
export async function* watch(
  store: Store,
  request: MessageInitShape<typeof WatchRequestSchema>,
): AsyncGenerator<WatchResponse> {
  const next = create(WatchRequestSchema, request);
  let failures = 0;
  for (;;) {
    const over = new AbortController();
    try {
      // A watch has no deadline.
      for await (const response of store.changes.watch(next, { timeoutMs: 0, signal: over.signal })) {
        failures = 0;
        yield response;
        next.start = { case: "resumeToken", value: response.resumeToken };
      }
    } catch (error) {
      if (!isLost(error)) {
        throw error;
      }
    } finally {
      // Connect leaves a stream open whose reader has gone away.
      over.abort();
    }
    await pause(spread(PAUSES_MS[failures] ?? LONGEST_PAUSE_MS));
    failures += 1;
  }
}

/** Why the service refused a call; undefined if it was not the service that did. */
export function errorInfo(error: unknown): ErrorInfo | undefined {
  const infos = ConnectError.from(error).findDetails(ErrorInfoSchema);
  return infos.find((info) => info.domain === "storeapi");
}

/** Whether a call may be made again because the request or its response was lost. */
function isLost(error: unknown): boolean {
  const { code, rawMessage } = ConnectError.from(error);
  if (code === Code.Unavailable) {
    return true;
  }
  // The service gives each of its errors a reason. Without one it is a broken connection, unless Connect could not
  // decode the response: the next one would be the same.
  return BROKEN.has(code) && errorInfo(error) === undefined && !LASTING.test(rawMessage);
}

/** Reads are harmless, and so are writes with a request_id, which the service does once. */
function isHarmlessTwice(method: DescMethod, message: object): boolean {
  const isRead = method.idempotency === MethodOptions_IdempotencyLevel.NO_SIDE_EFFECTS;
  return isRead || ("requestId" in message && message.requestId !== "");
}

/** Up to a fifth more or less, so that callers do not come back all at once. */
function spread(ms: number): number {
  return ms * (0.8 + 0.4 * Math.random());
}
