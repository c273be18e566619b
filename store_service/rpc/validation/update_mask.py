"""The update mask of a request, as defined in AIP-134."""

from collections.abc import Sequence

from google.protobuf.field_mask_pb2 import FieldMask

from store_service.errors import FieldMaskInvalid
from store_service.rpc.validation.resource_message import ResourceMessage
from store_service.rpc.validation.violations import Violations, quoted

MAX_PATHS = 100
"""Maximum number of paths. Resources have fewer fields, but a mask may repeat a path."""


LABEL = "labels."
"""The beginning of the path of a single label."""


class UpdateMask:
    """The fields that an update names."""

    def __init__(self, mask: FieldMask) -> None:
        """Takes the mask of the request. A mask that is too long is refused, and its paths are not read."""
        self.is_unset = not mask.paths
        self.is_too_long = len(mask.paths) > MAX_PATHS
        paths: Sequence[str] = () if self.is_too_long else mask.paths
        self.is_star = "*" in paths
        self.paths = set(paths) - {"*"}
        self.label_keys: Sequence[str] = sorted(
            [path.removeprefix(LABEL) for path in self.paths if path.startswith(LABEL)]
        )
        """The keys of all paths of single labels, sorted."""
        is_whole = "labels" in self.paths or self.is_star
        self.labels: Sequence[str] = () if is_whole else self.label_keys
        """The keys of single labels that the mask names, sorted; none if it names all labels."""

    def can_name(self, field: str) -> bool:
        """Whether the update applies to a field if the request sets it."""
        return self.is_unset or self.is_star or field in self.paths

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

    def check_paths(self, resource: ResourceMessage, field: str, violations: Violations) -> None:
        """Checks that each path is a field that a caller sets. Violations are sorted by path."""
        allowed = {*resource.mutable, *resource.immutable}
        # The keys of labels are checked with the labels of the request.
        for path in sorted([it for it in self.paths - allowed if not it.startswith(LABEL)]):
            problem = "is set by the server" if path in resource.is_submessage else "is not a field"
            choices = " and ".join(f'"{it}"' for it in sorted(allowed))
            violations.add(FieldMaskInvalid, field, f'{quoted(path)} {problem}; paths are {choices}, or "*"')
