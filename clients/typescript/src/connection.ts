/** Calls of one connection, as bytes. Responses are decoded here, so that gRPC cannot mistake them. */

import {
  fromBinary,
  toBinary,
  type DescMessage,
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

  /**
   * Ends with CANCELLED if no response arrives for `silenceMs`, the first one for `firstMs`. Leaving the loop ends the
   * call.
   */
  async *stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodServerStreaming<I, O>,
    request: MessageShape<I>,
    firstMs: number,
    silenceMs: number,
    signal?: AbortSignal,
  ): AsyncGenerator<MessageShape<O>> {
    const call = this.#client.makeServerStreamRequest(
      pathOf(method),
      (it: MessageShape<I>) => Buffer.from(toBinary(method.input, it)),
      (it) => it,
      request,
      this.#metadata(),
    );
    const cancel = () => call.cancel();
    signal?.addEventListener("abort", cancel);
    // A cancelled call reports an error that nobody waits for.
    call.on("error", () => {});
    const messages = call[Symbol.asyncIterator]();
    try {
      for (let ms = firstMs; ; ms = silenceMs) {
        const silence = setTimeout(cancel, ms);
        const { done, value } = await messages.next().finally(() => clearTimeout(silence));
        if (done) {
          throw new StoreError(grpc.status.UNAVAILABLE, "the server ended the stream without a status");
        }
        yield decoded(method, value);
      }
    } catch (error) {
      throw error instanceof StoreError ? error : StoreError.from(error as grpc.ServiceError);
    } finally {
      signal?.removeEventListener("abort", cancel);
      cancel();
    }
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

function pathOf(method: DescMethodUnary | DescMethodServerStreaming): string {
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
