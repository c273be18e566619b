"""Whether a store accepts writes while it is copied."""

from enum import IntEnum


class WriteMode(IntEnum):
    """What happens to writes. The contract uses the same numbers."""

    NORMAL = 1
    """They are accepted."""
    RECORDED = 2
    """They are accepted, and the keys of their rows are recorded."""
    REFUSED = 3
    """They fail with StoreMoving."""
