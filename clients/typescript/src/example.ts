/** Posts once, reads, turns pages, meets an error and follows a change: `npm run example -- HOST:PORT`. */

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";

import { Code, ConnectError } from "@connectrpc/connect";

import { Action } from "../gen/storeapi/v1/changes_pb.js";
import { ErrorReason } from "../gen/storeapi/v1/errors_pb.js";
import type { Post } from "../gen/storeapi/v1/posts_pb.js";
import { connect, errorInfo, type Store, watch } from "./connection.js";

const NO_SUCH_POST = 999_999_999n;

async function main(address: string): Promise<void> {
  const store = connect(address);

  const post = await createOnce(store, "Hello from TypeScript");
  console.log(`created post ${post.id}`);

  const read = await store.posts.getPost({ id: post.id });
  console.log(`read ${JSON.stringify(read.body)}`);

  await store.posts.batchCreatePosts({
    requests: ["one", "two"].map((body) => ({ post: { body } })),
    requestId: randomUUID(),
  });
  const pages = await listPages(store);
  console.log(`listed ${pages.flat().length} posts on ${pages.length} pages`);

  console.log(`refused with ${await reasonOfMissing(store)}`);

  const changed = await changeAndWatch(store, post);
  console.log(`watched post ${changed.id} become ${JSON.stringify(changed.body)}`);
}

/** Creates a post twice with one request id, as a caller does that got no response to the first call. */
async function createOnce(store: Store, body: string): Promise<Post> {
  const request = { post: { body }, requestId: randomUUID() };
  const first = await store.posts.createPost(request);
  const again = await store.posts.createPost(request);
  assert.deepEqual(again, first);
  return again;
}

/** All posts, page by page. */
async function listPages(store: Store): Promise<Post[][]> {
  const pages: Post[][] = [];
  let pageToken = "";
  do {
    const page = await store.posts.listPosts({ pageSize: 2, pageToken });
    pages.push(page.posts);
    pageToken = page.nextPageToken;
  } while (pageToken);
  return pages;
}

/** The reason that the service gives for a post that is not there. */
async function reasonOfMissing(store: Store): Promise<string> {
  try {
    await store.posts.getPost({ id: NO_SUCH_POST });
  } catch (error) {
    const info = errorInfo(error);
    assert.equal(ConnectError.from(error).code, Code.NotFound);
    assert.equal(info?.reason, ErrorReason[ErrorReason.POST_NOT_FOUND]);
    assert.equal(info.metadata["post_id"], String(NO_SUCH_POST));
    return info.reason;
  }
  assert.fail("a post that is not there was found");
}

/** Changes a post and returns it as a watch tells of it. */
async function changeAndWatch(store: Store, post: Post): Promise<Post> {
  // The first response comes at once: from then on nothing is missed.
  let isWatching = false;
  for await (const response of watch(store, { postIds: [post.id] })) {
    if (!isWatching) {
      isWatching = true;
      const body = `${post.body}, changed`;
      await store.posts.updatePost({
        post: { id: post.id, body, etag: post.etag },
        requestId: randomUUID(),
      });
    }
    for (const { action, resource } of response.changes) {
      if (action === Action.UPDATE && resource.case === "post") {
        return resource.value;
      }
    }
  }
  assert.fail("the watch ended");
}

const address = process.argv[2];
if (address === undefined) {
  console.error("usage: npm run example -- HOST:PORT");
  process.exitCode = 2;
} else {
  await main(address);
}
