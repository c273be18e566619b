/** The rules of the client, against a gRPC server in this process. */

import assert from "node:assert/strict";
import { afterEach, test } from "node:test";

import { create, fromBinary, toBinary, type DescMethod, type MessageInitShape } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";

import {
  ChangeService,
  connect,
  type CreatePostRequest,
  PostService,
  type StoreClient,
  StoreError,
  type WatchRequest,
} from "./index.js";

type Handler = (request: any, attempt: number) => object | grpc.StatusObject | undefined;

const started: grpc.Server[] = [];
const connected: StoreClient[] = [];

afterEach(() => {
  connected.splice(0).forEach((it) => it.close());
  started.splice(0).forEach((it) => it.forceShutdown());
});

/** A server with one method. Its handler returns the response, an error, or undefined for no response. */
async function serve(method: DescMethod, handler: Handler, address = "127.0.0.1:0"): Promise<string> {
  const server = new grpc.Server();
  let attempts = 0;
  const implementation = (call: any, respond?: grpc.sendUnaryData<object>) => {
    attempts += 1;
    const outcome = handler(call.request, attempts);
    if (outcome === undefined) {
      return;
    }
    if ("code" in outcome) {
      respond ? respond(outcome) : call.emit("error", outcome);
    } else {
      respond ? respond(null, outcome) : call.write(outcome);
    }
  };
  const definition = {
    path: `/${method.parent.typeName}/${method.name}`,
    requestStream: false,
    responseStream: method.methodKind === "server_streaming",
    requestSerialize: () => Buffer.alloc(0),
    requestDeserialize: (data: Buffer) => fromBinary(method.input, data),
    responseSerialize: (it: MessageInitShape<typeof method.output>) =>
      Buffer.from(toBinary(method.output, create(method.output, it))),
    responseDeserialize: () => ({}),
  };
  server.addService({ method: definition }, { method: implementation as grpc.UntypedHandleCall });
  started.push(server);
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, it) => (error ? reject(error) : resolve(it)));
  });
  return `127.0.0.1:${port}`;
}

function client(target: string): StoreClient {
  const it = connect(target, { timeoutMs: 60_000 });
  connected.push(it);
  return it;
}

const broken = { code: grpc.status.INTERNAL, details: "Received RST_STREAM with code 2", metadata: new grpc.Metadata() };

test("a write is sent again with the same request_id", async () => {
  const ids: string[] = [];
  const target = await serve(PostService.method.createPost, (request: CreatePostRequest, attempt) => {
    ids.push(request.requestId);
    return attempt < 3 ? broken : { id: 7n };
  });

  const post = await client(target).call(PostService.method.createPost, { post: { body: "a" } });

  assert.equal(post.id, 7n);
  assert.match(ids[0]!, /^[0-9a-f-]{36}$/);
  assert.deepEqual(ids, [ids[0], ids[0], ids[0]]);
});

test("a call waits for a server that is not there yet", async () => {
  const target = await serve(PostService.method.getPost, () => ({}));
  started.splice(0).forEach((it) => it.forceShutdown());

  const waiting = client(target).call(PostService.method.getPost, { id: 1n });
  await serve(PostService.method.getPost, () => ({ id: 1n }), target);

  assert.equal((await waiting).id, 1n);
});

test("a call that fails until its deadline ends with the error", async () => {
  const target = await serve(PostService.method.getPost, () => broken);

  await assert.rejects(client(target).call(PostService.method.getPost, { id: 1n }, { timeoutMs: 500 }), StoreError);
});

test("a list reads the pages until there is no token", async () => {
  const target = await serve(PostService.method.listPosts, (request) => {
    const number = Number(request.pageToken);
    // The second page is empty, as those of lists with a filter may be.
    return { posts: number === 1 ? [] : [{ id: BigInt(number + 1) }], nextPageToken: number < 2 ? `${number + 1}` : "" };
  });

  const ids: bigint[] = [];
  for await (const post of client(target).list(PostService.method.listPosts, {})) {
    ids.push(post.id);
  }

  assert.deepEqual(ids, [1n, 3n]);
});

test("a silent watch is opened again, after the response that its consumer has finished with", async () => {
  const starts: WatchRequest["start"][] = [];
  const target = await serve(ChangeService.method.watch, (request: WatchRequest, attempt) => {
    starts.push(request.start);
    return { resumeToken: `token ${attempt}` };
  });

  const tokens: string[] = [];
  for await (const { resumeToken } of client(target).watch({
    start: { case: "earliest", value: true },
    heartbeatInterval: { seconds: 0n, nanos: 1 },
  })) {
    tokens.push(resumeToken);
    if (tokens.length === 3) {
      break;
    }
  }

  assert.deepEqual(starts[0], { case: "earliest", value: true });
  const resumed = new Set(starts.map((it) => (it.case === "resumeToken" ? it.value : "")));
  assert.deepEqual([...resumed], ["", tokens[0], tokens[1]]);
});

test("an aborted watch ends with an error", async () => {
  const target = await serve(ChangeService.method.watch, () => ({ resumeToken: "a" }));
  const controller = new AbortController();

  await assert.rejects(async () => {
    for await (const _ of client(target).watch({}, { signal: controller.signal })) {
      controller.abort();
    }
  }, StoreError);
});

test("a key is not sent over a network without TLS", () => {
  assert.throws(() => connect("store.example:50051", { key: "secret" }), TypeError);
  client("localhost:50051").close();
});
