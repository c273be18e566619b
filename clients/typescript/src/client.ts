/** The client: calls with retries, lists over all pages, and watches that continue. */

import { randomUUID } from "node:crypto";

import {
  create,
  type DescMessage,
  type DescMethodUnary,
  type Message,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { DurationSchema } from "@bufbuild/protobuf/wkt";

import { ChangeService, WatchRequestSchema, type WatchResponse } from "../gen/storeapi/v1/changes_pb.js";
import { Attempts } from "./attempts.js";
import { Connection, type ConnectOptions } from "./connection.js";
import { StoreError } from "./errors.js";

const TIMEOUT_MS = 10_000;
const HEARTBEAT_SECONDS = 10n;

/** Options of one call. */
export interface CallOptions {
  /** Milliseconds until the call fails, with all its attempts; of a watch, until its first response. */
  timeoutMs?: number;
  /** Ends the call with a StoreError, or during a pause between two attempts with an AbortError. */
  signal?: AbortSignal;
}

/** The resources on the pages of a list: the elements of the only field with messages. */
export type ItemOf<Page> = {
  [Field in keyof Page]-?: Page[Field] extends (infer Item extends Message)[] ? Item : never;
}[keyof Page];

/** A client of the service. It connects with the first call. */
export class StoreClient {
  readonly #connection: Connection;
  readonly #timeoutMs: number;

  /** Use `connect`. */
  constructor(target: string, options: ConnectOptions) {
    this.#connection = new Connection(target, options);
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
  }

  /**
   * Calls a method and returns its response.
   *
   * Waits for the service, and makes the call again after broken connections, until the deadline. A write gets a
   * `request_id` if it has none, so it is executed once, however often it is sent.
   *
   * Throws StoreError.
   */
  async call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
    { timeoutMs = this.#timeoutMs, signal }: CallOptions = {},
  ): Promise<MessageShape<O>> {
    const message = create(method.input, request) as MessageShape<I> & { requestId?: string };
    if (message.requestId === "") {
      message.requestId = randomUUID();
    }
    const attempts = new Attempts(Date.now() + timeoutMs);
    for (;;) {
      try {
        return await this.#connection.unary(method, message, attempts.deadline, signal);
      } catch (error) {
        if (!(error instanceof StoreError)) {
          throw error;
        }
        error.requestId = message.requestId ?? "";
        await attempts.waitAfter(error, signal);
      }
    }
  }

  /**
   * Iterates over the resources on all pages of a list or a search.
   *
   * `timeoutMs` is that of each page.
   */
  async *list<I extends DescMessage, O extends DescMessage>(
    method: MessageShape<O> extends { nextPageToken: string } ? DescMethodUnary<I, O> : never,
    request: MessageInitShape<I>,
    options?: CallOptions,
  ): AsyncGenerator<ItemOf<MessageShape<O>>> {
    const items = method.output.fields.find((it) => it.fieldKind === "list" && it.listKind === "message");
    const next = create(method.input, request) as MessageShape<I> & { pageToken: string };
    do {
      const page = (await this.call(method, next as MessageInitShape<I>, options)) as Record<string, unknown>;
      yield* page[items!.localName] as ItemOf<MessageShape<O>>[];
      next.pageToken = page["nextPageToken"] as string;
    } while (next.pageToken !== "");
  }

  /**
   * Follows the changes, and does not end by itself. Leaving the loop ends the watch.
   *
   * Continues after the last response that the loop has finished with, through restarts of the service, broken
   * connections and silence for more than two heartbeats. A program that stores the `resumeToken` of that response
   * can start from it later.
   *
   * Throws StoreError if the service refuses the watch, for example with RESUME_TOKEN_EXPIRED; a consumer then starts
   * again with `start: { case: "initialState", value: true }`.
   */
  async *watch(
    request: MessageInitShape<typeof WatchRequestSchema>,
    { timeoutMs = this.#timeoutMs, signal }: CallOptions = {},
  ): AsyncGenerator<WatchResponse> {
    const next = create(WatchRequestSchema, request);
    next.heartbeatInterval ??= create(DurationSchema, { seconds: HEARTBEAT_SECONDS });
    const { seconds, nanos } = next.heartbeatInterval;
    const silenceMs = 2 * (Number(seconds) * 1000 + nanos / 1e6) + 1000;
    let attempts = new Attempts(Date.now() + timeoutMs);
    for (;;) {
      // Before the first response, the stream has the time that is left of the deadline.
      const waitMs = Math.max(Math.min(silenceMs, attempts.deadline - Date.now()), 1);
      try {
        for await (const response of this.#connection.stream(ChangeService.method.watch, next, waitMs, silenceMs, signal)) {
          attempts = new Attempts(Infinity);
          yield response;
          next.start = { case: "resumeToken", value: response.resumeToken };
        }
      } catch (error) {
        if (!(error instanceof StoreError)) {
          throw error;
        }
        await attempts.waitAfter(error, signal);
      }
    }
  }

  /** Closes the connection. Calls that run end with an error. */
  close(): void {
    this.#connection.close();
  }
}

/**
 * Returns a client of the service at a target: `HOST:PORT`, `dns:///HOST:PORT` with one or several addresses, or
 * `unix:PATH`.
 */
export function connect(target: string, options: ConnectOptions = {}): StoreClient {
  return new StoreClient(target, options);
}
