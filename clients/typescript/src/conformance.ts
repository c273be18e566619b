/** The runner of the conformance scenario, ../../conformance/README.md. */

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import type { MessageInitShape } from "@bufbuild/protobuf";

import {
  Action,
  type Change,
  type Comment,
  CommentService,
  ConflictPolicy,
  connect,
  credentials,
  type Post,
  PostService,
  type RecordSchema,
  RecordState,
  ResourceKind,
  status,
  type StoreClient,
  StoreError,
} from "./index.js";

type Json = Record<string, any>;

let client: StoreClient | undefined;
let changes: AsyncGenerator<Change> | undefined;

const posts = PostService.method;
const comments = CommentService.method;

async function run(command: Json): Promise<Json> {
  const it = client!;
  const { resource, id, body, request_id: requestId = "" } = command;
  const isPost = resource === "posts";
  const postId = BigInt(command["post_id"] ?? 0);
  switch (command["do"]) {
    case "connect":
      client?.close();
      client = connect(command["target"], {
        timeoutMs: command["timeout"] * 1000,
        ...(command["ca"] && { credentials: credentials.createSsl(readFileSync(command["ca"])), key: command["key"] }),
      });
      return {};
    case "create":
      return shown(
        isPost
          ? await it.call(posts.createPost, { post: { body }, requestId })
          : await it.call(comments.createComment, { comment: { body, postId }, requestId }),
      );
    case "get":
      return shown(
        isPost ? await it.call(posts.getPost, { id: BigInt(id) }) : await it.call(comments.getComment, { id: BigInt(id) }),
      );
    case "update": {
      const updated = { id: BigInt(id), body, etag: command["etag"] ?? "" };
      return shown(
        isPost
          ? await it.call(posts.updatePost, { post: updated })
          : await it.call(comments.updateComment, { comment: updated }),
      );
    }
    case "delete": {
      const request = { id: BigInt(id), requestId, allowMissing: command["allow_missing"] ?? false };
      return shown(
        isPost ? await it.call(posts.deletePost, request) : await it.call(comments.deleteComment, request),
      );
    }
    case "list": {
      const pageSize = command["page_size"];
      const items: AsyncIterable<Post | Comment> = isPost
        ? it.list(posts.listPosts, { pageSize })
        : it.list(comments.listComments, { pageSize, postId });
      const shownItems: Json[] = [];
      for await (const item of items) {
        shownItems.push(shown(item));
      }
      return { items: shownItems };
    }
    case "batch_get": {
      const ids = command["ids"].map(BigInt);
      const found = isPost
        ? (await it.call(posts.batchGetPosts, { ids })).posts
        : (await it.call(comments.batchGetComments, { ids })).comments;
      return { items: found.map(shown) };
    }
    case "watch":
      changes = watched(it, command);
      return {};
    case "next": {
      const received: Json[] = [];
      while (received.length < command["count"]) {
        received.push(shownChange((await changes!.next()).value));
      }
      return { changes: received };
    }
    case "export": {
      const exported: { posts: Json[]; comments: Json[] } = { posts: [], comments: [] };
      for await (const { records } of it.export({})) {
        for (const { resource, state } of records) {
          if (state === RecordState.UNSPECIFIED) {
            (resource.case === "post" ? exported.posts : exported.comments).push(shown(resource.value!));
          }
        }
      }
      return exported;
    }
    case "import": {
      const results = { stored: 0, failed: 0 };
      // Batches of one record, so that several are sent.
      const batches = command["records"].map((it: Json) => [record(it)]);
      for await (const { result } of it.import({ onConflict: ConflictPolicy.FAIL }, batches)) {
        results.stored += result!.created + result!.unchanged;
        results.failed += result!.failed;
      }
      return results;
    }
    case "close":
      await changes!.return(undefined);
      return {};
  }
  throw new Error(`unknown command ${command["do"]}`);
}

async function* watched(it: StoreClient, { start, post_ids = [], timeout }: Json): AsyncGenerator<Change> {
  const request = {
    start: { case: start === "earliest" ? ("earliest" as const) : ("initialState" as const), value: true },
    postIds: post_ids.map(BigInt),
  };
  for await (const response of it.watch(request, timeout === undefined ? {} : { timeoutMs: timeout * 1000 })) {
    yield* response.changes;
  }
}

function record({ id, post_id: postId, body }: Json): MessageInitShape<typeof RecordSchema> {
  return postId === undefined
    ? { resource: { case: "post", value: { id: BigInt(id), body } } }
    : { resource: { case: "comment", value: { id: BigInt(id), postId: BigInt(postId), body } } };
}

function shown(it: Post | Comment): Json {
  const common = { id: Number(it.id), body: it.body, etag: it.etag };
  return "postId" in it ? { ...common, post_id: Number(it.postId) } : common;
}

function shownChange({ action, kind, id, resource }: Change): Json {
  return {
    action: Action[action].toLowerCase(),
    kind: ResourceKind[kind].toLowerCase(),
    id: Number(id),
    body: resource.value?.body,
  };
}

function shownError(error: StoreError): Json {
  return {
    code: status[error.code],
    reason: error.reason,
    metadata: error.metadata,
    fields: error.violations.map((it) => it.field),
    retry_after: error.retryAfterMs === undefined ? null : error.retryAfterMs / 1000,
  };
}

for await (const line of createInterface({ input: process.stdin })) {
  let response: Json;
  try {
    response = await run(JSON.parse(line));
  } catch (error) {
    if (!(error instanceof StoreError)) {
      throw error;
    }
    response = { error: shownError(error) };
  }
  console.log(JSON.stringify(response));
}
client?.close();
