/** The rules of the connection, against services in this process. */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { test } from "node:test";

import { Code, ConnectError, createRouterTransport, type ConnectRouter } from "@connectrpc/connect";

import { ChangeService, type WatchRequest } from "../gen/storeapi/v1/changes_pb.js";
import { PostService } from "../gen/storeapi/v1/posts_pb.js";
import { retry, storeOn, type Store, watch } from "./connection.js";

const LOST = new ConnectError("the server is away", Code.Unavailable);

function storeWith(routes: (router: ConnectRouter) => void): Store {
  return storeOn(createRouterTransport(routes, { transport: { interceptors: [retry] } }));
}

/** A service that fails `times` calls before it responds, and the request ids that it has received. */
function failing(times: number, error: ConnectError): { store: Store; asked: string[] } {
  const asked: string[] = [];
  const answer = (requestId: string) => {
    asked.push(requestId);
    if (asked.length <= times) {
      throw error;
    }
    return { id: 1n };
  };
  const store = storeWith((router) => {
    router.service(PostService, {
      createPost: (request) => answer(request.requestId),
      getPost: () => answer(""),
    });
  });
  return { store, asked };
}

test("a read is made again until it gets a response", async () => {
  const { store, asked } = failing(2, LOST);

  const post = await store.posts.getPost({ id: 1n });

  assert.equal(post.id, 1n);
  assert.equal(asked.length, 3);
});

test("a write is made again with the same request_id", async () => {
  const { store, asked } = failing(1, LOST);
  const requestId = randomUUID();

  await store.posts.createPost({ post: { body: "a" }, requestId });

  assert.deepEqual(asked, [requestId, requestId]);
});

test("a write without request_id is not made again", async () => {
  const { store, asked } = failing(1, LOST);

  await assert.rejects(store.posts.createPost({ post: { body: "a" } }), {
    code: Code.Unavailable,
  });

  assert.equal(asked.length, 1);
});

test("what has no reason of the service is a broken connection", async () => {
  const { store, asked } = failing(1, new ConnectError("Stream removed", Code.Unknown));

  await store.posts.getPost({ id: 7n });

  assert.equal(asked.length, 2);
});

test("a call is not repeated if its response cannot be decoded", async () => {
  const { store, asked } = failing(1, new ConnectError("parse binary: premature EOF", Code.Internal));

  await assert.rejects(store.posts.getPost({ id: 7n }), { code: Code.Internal });

  assert.equal(asked.length, 1);
});

test("what is refused is not made again", async () => {
  const { store, asked } = failing(1, new ConnectError("no", Code.InvalidArgument));

  await assert.rejects(store.posts.getPost({ id: 0n }), { code: Code.InvalidArgument });

  assert.equal(asked.length, 1);
});

test("a watch continues after the last response", async () => {
  const asked: WatchRequest["start"][] = [];
  const store = storeWith((router) => {
    router.service(ChangeService, {
      async *watch(request) {
        asked.push(request.start);
        yield { resumeToken: `token ${asked.length}` };
        throw LOST;
      },
    });
  });

  for await (const response of watch(store, { start: { case: "earliest", value: true } })) {
    if (response.resumeToken === "token 2") {
      break;
    }
  }

  assert.deepEqual(asked, [
    { case: "earliest", value: true },
    { case: "resumeToken", value: "token 1" },
  ]);
});
