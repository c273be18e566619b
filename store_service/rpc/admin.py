"""The RPC method of AdminService."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from storeapi.v1 import admin_pb2 as pb

from store_service.model import ErasureProgress
from store_service.rpc.call import Context, call_id_of
from store_service.rpc.validation.admin import erasure_request
from store_service.service.erasure import Erasures


class AdminService:
    """Implements storeapi.v1.AdminService. protos/storeapi/v1/admin.proto documents the methods."""

    def __init__(self, erasures: Erasures) -> None:
        """Takes the service."""
        self._erasures = erasures

    async def EraseAuthor(
        self, request: pb.EraseAuthorRequest, context: Context
    ) -> AsyncGenerator[pb.EraseAuthorResponse, None]:
        erasure = erasure_request(request)
        async with aclosing(self._erasures.run(erasure, call_id=call_id_of(context))) as steps:
            async for progress in steps:
                yield _progress_to_message(progress)


def _progress_to_message(progress: ErasureProgress) -> pb.EraseAuthorResponse:
    return pb.EraseAuthorResponse(**progress.counts, progress=progress.progress, complete=progress.complete)
