/** Calls of one connection, as bytes. Responses are decoded here, so that gRPC cannot mistake them. */

import {
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethodBiDiStreaming,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type MessageShape,
} from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

import { StoreError, UndecodableResponse } from "./errors.js";

const CHANNEL_OPTIONS: grpc.ChannelOptions = {
  "grpc.service_config": JSON.stringify({ loadBalancingConfig: [{ round_robin: {} }] }),
  "grpc.service_config_disable_resolution": 1,
  // The largest response of the service is 4 MiB without its frame.
  "grpc.max_receive_message_length": 8 * 1024 * 1024,
  // The service allows a ping every 2 seconds.
  "grpc.keepalive_time_ms": 10_000,
  "grpc.keepalive_timeout_ms": 5_000,
  // The defaults of gRPC are 1 second and 2 minutes.
  "grpc.initial_reconnect_backoff_ms": 100,
  "grpc.max_reconnect_backoff_ms": 1_000,
};

const LOCAL = /^(localhost|127\.[\d.]+|\[::1\])(:\d+)?$|^unix:/;

/** A method with a stream of responses. */
export type StreamingMethod<I extends DescMessage, O extends DescMessage> =
  | DescMethodServerStreaming<I, O>
  | DescMethodBiDiStreaming<I, O>;

/** How to connect. */
export interface ConnectOptions {
  /** `credentials.createSsl(...)` of grpc-js; without it, the connection is not encrypted. */
  credentials?: grpc.ChannelCredentials;
  /** An API key or a token. It is sent over a network only with `credentials`. */
  key?: string;
  /** Milliseconds until a call fails, with all its attempts; 10,000 by default. */
  timeoutMs?: number;
  /** Further channel options of grpc-js. */
  channelOptions?: grpc.ChannelOptions;
}

/** A connection, or several if the target has several addresses. */
export class Connection {
  readonly #client: grpc.Client;
  readonly #key: string | undefined;

  constructor(target: string, options: ConnectOptions) {
    if (options.key !== undefined && options.credentials === undefined && !LOCAL.test(target)) {
      throw new TypeError("a key is not sent over a network without TLS: credentials are needed");
    }
    const credentials = options.credentials ?? grpc.credentials.createInsecure();
    this.#client = new grpc.Client(target, credentials, { ...CHANNEL_OPTIONS, ...options.channelOptions });
    this.#key = options.key;
  }

  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    deadline: number,
    signal?: AbortSignal,
  ): Promise<MessageShape<O>> {
    const data = await new Promise<Uint8Array>((resolve, reject) => {
      const call = this.#client.makeUnaryRequest(
        pathOf(method),
        (it: MessageShape<I>) => Buffer.from(toBinary(method.input, it)),
        (it) => it,
        request,
        this.#metadata(),
        { deadline },
        (error, response) => {
          signal?.removeEventListener("abort", abort);
          if (error) {
            reject(StoreError.from(error));
          } else {
            resolve(response!);
          }
        },
      );
      const abort = () => call.cancel();
      signal?.addEventListener("abort", abort);
    });
    return decoded(method, data);
  }

  /** Starts a call with a stream of responses. */
  open<I extends DescMessage, O extends DescMessage>(method: StreamingMethod<I, O>): Stream<I, O> {
    return new Stream(method, this.#client, this.#metadata());
  }

  close(): void {
    this.#client.close();
  }

  #metadata(): grpc.Metadata {
    // grpc-js ignores waitForReady in a service config.
    const metadata = new grpc.Metadata({ waitForReady: true });
    if (this.#key !== undefined) {
      metadata.set("authorization", `Bearer ${this.#key}`);
    }
    return metadata;
  }
}

/** A call with a stream of responses. On the wire a single request is a stream of one message. */
export class Stream<I extends DescMessage, O extends DescMessage> {
  readonly #method: StreamingMethod<I, O>;
  readonly #call: grpc.ClientDuplexStream<MessageShape<I>, Uint8Array>;

  constructor(method: StreamingMethod<I, O>, client: grpc.Client, metadata: grpc.Metadata) {
    this.#method = method;
    this.#call = client.makeBidiStreamRequest(
      pathOf(method),
      (it: MessageShape<I>) => Buffer.from(toBinary(method.input, it)),
      (it) => it,
      metadata,
    );
    // A cancelled call reports an error that nobody waits for.
    this.#call.on("error", () => {});
  }

  /** Sends a request, the only one of a method with one request. */
  send(request: MessageShape<I>): void {
    this.#call.write(request);
    if (this.#method.methodKind === "server_streaming") {
      this.#call.end();
    }
  }

  /**
   * Ends with DEADLINE_EXCEEDED if the first response does not arrive before the deadline, and with UNAVAILABLE if none
   * arrives for `silenceMs`. Leaving the loop ends the call.
   */
  async *responses(deadline: number, silenceMs: number, signal?: AbortSignal): AsyncGenerator<MessageShape<O>> {
    const cancel = () => this.#call.cancel();
    signal?.addEventListener("abort", cancel);
    const messages = this.#call[Symbol.asyncIterator]();
    let silent: StoreError | undefined;
    try {
      for (let ms = Math.max(Math.min(silenceMs, deadline - Date.now()), 1); ; ms = silenceMs) {
        const silence = setTimeout(() => {
          const code = ms < silenceMs ? grpc.status.DEADLINE_EXCEEDED : grpc.status.UNAVAILABLE;
          silent = new StoreError(code, `no response for ${Math.round(ms)} ms`);
          cancel();
        }, ms);
        const { done, value } = await messages.next().finally(() => clearTimeout(silence));
        if (done) {
          throw new StoreError(grpc.status.UNAVAILABLE, "the server ended the stream without a status");
        }
        yield decoded(this.#method, value);
      }
    } catch (error) {
      throw silent ?? (error instanceof StoreError ? error : StoreError.from(error as grpc.ServiceError));
    } finally {
      signal?.removeEventListener("abort", cancel);
      cancel();
    }
  }
}

function pathOf(method: DescMethodUnary | StreamingMethod<DescMessage, DescMessage>): string {
  return `/${method.parent.typeName}/${method.name}`;
}

function decoded<O extends DescMessage>(
  method: { output: O; name: string },
  data: Uint8Array,
): MessageShape<O> {
  try {
    return fromBinary(method.output, data);
  } catch (error) {
    throw new UndecodableResponse(method.name, error);
  }
}
