"""Files that are loaded again when they change. An invalid file never replaces a valid value."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from store_service.repeated_failure import RepeatedFailure

T = TypeVar("T")

Signature = tuple[int, int, int, int]
"""Modification time, status change time, size and inode of a file."""

log = structlog.get_logger("store_service.auth")


class BadFile(Exception):
    """A file that a setting names cannot be used. The text is one line that begins with the setting."""

    def __init__(self, setting: str, problem: str) -> None:
        """Takes the environment variable that names the file, and the problem."""
        super().__init__(f"{setting}: {problem}")


def file_signature(path: Path) -> Signature | None:
    """Returns a value that changes with the file, also when it or the target of a link is replaced; None if
    the file cannot be found."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def read(path: Path, setting: str) -> bytes:
    """Returns the content of a file.

    Raises:
        BadFile: The file cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(setting, f"the file cannot be read: {error.strerror}") from None


class ReloadedFile(Generic[T]):
    """The parsed content of the last valid version of a file."""

    def __init__(self, path: Path, setting: str, parse: Callable[[bytes], T]) -> None:
        """Reads the file.

        Args:
            path: The file.
            setting: The environment variable that names it, for messages.
            parse: Converts the content to the value. Raises ValueError with the problem as its text.

        Raises:
            BadFile: The file cannot be read, or its content is invalid.
        """
        self._path = path
        self._setting = setting
        self._parse = parse
        self._loaded_signature = self._seen_signature = file_signature(path)
        self._failure = RepeatedFailure(
            log,
            "cannot use the changed file; its previous content stays in use",
            end_event="changed file is usable again",
            level="error",
        )
        self.value = self._load()

    def reload_if_changed(self) -> bool:
        """Reads the file again if it has changed. Returns whether there is a new value.

        A changed file is read at the second check that finds the same signature, so that no file is read
        while it is being written. An invalid file is read again at every check.
        """
        signature = file_signature(self._path)
        is_settled = signature == self._seen_signature
        self._seen_signature = signature
        if signature == self._loaded_signature:
            self._failure.ended(setting=self._setting)
            return False
        if not is_settled:
            return False
        try:
            self.value = self._load()
        except BadFile as error:
            self._failure.failed(problem=str(error))
            return False
        self._loaded_signature = signature
        self._failure.ended(setting=self._setting)
        log.info("file reloaded", setting=self._setting)
        return True

    def _load(self) -> T:
        data = read(self._path, self._setting)
        try:
            return self._parse(data)
        except ValueError as error:
            raise BadFile(self._setting, str(error)) from None
