"""`store-service keys`: what it prints, what it writes, and what it never shows."""

import hashlib
import re
import stat
from pathlib import Path

import pytest

from tests.support import run_command

FILE = {"STORE_API_KEYS_FILE": "keys"}


def test_a_new_key_is_printed_once_and_its_hash_is_kept(tmp_path: Path) -> None:
    """On stdout there is the key alone, so that it can go straight into a vault."""
    done = run_command("keys", "new", "billing", "--rights", "write,read", folder=tmp_path, settings=FILE)

    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"storeapi_[A-Za-z0-9_-]{43}\n", done.stdout)
    digest = hashlib.sha256(done.stdout.strip().encode()).hexdigest()
    file = tmp_path / "keys"
    assert file.read_text() == f"billing {digest} read,write\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [it.name for it in tmp_path.iterdir()] == ["keys"]


def test_keys_are_listed_without_giving_them_away(tmp_path: Path) -> None:
    """Names, rights, and enough of the hash to tell two keys of one name apart."""
    keys = [
        run_command("keys", "new", "billing", "--rights", "read", folder=tmp_path, settings=FILE).stdout
        for _ in range(2)
    ]
    with (tmp_path / "keys").open("a") as file:
        file.write("cert:search.internal - watch,read\n")

    done = run_command("keys", "list", folder=tmp_path, settings=FILE)

    digests = [hashlib.sha256(key.strip().encode()).hexdigest() for key in keys]
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        ["billing", "read", digests[0][:8]],
        ["billing", "read", digests[1][:8]],
        ["cert:search.internal", "read,watch", "-"],
    ]


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "words"),
    [
        (["new", "billing", "--rights", "read"], {}, 2, "STORE_API_KEYS_FILE: must be set"),
        (["list"], {}, 2, "STORE_API_KEYS_FILE: must be set"),
        (["list"], FILE, 1, "STORE_API_KEYS_FILE: keys: No such file or directory"),
        (["new", "billing", "--rights", "admin"], FILE, 1, "rights must be"),
        (["new", "billing", "--rights", ""], FILE, 1, "rights must be"),
        (["new", "two words", "--rights", "read"], FILE, 1, "the name must be"),
        (["new", "billing"], FILE, 2, "--rights"),
        ([], FILE, 2, "Missing command"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_makes_nothing(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int, words: str
) -> None:
    """With the exit code that tells a wrong call from a failure."""
    done = run_command("keys", *arguments, folder=tmp_path, settings=settings)

    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_wrong_gets_no_more_keys(tmp_path: Path) -> None:
    """The server would not take them."""
    (tmp_path / "keys").write_text("nonsense\n")

    for arguments in (["new", "billing", "--rights", "read"], ["list"]):
        done = run_command("keys", *arguments, folder=tmp_path, settings=FILE)
        assert (done.returncode, done.stdout) == (1, "")
        assert "line 1: " in done.stderr
    assert "STORE_API_KEYS_FILE: keys: line 1: " in done.stderr
    assert (tmp_path / "keys").read_text() == "nonsense\n"
