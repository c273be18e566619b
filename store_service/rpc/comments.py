"""CommentService on the wire: check, call, convert."""

from storeapi.v1 import comments_pb2 as pb

from store_service.rpc.call import Context
from store_service.rpc.convert import comment_to_message
from store_service.rpc.validation import Validation, same_request
from store_service.store.comments import Comments


class CommentService:
    """The methods of storeapi.v1.CommentService; protos/storeapi/v1/comments.proto is their manual."""

    def __init__(self, comments: Comments, validation: Validation) -> None:
        """Takes the rules and the limits."""
        self._comments = comments
        self._validation = validation

    async def CreateComment(self, request: pb.CreateCommentRequest, _: Context) -> pb.Comment:
        drafts = self._validation.comment_drafts(request)
        (comment,) = await self._comments.create_comments(
            drafts, request=same_request(request), keep=not request.validate_only
        )
        return comment_to_message(comment)

    async def GetComment(self, request: pb.GetCommentRequest, _: Context) -> pb.Comment:
        id = self._validation.id(request)
        comment = await self._comments.get_comment(id)
        return comment_to_message(comment)

    async def ListComments(self, request: pb.ListCommentsRequest, _: Context) -> pb.ListCommentsResponse:
        wanted = self._validation.page_of_comments(request)
        page = await self._comments.list_comments(wanted)
        return pb.ListCommentsResponse(
            comments=[comment_to_message(comment) for comment in page.items],
            next_page_token=page.next_page_token,
            resume_token=page.resume_token,
        )

    async def UpdateComment(self, request: pb.UpdateCommentRequest, _: Context) -> pb.Comment:
        update = self._validation.comment_update(request)
        comment = await self._comments.update_comment(
            update, request=same_request(request), keep=not request.validate_only
        )
        return comment_to_message(comment)

    async def DeleteComment(self, request: pb.DeleteCommentRequest, _: Context) -> pb.Comment:
        deletion = self._validation.comment_deletion(request)
        deleted = await self._comments.delete_comments(
            deletion, request=same_request(request), keep=not request.validate_only
        )
        return comment_to_message(deleted.items[0]) if deleted.items else pb.Comment(id=request.id)

    async def BatchGetComments(
        self, request: pb.BatchGetCommentsRequest, _: Context
    ) -> pb.BatchGetCommentsResponse:
        ids = self._validation.ids(request)
        found = await self._comments.get_comments(ids, allow_missing=request.allow_missing)
        return pb.BatchGetCommentsResponse(
            comments=[comment_to_message(comment) for comment in found.items], missing_ids=found.missing_ids
        )

    async def BatchCreateComments(
        self, request: pb.BatchCreateCommentsRequest, _: Context
    ) -> pb.BatchCreateCommentsResponse:
        drafts = self._validation.comment_drafts(request)
        comments = await self._comments.create_comments(
            drafts, request=same_request(request), keep=not request.validate_only
        )
        return pb.BatchCreateCommentsResponse(comments=[comment_to_message(comment) for comment in comments])

    async def BatchDeleteComments(
        self, request: pb.BatchDeleteCommentsRequest, _: Context
    ) -> pb.BatchDeleteCommentsResponse:
        deletion = self._validation.comment_deletion(request)
        deleted = await self._comments.delete_comments(
            deletion, request=same_request(request), keep=not request.validate_only
        )
        return pb.BatchDeleteCommentsResponse(
            comments=[comment_to_message(comment) for comment in deleted.items],
            missing_ids=deleted.missing_ids,
        )

    async def CountComments(self, request: pb.CountCommentsRequest, _: Context) -> pb.CountCommentsResponse:
        post_ids = self._validation.post_ids(request)
        counts = await self._comments.count_comments(post_ids)
        return pb.CountCommentsResponse(counts=counts)
