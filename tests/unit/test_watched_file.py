"""Files that are read again when they change."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from store_service.auth.watched_file import BadFile, ReloadedFile


def parse(data: bytes) -> str:
    """Only small letters are in order."""
    if not data.decode().islower():
        raise ValueError("must be small letters")
    return data.decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("first")
    return path


@pytest.fixture
def file(path: Path) -> ReloadedFile[str]:
    return ReloadedFile(path, "STORE_X", parse)


def test_invalid_file_at_start_is_an_error(path: Path, tmp_path: Path) -> None:
    """One line with the setting, without the path."""
    path.write_text("WRONG")
    with pytest.raises(BadFile, match=r"^STORE_X: must be small letters$"):
        ReloadedFile(path, "STORE_X", parse)
    with pytest.raises(BadFile, match=r"^STORE_X: the file cannot be read: No such file or directory$"):
        ReloadedFile(tmp_path / "none", "STORE_X", parse)
    with pytest.raises(BadFile, match=r"^STORE_X: the file cannot be read: Is a directory$"):
        ReloadedFile(tmp_path, "STORE_X", parse)


def test_change_is_loaded_after_two_equal_checks(path: Path, file: ReloadedFile[str]) -> None:
    """A file that is being written is not read."""
    path.write_text("second")
    assert (file.reload_if_changed(), file.value) == (False, "first")
    path.write_text("second and more")
    assert (file.reload_if_changed(), file.value) == (False, "first")

    assert (file.reload_if_changed(), file.value) == (True, "second and more")
    assert file.reload_if_changed() is False


def test_unchanged_file_is_not_read(file: ReloadedFile[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReloadedFile, "_load", lambda _: pytest.fail("it was read"))

    assert [file.reload_if_changed() for _ in range(3)] == [False] * 3


def test_change_with_equal_time_and_size_is_detected(path: Path, file: ReloadedFile[str]) -> None:
    """As `cp -p` and tools for deployment make them."""
    before = path.stat()
    path.write_text("other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    file.reload_if_changed()

    assert (file.reload_if_changed(), file.value) == (True, "other")


def test_changed_link_target_is_a_change(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to("a")
    file = ReloadedFile(link, "STORE_X", parse)
    link.unlink()
    link.symlink_to("b")
    file.reload_if_changed()

    assert (file.reload_if_changed(), file.value) == (True, "b")


def test_invalid_change_is_logged_once_and_retried(path: Path, file: ReloadedFile[str]) -> None:
    with capture_logs() as logged:
        path.write_text("WRONG")
        assert [file.reload_if_changed() for _ in range(5)] == [False] * 5
        path.unlink()
        assert [file.reload_if_changed() for _ in range(5)] == [False] * 5
        assert file.value == "first"
        path.write_text("mended")
        assert [file.reload_if_changed() for _ in range(3)] == [False, True, False]

    assert file.value == "mended"
    assert [it.get("problem", it["event"]) for it in logged] == [
        "STORE_X: must be small letters",
        "STORE_X: the file cannot be read: No such file or directory",
        "changed file is usable again",
        "file reloaded",
    ]


def test_temporarily_unreadable_file_is_read_later(
    path: Path, file: ReloadedFile[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text("second")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        assert [file.reload_if_changed() for _ in range(3)] == [False] * 3

    assert (file.reload_if_changed(), file.value) == (True, "second")
