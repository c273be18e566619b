"""The RPC methods of PostService: validate the request, call the service layer, convert the result."""

from storeapi.v1 import posts_pb2 as pb

from store_service.model import BatchResult, Post
from store_service.rpc.call import Context
from store_service.rpc.convert import post_to_message, response_converter, search_converter
from store_service.rpc.responses import LazyResponse, lazy
from store_service.rpc.validation import Validation, idempotency_key
from store_service.service.posts import Posts
from store_service.service.search import ResourceSearch

_list_response = response_converter(pb.ListPostsResponse, post_to_message)
_search_response = search_converter(pb.SearchPostsResponse, post_to_message)
_revisions_response = response_converter(pb.ListPostRevisionsResponse, post_to_message)
_batch_get_response = response_converter(pb.BatchGetPostsResponse, post_to_message)
_batch_create_response = response_converter(pb.BatchCreatePostsResponse, post_to_message)
_batch_update_response = response_converter(pb.BatchUpdatePostsResponse, post_to_message)
_batch_delete_response = response_converter(pb.BatchDeletePostsResponse, post_to_message)


class PostService:
    """Implements storeapi.v1.PostService. protos/storeapi/v1/posts.proto documents the methods."""

    def __init__(self, posts: Posts, search: ResourceSearch[Post], validation: Validation) -> None:
        """Takes the service, the search, and the validation of requests."""
        self._posts = posts
        self._search = search
        self._validation = validation

    async def CreatePost(self, request: pb.CreatePostRequest, _: Context) -> pb.Post:
        drafts = self._validation.post_drafts(request)
        (post,) = await self._posts.create(
            drafts, key=idempotency_key(request), dry_run=request.validate_only
        )
        return post_to_message(post)

    async def GetPost(self, request: pb.GetPostRequest, _: Context) -> pb.Post:
        id = self._validation.id(request)
        post = await (
            self._posts.get(id, show_deleted=request.show_deleted)
            if id
            else self._posts.get_by_external_id(request.external_id, show_deleted=request.show_deleted)
        )
        return post_to_message(post)

    async def ListPosts(self, request: pb.ListPostsRequest, _: Context) -> LazyResponse:
        page_request = self._validation.page_of_posts(request)
        page = await self._posts.list_page(page_request)
        return lazy(page, _list_response)

    async def UpdatePost(self, request: pb.UpdatePostRequest, _: Context) -> pb.Post:
        updates = self._validation.post_updates(request)
        (post,) = await self._posts.update(
            updates, key=idempotency_key(request), dry_run=request.validate_only
        )
        return post_to_message(post)

    async def DeletePost(self, request: pb.DeletePostRequest, _: Context) -> pb.Post:
        deletion = self._validation.post_deletion(request)
        deleted = await self._posts.delete(
            deletion, key=idempotency_key(request), dry_run=request.validate_only
        )
        return post_to_message(deleted.items[0]) if deleted.items else pb.Post(id=request.id)

    async def UndeletePost(self, request: pb.UndeletePostRequest, _: Context) -> pb.Post:
        id = self._validation.id_to_undelete(request)
        post = await self._posts.undelete(id, key=idempotency_key(request), dry_run=request.validate_only)
        return post_to_message(post)

    async def ListPostRevisions(self, request: pb.ListPostRevisionsRequest, _: Context) -> LazyResponse:
        revisions_request = self._validation.revisions(request)
        page = await self._posts.list_revisions(revisions_request)
        return lazy(page, _revisions_response)

    async def BatchGetPosts(self, request: pb.BatchGetPostsRequest, _: Context) -> LazyResponse:
        ids, external_ids = self._validation.ids(request)
        if external_ids or request.show_deleted:
            found = await self._posts.get_many_by_either(
                ids,
                external_ids,
                allow_missing=request.allow_missing,
                show_deleted=request.show_deleted,
            )
        else:
            found = await self._posts.get_many(ids, allow_missing=request.allow_missing)
        return lazy(found, _batch_get_response)

    async def BatchCreatePosts(self, request: pb.BatchCreatePostsRequest, _: Context) -> LazyResponse:
        drafts = self._validation.post_drafts(request)
        posts = await self._posts.create(drafts, key=idempotency_key(request), dry_run=request.validate_only)
        return lazy(BatchResult(items=posts), _batch_create_response)

    async def BatchUpdatePosts(self, request: pb.BatchUpdatePostsRequest, _: Context) -> LazyResponse:
        updates = self._validation.post_updates(request)
        posts = await self._posts.update(updates, key=idempotency_key(request), dry_run=request.validate_only)
        return lazy(BatchResult(items=posts), _batch_update_response)

    async def BatchDeletePosts(self, request: pb.BatchDeletePostsRequest, _: Context) -> LazyResponse:
        deletion = self._validation.post_deletion(request)
        deleted = await self._posts.delete(
            deletion, key=idempotency_key(request), dry_run=request.validate_only
        )
        return lazy(deleted, _batch_delete_response)

    async def CountPosts(self, request: pb.CountPostsRequest, _: Context) -> pb.CountPostsResponse:
        filter = self._validation.count_of_posts(request)
        return pb.CountPostsResponse(count=await self._posts.count(filter, max_count=request.max_count))

    async def SearchPosts(self, request: pb.SearchPostsRequest, _: Context) -> LazyResponse:
        search = self._validation.search_of_posts(request)
        page = await self._search.page(search)
        return lazy(page, _search_response)
