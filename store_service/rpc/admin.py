"""The RPC methods of AdminService."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from storeapi.v1 import admin_pb2 as pb

from store_service.database.connect import Database
from store_service.model import ErasureProgress
from store_service.rpc.call import Context, call_id_of
from store_service.rpc.validation.admin import erasure_request, write_mode
from store_service.service.erasure import Erasures
from store_service.service.search_index import SearchIndex
from store_service.service.write_modes import set_write_mode


class AdminService:
    """Implements storeapi.v1.AdminService. protos/storeapi/v1/admin.proto documents the methods."""

    def __init__(self, database: Database, erasures: Erasures, search_index: SearchIndex) -> None:
        """Takes the open database, and the services."""
        self._database = database
        self._erasures = erasures
        self._search_index = search_index

    async def EraseAuthor(
        self, request: pb.EraseAuthorRequest, context: Context
    ) -> AsyncGenerator[pb.EraseAuthorResponse, None]:
        erasure = erasure_request(request)
        async with aclosing(self._erasures.run(erasure, call_id=call_id_of(context))) as steps:
            async for progress in steps:
                yield _progress_to_message(progress)

    async def RebuildSearchIndex(
        self, request: pb.RebuildSearchIndexRequest, _: Context
    ) -> AsyncGenerator[pb.RebuildSearchIndexResponse, None]:
        async with aclosing(self._search_index.rebuild()) as steps:
            async for progress in steps:
                yield pb.RebuildSearchIndexResponse(progress=progress, complete=progress == 1)

    async def SetWriteMode(self, request: pb.SetWriteModeRequest, _: Context) -> pb.SetWriteModeResponse:
        await set_write_mode(self._database, write_mode(request))
        return pb.SetWriteModeResponse()


def _progress_to_message(progress: ErasureProgress) -> pb.EraseAuthorResponse:
    return pb.EraseAuthorResponse(**progress.counts, progress=progress.progress, complete=progress.complete)
