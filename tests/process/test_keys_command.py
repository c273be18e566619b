"""`store-service keys`: what it prints, what it writes, and what it never shows."""

import hashlib
import re
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import storeapi

from store_service.auth import api_keys
from store_service.auth.principal import ALL_PERMISSIONS
from tests.support.polling import wait_until
from tests.support.server_process import ServerProcess, run_command

FILE = {"STORE_API_KEYS_FILE": "keys"}


def test_new_key_is_printed_once_and_its_hash_is_stored(tmp_path: Path) -> None:
    """stdout has only the key, so that it can be piped into a vault."""
    done = run_command(
        "keys", "new", "billing", "--permissions", "write,read", folder=tmp_path, settings=FILE
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"storeapi_[A-Za-z0-9_-]{43}\n", done.stdout)
    digest = hashlib.sha256(done.stdout.strip().encode()).hexdigest()
    file = tmp_path / "keys"
    assert file.read_text() == f"billing {digest} read,write\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [it.name for it in tmp_path.iterdir()] == ["keys"]


def test_listed_keys_are_not_disclosed(tmp_path: Path) -> None:
    """Names, permissions, and enough of the hash to distinguish two keys of one name."""
    made = [
        run_command("keys", "new", "billing", "--permissions", "read", folder=tmp_path, settings=FILE).stdout
        for _ in range(2)
    ]
    with (tmp_path / "keys").open("a") as file:
        file.write("cert:search.internal - watch,read\n")

    done = run_command("keys", "list", folder=tmp_path, settings=FILE)

    digests = [hashlib.sha256(key.strip().encode()).hexdigest() for key in made]
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        ["billing", "read", digests[0][:8]],
        ["billing", "read", digests[1][:8]],
        ["cert:search.internal", "read,watch", "-"],
    ]


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "words"),
    [
        (["new", "billing", "--permissions", "read"], {}, 2, "STORE_API_KEYS_FILE: must be set"),
        (["list"], {}, 2, "STORE_API_KEYS_FILE: must be set"),
        (["list"], FILE, 1, "STORE_API_KEYS_FILE: keys: No such file or directory"),
        (["new", "billing", "--permissions", "root"], FILE, 1, "permissions must be"),
        (["new", "billing", "--permissions", ""], FILE, 1, "permissions must be"),
        (["new", "two words", "--permissions", "read"], FILE, 1, "the name must have"),
        (["new", "billing"], FILE, 2, "--permissions"),
        (["remove"], FILE, 2, "NAME_OR_HASH"),
        (["remove", "billing"], {}, 2, "STORE_API_KEYS_FILE: must be set"),
        (["remove", "billing"], FILE, 1, "no key was removed: keys: No such file or directory"),
    ],
)
def test_failed_keys_command_prints_one_line_and_creates_nothing(
    tmp_path: Path, arguments: list[str], settings: dict[str, str], code: int, words: str
) -> None:
    """The exit code distinguishes a usage error from a failure."""
    done = run_command("keys", *arguments, folder=tmp_path, settings=settings)

    assert (done.returncode, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("store-service: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_key_is_not_added_to_an_invalid_file(tmp_path: Path) -> None:
    """The server would not load it."""
    (tmp_path / "keys").write_text("nonsense\n")

    for arguments in (["new", "billing", "--permissions", "read"], ["remove", "billing"], ["list"]):
        done = run_command("keys", *arguments, folder=tmp_path, settings=FILE)
        assert (done.returncode, done.stdout) == (1, "")
        assert "line 1: " in done.stderr
    assert "STORE_API_KEYS_FILE: keys: line 1: " in done.stderr
    assert (tmp_path / "keys").read_text() == "nonsense\n"


LINES = [
    "# callers of the shop\n",
    f"billing  {'a1' * 32}  read,write\n",
    "\n",
    f"  search {'b2' * 32} read  \n",
    f"# search {'c3' * 32} write\n",
    f"search {'b2b2' + 'c3' * 30} read,watch\r\n",
    "cert:web.internal - read\n",
    f"a1a1 {'d4' * 32} read",
]
"""A file as people write it."""


def remove(folder: Path, *arguments: str) -> tuple[int, str, str]:
    done = run_command("keys", "remove", *arguments, folder=folder, settings=FILE)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "removed"),
    [
        (["billing"], [1]),
        (["A1A1a"], [1]),
        (["a1" * 32], [1]),
        (["b2b2b2"], [3]),
        (["b2b2c3"], [5]),
        (["search", "--all"], [3, 5]),
        (["cert:web.internal"], [6]),
        (["a1a1"], [7]),
    ],
)
def test_removed_key_is_printed_and_other_lines_stay(
    tmp_path: Path, arguments: list[str], removed: list[int]
) -> None:
    """By name or by the first digits of the hash; comments, blanks and the order are unchanged."""
    file = tmp_path / "keys"
    file.write_bytes("".join(LINES).encode())
    file.chmod(0o640)
    listed = run_command("keys", "list", folder=tmp_path, settings=FILE).stdout.splitlines(keepends=True)
    code, stdout, stderr = remove(tmp_path, *arguments)

    key_lines = [1, 3, 5, 6, 7]
    assert (code, stderr) == (0, "")
    assert stdout == "".join(listed[key_lines.index(number)] for number in removed)
    left = [line for number, line in enumerate(LINES) if number not in removed]
    assert file.read_bytes() == "".join(left).encode()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [it.name for it in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["search"],
            "there are 2 matching lines (search b2b2b2b2b2b2, search b2b2c3c3c3c3); give the hash of one",
        ),
        (
            ["b2b2"],
            "there are 2 matching lines (search b2b2b2b2b2b2, search b2b2c3c3c3c3); give more digits",
        ),
        (["b2b2", "--all"], "give more digits of the hash"),
        (["nobody"], "no line has this name"),
        (["c3c3"], "no line has this name"),
        (["b2b"], "no line has this name"),
        (["-"], "no line has this name"),
    ],
)
def test_ambiguous_key_is_not_removed(tmp_path: Path, arguments: list[str], words: str) -> None:
    """One line lists the candidates; the file is unchanged."""
    (tmp_path / "keys").write_bytes("".join(LINES).encode())
    code, stdout, stderr = remove(tmp_path, *arguments)

    assert (code, stdout, stderr.count("\n")) == (1, "", 1)
    assert stderr.startswith("store-service: no key was removed: ")
    assert words in stderr
    assert (tmp_path / "keys").read_bytes() == "".join(LINES).encode()


def test_key_passed_as_a_name_is_not_printed(tmp_path: Path) -> None:
    """stderr may go to a log."""
    (tmp_path / "keys").touch()
    _, _, stderr = remove(tmp_path, "storeapi_secret")

    assert "secret" not in stderr


def test_link_to_the_key_file_stays_a_link(tmp_path: Path) -> None:
    """Its target is replaced."""
    (tmp_path / "real").write_bytes("".join(LINES).encode())
    (tmp_path / "keys").symlink_to("real")

    assert remove(tmp_path, "billing")[0] == 0
    assert (tmp_path / "keys").is_symlink()
    assert "billing" not in (tmp_path / "real").read_text()


def test_concurrent_keys_commands_lose_nothing(tmp_path: Path) -> None:
    """Each command waits for the others, also if the file was replaced meanwhile."""
    file = tmp_path / "keys"
    count = 30
    for number in range(count):
        api_keys.append(file, name=f"old{number}", key=api_keys.new_key(), permissions=ALL_PERMISSIONS)

    def make(number: int) -> None:
        api_keys.append(file, name=f"new{number}", key=api_keys.new_key(), permissions=ALL_PERMISSIONS)

    def take(number: int) -> None:
        api_keys.remove(file, f"old{number}", all_of_name=False)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(it, number) for number in range(count) for it in (make, take)]:
            done.result()

    names = sorted(line.name for line in api_keys.parse(file.read_bytes()).lines)
    assert names == sorted(f"new{number}" for number in range(count))


def test_running_server_refuses_a_removed_key(server_process: ServerProcess) -> None:
    """Without a restart; other keys still work."""
    folder = server_process.folder
    made = [
        run_command("keys", "new", name, "--permissions", "read", folder=folder, settings=FILE).stdout.strip()
        for name in ("first", "second")
    ]
    server_process.settings |= FILE
    server_process.start()
    with (
        storeapi.StoreClient(server_process.address, api_key=made[0]) as first,
        storeapi.StoreClient(server_process.address, api_key=made[1]) as second,
    ):
        assert list(first.posts.list()) == []
        assert remove(folder, "first")[0] == 0
        wait_until(lambda: is_refused(first))
        assert list(second.posts.list()) == []
    assert server_process.stop() == 0


def is_refused(client: storeapi.StoreClient) -> bool:
    """Whether the service refuses the credentials."""
    try:
        list(client.posts.list())
    except storeapi.CredentialsInvalid:
        return True
    return False
