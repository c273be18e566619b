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
import {
  ExportRequestSchema,
  type ExportResponse,
  type ImportOptionsSchema,
  type ImportRequest,
  ImportRequestSchema,
  type ImportResponse,
  type ImportResponseSchema,
  type RecordSchema,
  TransferService,
} from "../gen/storeapi/v1/transfer_pb.js";
import { Attempts } from "./attempts.js";
import { Connection, type ConnectOptions, type Stream, type StreamingMethod } from "./connection.js";
import { StoreError } from "./errors.js";

const TIMEOUT_MS = 10_000;
const HEARTBEAT_SECONDS = 10n;
/** The longest time without a response of an export or import, which have no heartbeats. */
const TRANSFER_SILENCE_MS = 120_000;
/** The number of batches of an import that are sent before their results arrive. */
const BATCHES_IN_FLIGHT = 4;

type RecordInit = MessageInitShape<typeof RecordSchema>;

/** Options of one call. */
export interface CallOptions {
  /** Milliseconds until the call fails, with all its attempts; of a stream, until its first response. */
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
    options: CallOptions = {},
  ): AsyncGenerator<WatchResponse> {
    const next = create(WatchRequestSchema, request);
    next.heartbeatInterval ??= create(DurationSchema, { seconds: HEARTBEAT_SECONDS });
    const { seconds, nanos } = next.heartbeatInterval;
    const silenceMs = 2 * (Number(seconds) * 1000 + nanos / 1e6) + 1000;
    const processed = ({ resumeToken }: WatchResponse) => {
      next.start = { case: "resumeToken", value: resumeToken };
      return false;
    };
    yield* this.#resumed(() => this.#sent(ChangeService.method.watch, next), processed, silenceMs, options);
  }

  /**
   * Exports everything. Ends after the response with `resumeToken`.
   *
   * Continues after the last response that the loop has finished with, as `watch` does. Earlier records of the
   * `changedPostIds` and `changedCommentIds` of a response are obsolete.
   *
   * Throws StoreError.
   */
  async *export(
    request: MessageInitShape<typeof ExportRequestSchema>,
    options: CallOptions = {},
  ): AsyncGenerator<ExportResponse> {
    const next = create(ExportRequestSchema, request);
    const processed = ({ cursor, resumeToken }: ExportResponse) => {
      next.cursor = cursor;
      return resumeToken !== "";
    };
    yield* this.#resumed(() => this.#sent(TransferService.method.export, next), processed, TRANSFER_SILENCE_MS, options);
  }

  /**
   * Imports batches of 1 to 1000 records, and iterates over the results of the batches, in their order.
   *
   * Sends up to four batches before their results arrive. After a broken connection it sends the batches again that
   * have no result: records that are stored already are counted as unchanged. A record that the service refuses does
   * not end the import; the result has its error.
   *
   * Throws StoreError.
   */
  async *import(
    importOptions: MessageInitShape<typeof ImportOptionsSchema>,
    batches: Iterable<RecordInit[]> | AsyncIterable<RecordInit[]>,
    options: CallOptions = {},
  ): AsyncGenerator<ImportResponse> {
    const source = (async function* () {
      yield* batches;
    })();
    const unstored: ImportRequest[] = [];
    let stream: Stream<typeof ImportRequestSchema, typeof ImportResponseSchema> | undefined;
    let batch = 0n;
    const sendMore = async () => {
      while (unstored.length < BATCHES_IN_FLIGHT) {
        const { done, value } = await source.next();
        if (done) {
          break;
        }
        const request = create(ImportRequestSchema, { batch: ++batch, records: value });
        unstored.push(request);
        stream?.send(request);
      }
      return unstored.length === 0;
    };
    if (await sendMore()) {
      return;
    }
    const begin = () => {
      const begun = this.#sent(TransferService.method.import, create(ImportRequestSchema, { options: importOptions }));
      unstored.forEach((it) => begun.send(it));
      return (stream = begun);
    };
    const processed = () => {
      unstored.shift();
      return sendMore();
    };
    yield* this.#resumed(begin, processed, TRANSFER_SILENCE_MS, options);
  }

  /**
   * The responses of a stream that is started again after a broken connection, until `processed`, which is called for
   * each response that the consumer has finished with, returns true.
   */
  async *#resumed<I extends DescMessage, O extends DescMessage>(
    begin: () => Stream<I, O>,
    processed: (response: MessageShape<O>) => boolean | Promise<boolean>,
    silenceMs: number,
    { timeoutMs = this.#timeoutMs, signal }: CallOptions,
  ): AsyncGenerator<MessageShape<O>> {
    let attempts = new Attempts(Date.now() + timeoutMs);
    for (;;) {
      try {
        for await (const response of begin().responses(attempts.deadline, silenceMs, signal)) {
          attempts = new Attempts(Infinity);
          yield response;
          if (await processed(response)) {
            return;
          }
        }
      } catch (error) {
        if (!(error instanceof StoreError)) {
          throw error;
        }
        await attempts.waitAfter(error, signal);
      }
    }
  }

  #sent<I extends DescMessage, O extends DescMessage>(
    method: StreamingMethod<I, O>,
    request: MessageShape<I>,
  ): Stream<I, O> {
    const stream = this.#connection.open(method);
    stream.send(request);
    return stream;
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
