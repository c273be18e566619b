"""The update mask of a request, as defined in AIP-134."""

import json
from collections.abc import Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from store_service.errors import FieldMaskInvalid
from store_service.rpc.validation.resource_message import ResourceMessage
from store_service.rpc.validation.violations import Violations

MAX_PATHS = 100
"""Maximum number of paths. Resources have fewer fields, but a mask may repeat a path."""


class UpdateMask:
    """The fields that an update names."""

    def __init__(self, mask: FieldMask) -> None:
        """Takes the mask of the request. A mask that is too long is refused, and its paths are not read."""
        self.is_unset = not mask.paths
        self.is_too_long = len(mask.paths) > MAX_PATHS
        paths: Sequence[str] = () if self.is_too_long else mask.paths
        self.is_star = "*" in paths
        self.paths = set(paths) - {"*"}

    def names(self, field: str, *, is_set: bool, star_means_set: bool = False) -> bool:
        """Whether the update applies to a field. An unset mask names the fields that the request sets.

        Args:
            field: The field.
            is_set: Whether the request sets the field.
            star_means_set: Whether "*" names only fields that the request sets.
        """
        if field in self.paths:
            return True
        if self.is_star:
            return is_set if star_means_set else True
        return self.is_unset and is_set

    def check_paths(self, resource: ResourceMessage, violations: Violations) -> None:
        """Checks that each path is a field that a caller sets. Violations are sorted by path."""
        allowed = {*resource.mutable, *resource.immutable}
        for path in sorted(self.paths - allowed):
            problem = "is set by the server" if path in resource.is_submessage else "is not a field"
            choices = " and ".join(f'"{it}"' for it in sorted(allowed))
            violations.add(
                FieldMaskInvalid, "update_mask", f'{_quoted(path)} {problem}; paths are {choices}, or "*"'
            )


def _quoted(text: str) -> str:
    """Returns the start of a caller's text as ASCII: gRPC escapes each other byte as three characters."""
    return json.dumps(text[:40])
