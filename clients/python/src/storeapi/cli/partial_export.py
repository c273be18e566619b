"""An export that is not complete: its records so far, and what has become obsolete meanwhile."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

from storeapi import ExportBatch
from storeapi.cli.files import replace_text
from storeapi.cli.lines import line_of
from storeapi.cli.text import in_json

SAVE_SECONDS: Final = 1.0
"""Maximum age of the saved state while records arrive."""

_CHANGED: Final = b'{"changed":'
"""How a line begins that names resources whose earlier records are obsolete."""

_SECTIONS: Final = [
    (state, kind) for state in ("live", "deleted", "revision") for kind in ("post", "comment")
]
"""State and kind of records, in the order of an export."""

Key = tuple[int, int, str]
"""The section, the id, and the etag of a former version: of records with the same key the last one counts."""


class PartialExport:
    """The records of an export in the order in which they arrived."""

    def __init__(self, file: IO[bytes], state: Path | None = None) -> None:
        """Takes the file that is read and written, and where the state is saved, for a later `resume`."""
        self._file = file
        self._state = state
        self._saved_at: float = 0.0
        self.records: int = 0
        """The number of records that have arrived."""
        self.cursor: str = ""
        """Where the export continues."""
        self._has_changes = False

    def resume(self) -> None:
        """Continues after the saved state."""
        assert self._state is not None
        saved = json.loads(self._state.read_text())
        self.cursor, self.records, self._has_changes = saved["cursor"], saved["records"], saved["has_changes"]
        self._file.truncate(saved["size"])
        self._file.seek(0, 2)

    def add(self, batch: ExportBatch) -> None:
        """Adds a batch."""
        if batch.changed_post_ids or batch.changed_comment_ids:
            changed = {"post": batch.changed_post_ids, "comment": batch.changed_comment_ids}
            self._file.write(_CHANGED + json.dumps(changed).encode() + b"}\n")
            self._has_changes = True
        self._file.write(b"".join(map(line_of, batch)))
        self.records += len(batch)
        self.cursor = batch.cursor
        if time.monotonic() - self._saved_at > SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Saves where the export continues."""
        if self._state is None or not self.cursor:
            return
        self._file.flush()
        state = {
            "cursor": self.cursor,
            "size": self._file.tell(),
            "records": self.records,
            "has_changes": self._has_changes,
        }
        replace_text(self._state, json.dumps(state))
        self._saved_at = time.monotonic()

    def write_to(self, target: IO[bytes]) -> int:
        """Writes the records without obsolete ones, and returns their number.

        A record that was sent again takes its place in the order of an export, in which it comes before those
        that refer to it.
        """
        for_terminal = target.isatty()
        count = 0
        for line in self._final_lines():
            target.write(in_json(line.decode().rstrip("\n")).encode() + b"\n" if for_terminal else line)
            count += 1
        return count

    def _final_lines(self) -> Iterator[bytes]:
        self._file.flush()
        self._file.seek(0)
        if not self._has_changes:
            yield from self._file
            return
        obsolete_before: dict[tuple[str, int], int] = {}
        for offset, line in self._lines():
            if line.startswith(_CHANGED):
                changed = json.loads(line)["changed"]
                obsolete_before |= {(kind, id): offset for kind, ids in changed.items() for id in ids}
        newest: dict[Key, int] = {}
        for offset, line in self._lines():
            if not line.startswith(_CHANGED):
                key = _key(line)
                # Only of changed resources, so that the others take no memory.
                if offset > obsolete_before.get(_resource(key), offset):
                    newest[key] = offset
        # The other records are in the order of sections and ids.
        changed = deque(sorted(newest, key=lambda key: (*key[:2], newest[key])))
        for _, line in self._lines():
            if not line.startswith(_CHANGED):
                key = _key(line)
                if _resource(key) not in obsolete_before:
                    while changed and changed[0][:2] < key[:2]:
                        yield self._line_at(newest[changed.popleft()])
                    yield line
        for key in changed:
            yield self._line_at(newest[key])

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yields the lines with their offsets. The position of the file may change between two of them."""
        offset = 0
        while True:
            self._file.seek(offset)
            # Many at a time, because a seek empties the buffer.
            lines = self._file.readlines(1 << 20)
            if not lines:
                return
            for line in lines:
                yield offset, line
                offset += len(line)

    def _line_at(self, offset: int) -> bytes:
        self._file.seek(offset)
        return self._file.readline()


def _key(line: bytes) -> Key:
    values: dict[str, Any] = json.loads(line)
    state = values.get("state", "live")
    version = values["etag"] if state == "revision" else ""
    return _SECTIONS.index((state, values["kind"])), values["id"], version


def _resource(key: Key) -> tuple[str, int]:
    return _SECTIONS[key[0]][1], key[1]
