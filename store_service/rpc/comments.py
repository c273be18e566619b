"""The RPC methods of CommentService: validate the request, call the service layer, convert the result."""

from storeapi.v1 import comments_pb2 as pb

from store_service.model import BatchResult, Comment
from store_service.rpc.call import Context
from store_service.rpc.convert import comment_to_message, response_converter, search_converter
from store_service.rpc.responses import LazyResponse, lazy
from store_service.rpc.validation import Validation, idempotency_key
from store_service.service.comments import Comments
from store_service.service.search import ResourceSearch

_list_response = response_converter(pb.ListCommentsResponse, comment_to_message)
_search_response = search_converter(pb.SearchCommentsResponse, comment_to_message)
_revisions_response = response_converter(pb.ListCommentRevisionsResponse, comment_to_message)
_batch_get_response = response_converter(pb.BatchGetCommentsResponse, comment_to_message)
_batch_create_response = response_converter(pb.BatchCreateCommentsResponse, comment_to_message)
_batch_update_response = response_converter(pb.BatchUpdateCommentsResponse, comment_to_message)
_batch_delete_response = response_converter(pb.BatchDeleteCommentsResponse, comment_to_message)


class CommentService:
    """Implements storeapi.v1.CommentService. protos/storeapi/v1/comments.proto documents the methods."""

    def __init__(self, comments: Comments, search: ResourceSearch[Comment], validation: Validation) -> None:
        """Takes the service, the search, and the validation of requests."""
        self._comments = comments
        self._search = search
        self._validation = validation

    async def CreateComment(self, request: pb.CreateCommentRequest, _: Context) -> pb.Comment:
        drafts = self._validation.comment_drafts(request)
        (comment,) = await self._comments.create(
            drafts, key=idempotency_key(request), dry_run=request.validate_only
        )
        return comment_to_message(comment)

    async def GetComment(self, request: pb.GetCommentRequest, _: Context) -> pb.Comment:
        id = self._validation.id(request)
        comment = await (
            self._comments.get(id, show_deleted=request.show_deleted)
            if id
            else self._comments.get_by_external_id(request.external_id, show_deleted=request.show_deleted)
        )
        return comment_to_message(comment)

    async def ListComments(self, request: pb.ListCommentsRequest, _: Context) -> LazyResponse:
        page_request = self._validation.page_of_comments(request)
        page = await self._comments.list_page(page_request)
        return lazy(page, _list_response)

    async def UpdateComment(self, request: pb.UpdateCommentRequest, _: Context) -> pb.Comment:
        updates = self._validation.comment_updates(request)
        (comment,) = await self._comments.update(
            updates, key=idempotency_key(request), dry_run=request.validate_only
        )
        return comment_to_message(comment)

    async def DeleteComment(self, request: pb.DeleteCommentRequest, _: Context) -> pb.Comment:
        deletion = self._validation.comment_deletion(request)
        deleted = await self._comments.delete(
            deletion, key=idempotency_key(request), dry_run=request.validate_only
        )
        return comment_to_message(deleted.items[0]) if deleted.items else pb.Comment(id=request.id)

    async def UndeleteComment(self, request: pb.UndeleteCommentRequest, _: Context) -> pb.Comment:
        id = self._validation.id_to_undelete(request)
        comment = await self._comments.undelete(
            id, key=idempotency_key(request), dry_run=request.validate_only
        )
        return comment_to_message(comment)

    async def ListCommentRevisions(self, request: pb.ListCommentRevisionsRequest, _: Context) -> LazyResponse:
        revisions_request = self._validation.revisions(request)
        page = await self._comments.list_revisions(revisions_request)
        return lazy(page, _revisions_response)

    async def BatchGetComments(self, request: pb.BatchGetCommentsRequest, _: Context) -> LazyResponse:
        ids, external_ids = self._validation.ids(request)
        if external_ids or request.show_deleted:
            found = await self._comments.get_many_by_either(
                ids,
                external_ids,
                allow_missing=request.allow_missing,
                show_deleted=request.show_deleted,
            )
        else:
            found = await self._comments.get_many(ids, allow_missing=request.allow_missing)
        return lazy(found, _batch_get_response)

    async def BatchCreateComments(self, request: pb.BatchCreateCommentsRequest, _: Context) -> LazyResponse:
        drafts = self._validation.comment_drafts(request)
        comments = await self._comments.create(
            drafts, key=idempotency_key(request), dry_run=request.validate_only
        )
        return lazy(BatchResult(items=comments), _batch_create_response)

    async def BatchUpdateComments(self, request: pb.BatchUpdateCommentsRequest, _: Context) -> LazyResponse:
        updates = self._validation.comment_updates(request)
        comments = await self._comments.update(
            updates, key=idempotency_key(request), dry_run=request.validate_only
        )
        return lazy(BatchResult(items=comments), _batch_update_response)

    async def BatchDeleteComments(self, request: pb.BatchDeleteCommentsRequest, _: Context) -> LazyResponse:
        deletion = self._validation.comment_deletion(request)
        deleted = await self._comments.delete(
            deletion, key=idempotency_key(request), dry_run=request.validate_only
        )
        return lazy(deleted, _batch_delete_response)

    async def CountComments(self, request: pb.CountCommentsRequest, _: Context) -> pb.CountCommentsResponse:
        post_ids, filter = self._validation.count_of_comments(request)
        if post_ids is None:
            total = await self._comments.count_all(filter, max_count=request.max_count)
            return pb.CountCommentsResponse(total=total)
        counts = await self._comments.count(post_ids, filter, max_count=request.max_count)
        return pb.CountCommentsResponse(counts=counts, total=sum(counts.values()))

    async def CountReplies(self, request: pb.CountRepliesRequest, _: Context) -> pb.CountRepliesResponse:
        comment_ids, filter = self._validation.count_of_replies(request)
        counts = await self._comments.count_replies(comment_ids, filter, max_count=request.max_count)
        return pb.CountRepliesResponse(counts=counts)

    async def SearchComments(self, request: pb.SearchCommentsRequest, _: Context) -> LazyResponse:
        search = self._validation.search_of_comments(request)
        page = await self._search.page(search)
        return lazy(page, _search_response)
