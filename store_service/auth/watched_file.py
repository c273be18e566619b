"""Files that are read again when they change, without ever taking a broken one."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import structlog

from store_service.repeated_failure import RepeatedFailure

T = TypeVar("T")

Signature = tuple[int, int, int, int]
"""What is different after a file was changed, replaced, or put behind a link anew."""

log = structlog.get_logger("store_service.auth")


class BadFile(Exception):
    """A file that a setting names cannot be used; the text is one line that names the setting."""

    def __init__(self, setting: str, problem: str) -> None:
        """Takes the environment variable and what is wrong with its file."""
        super().__init__(f"{setting}: {problem}")


def file_signature(path: Path) -> Signature | None:
    """Changes whenever the file does; None while there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def read(path: Path, setting: str) -> bytes:
    """The content of a file.

    Raises:
        BadFile: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadFile(setting, f"the file cannot be read: {error.strerror}") from None


class ReloadedFile(Generic[T]):
    """What is in a file, as it was when the file was last in order."""

    def __init__(self, path: Path, setting: str, parse: Callable[[bytes], T]) -> None:
        """Reads the file.

        Args:
            path: The file.
            setting: The environment variable that names it, for messages.
            parse: Makes the value of the content; its ValueError says in a sentence what is wrong.

        Raises:
            BadFile: It cannot be read, or its content is wrong.
        """
        self._path = path
        self._setting = setting
        self._parse = parse
        self._taken = self._seen = file_signature(path)
        self._failure = RepeatedFailure(
            log,
            "cannot use the changed file; its previous content stays in use",
            end_event="changed file is usable again",
            level="error",
        )
        self.value = self._load()

    def look(self) -> bool:
        """Reads the file again if it has changed, and says whether the value is a new one.

        A file is read when two looks in a row find it the same, so that one that is being written is left
        alone. A file that cannot be used is tried at every check.
        """
        signature = file_signature(self._path)
        settled = signature == self._seen
        self._seen = signature
        if signature == self._taken:
            self._failure.ended(setting=self._setting)
            return False
        if not settled:
            return False
        try:
            self.value = self._load()
        except BadFile as error:
            self._failure.failed(problem=str(error))
            return False
        self._taken = signature
        self._failure.ended(setting=self._setting)
        log.info("file reloaded", setting=self._setting)
        return True

    def _load(self) -> T:
        data = read(self._path, self._setting)
        try:
            return self._parse(data)
        except ValueError as error:
            raise BadFile(self._setting, str(error)) from None
