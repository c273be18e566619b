"""Checks the requests of AdminService."""

from storeapi.v1 import admin_pb2

from store_service.errors import FieldInvalid
from store_service.model import EraseMode, Erasure, WriteMode
from store_service.rpc.validation.identifiers import check_identifier
from store_service.rpc.validation.violations import Violations


def erasure_request(request: admin_pb2.EraseAuthorRequest) -> Erasure:
    """Returns the author to erase.

    Raises:
        FieldInvalid: The author or the mode is not valid.
    """
    violations = Violations(0)
    for description in check_identifier(request.author) if request.author else ("must not be empty",):
        violations.add(FieldInvalid, "author", description)
    if int(request.mode) not in set(EraseMode):
        violations.add(FieldInvalid, "mode", "must be ERASE_MODE_ANONYMIZE or ERASE_MODE_DELETE")
    violations.raise_if_any()
    return Erasure(
        author=request.author,
        mode=EraseMode(request.mode),
        dry_run=request.validate_only,
        skip_rewrite=request.skip_rewrite,
    )


def write_mode(request: admin_pb2.SetWriteModeRequest) -> WriteMode:
    """Returns the mode to set.

    Raises:
        FieldInvalid: It is not valid.
    """
    if int(request.mode) not in set(WriteMode):
        raise FieldInvalid.at("mode", "must be WRITE_MODE_NORMAL, WRITE_MODE_RECORDED or WRITE_MODE_REFUSED")
    return WriteMode(request.mode)
