/** The client of the posts-and-comments service, and the messages and methods of its contract. */

export { credentials, status } from "@grpc/grpc-js";
export * from "../gen/storeapi/v1/admin_pb.js";
export * from "../gen/storeapi/v1/changes_pb.js";
export * from "../gen/storeapi/v1/comments_pb.js";
export * from "../gen/storeapi/v1/errors_pb.js";
export * from "../gen/storeapi/v1/filters_pb.js";
export * from "../gen/storeapi/v1/posts_pb.js";
export * from "../gen/storeapi/v1/search_pb.js";
export * from "../gen/storeapi/v1/transfer_pb.js";
export { type CallOptions, connect, type ItemOf, StoreClient } from "./client.js";
export type { ConnectOptions } from "./connection.js";
export { type Reason, StoreError, UndecodableResponse } from "./errors.js";
