"""PostService on the wire: check, call, convert."""

from storeapi.v1 import posts_pb2 as pb

from store_service.model import BatchResult, Page, Post
from store_service.rpc.call import Context
from store_service.rpc.convert import post_to_message
from store_service.rpc.responses import LazyResponse, lazy
from store_service.rpc.validation import Validation, idempotency_key
from store_service.service.posts import Posts


class PostService:
    """The methods of storeapi.v1.PostService; protos/storeapi/v1/posts.proto is their manual."""

    def __init__(self, posts: Posts, validation: Validation) -> None:
        """Takes the rules and the limits."""
        self._posts = posts
        self._validation = validation

    async def CreatePost(self, request: pb.CreatePostRequest, _: Context) -> pb.Post:
        drafts = self._validation.post_drafts(request)
        (post,) = await self._posts.create(
            drafts, key=idempotency_key(request), dry_run=request.validate_only
        )
        return post_to_message(post)

    async def GetPost(self, request: pb.GetPostRequest, _: Context) -> pb.Post:
        id = self._validation.id(request)
        post = await self._posts.get(id)
        return post_to_message(post)

    async def ListPosts(self, request: pb.ListPostsRequest, _: Context) -> LazyResponse:
        wanted = self._validation.page_of_posts(request)
        page = await self._posts.list_page(wanted)
        return lazy(page, _page_to_message)

    async def UpdatePost(self, request: pb.UpdatePostRequest, _: Context) -> pb.Post:
        update = self._validation.post_update(request)
        post = await self._posts.update(update, key=idempotency_key(request), dry_run=request.validate_only)
        return post_to_message(post)

    async def DeletePost(self, request: pb.DeletePostRequest, _: Context) -> pb.Post:
        deletion = self._validation.post_deletion(request)
        deleted = await self._posts.delete(
            deletion, key=idempotency_key(request), dry_run=request.validate_only
        )
        return post_to_message(deleted.items[0]) if deleted.items else pb.Post(id=request.id)

    async def BatchGetPosts(self, request: pb.BatchGetPostsRequest, _: Context) -> LazyResponse:
        ids = self._validation.ids(request)
        found = await self._posts.get_many(ids, allow_missing=request.allow_missing)
        return lazy(found, _found_to_message)

    async def BatchCreatePosts(self, request: pb.BatchCreatePostsRequest, _: Context) -> LazyResponse:
        drafts = self._validation.post_drafts(request)
        posts = await self._posts.create(drafts, key=idempotency_key(request), dry_run=request.validate_only)
        return lazy(BatchResult(items=posts), _created_to_message)

    async def BatchDeletePosts(self, request: pb.BatchDeletePostsRequest, _: Context) -> LazyResponse:
        deletion = self._validation.post_deletion(request)
        deleted = await self._posts.delete(
            deletion, key=idempotency_key(request), dry_run=request.validate_only
        )
        return lazy(deleted, _deleted_to_message)


def _page_to_message(page: Page[Post]) -> pb.ListPostsResponse:
    return pb.ListPostsResponse(
        posts=map(post_to_message, page.items),
        next_page_token=page.next_page_token,
        resume_token=page.resume_token,
    )


def _found_to_message(found: BatchResult[Post]) -> pb.BatchGetPostsResponse:
    return pb.BatchGetPostsResponse(posts=map(post_to_message, found.items), missing_ids=found.missing_ids)


def _created_to_message(created: BatchResult[Post]) -> pb.BatchCreatePostsResponse:
    return pb.BatchCreatePostsResponse(posts=map(post_to_message, created.items))


def _deleted_to_message(deleted: BatchResult[Post]) -> pb.BatchDeletePostsResponse:
    return pb.BatchDeletePostsResponse(
        posts=map(post_to_message, deleted.items), missing_ids=deleted.missing_ids
    )
