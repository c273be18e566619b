"""The erasure of what an author wrote."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from store_service.model.resources import ResourceKind


class EraseMode(IntEnum):
    """What happens to the posts and comments of an erased author. The contract uses the same numbers."""

    ANONYMIZE = 1
    DELETE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """A request to erase what an author wrote."""

    author: str = field(repr=False)
    """Personal data, which no log contains."""
    mode: EraseMode
    dry_run: bool = False
    """Whether to count only."""
    skip_rewrite: bool = False
    """Whether to leave the free space of the SQLite file as it is."""


@dataclass(slots=True, kw_only=True)
class ErasureProgress:
    """What an erasure has done since its start."""

    posts: int = 0
    comments: int = 0
    revisions: int = 0
    changes: int = 0
    stored_responses: int = 0
    progress: float = 0.0
    """The work that has been done, from 0 to 1. An estimate."""
    complete: bool = False

    @property
    def counts(self) -> Mapping[str, int]:
        """The numbers of rows by name."""
        names = ("posts", "comments", "revisions", "changes", "stored_responses")
        return {name: getattr(self, name) for name in names}


ALL_VERSIONS = 2**63 - 1
"""Greater than every version."""


@dataclass(slots=True, kw_only=True)
class ErasedIds:
    """The posts and comments that are erased."""

    versions: dict[ResourceKind, dict[int, int]] = field(
        default_factory=lambda: {kind: {} for kind in ResourceKind}
    )
    """By kind and id, the last version whose content is erased. A post that stays can have later ones. A
    million ids take about 100 MB."""

    def add(self, kind: ResourceKind, ids: Iterable[int], *, version: int = ALL_VERSIONS) -> None:
        """Adds resources of a kind, up to a version."""
        versions = self.versions[kind]
        for id in ids:
            versions[id] = max(version, versions.get(id, 0))

    def add_all(self, others: "ErasedIds") -> None:
        """Adds the resources of others."""
        for kind, versions in others.versions.items():
            for id, version in versions.items():
                self.add(kind, [id], version=version)

    def has(self, kind: int, id: int, *, version: int = 0) -> bool:
        """Whether a version of a resource is erased; by default the first one."""
        return self.versions[ResourceKind(kind)].get(id, -1) >= version
