"""An import whose client and server are killed at random: nothing is lost, and nothing is stored twice."""

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.database import query
from tests.support.polling import wait_until
from tests.support.ports import free_port
from tests.support.server_process import ServerProcess
from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout

KILLS = 20 if IS_LONG_RUN else 3

RECORDS = 2500 * (KILLS + 1)

STATE = "import.state"


@pytest.fixture
def server(server_process: ServerProcess, database_url: str) -> Iterator[ServerProcess]:
    """A server that has the same address after each start."""
    server_process.settings |= {
        "DATABASE_URL": database_url,
        "STORE_LISTEN": f"127.0.0.1:{free_port()}",
    }
    yield server_process.start()
    server_process.kill()


def lines(count: int) -> Iterator[str]:
    """A post, comments with replies, and their times, as an export has them."""
    time = "2026-01-01T00:00:00.{:06d}Z"
    yield json.dumps({"kind": "post", "id": 7, "body": "a post", "create_time": time.format(1), "etag": "v3"})
    for n in range(1, count):
        record = {"kind": "comment", "id": 2 * n, "post_id": 7, "body": f"comment {n}", "etag": "v1"}
        record |= {
            "create_time": time.format(n),
            "update_time": time.format(n + 1),
            "author": f"user {n % 9}",
        }
        if n % 3 == 0:
            record |= {"reply_to_id": 2 * n - 2, "depth": 1, "external_id": f"c:{n}"}
        yield json.dumps(record)


def stored(folder: Path) -> int:
    """How many records are stored according to the state of the import."""
    with suppress(FileNotFoundError):
        return int(json.loads((folder / STATE).read_text())["records"])
    return 0


@pytest.mark.timeout(600)
def test_killed_import_is_completed(server: ServerProcess, database_url: str, tmp_path: Path) -> None:
    chance = random.Random(KILLS)
    file = tmp_path / "all.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines(RECORDS)))
    storeapi = StoreapiCommand(server.address, tmp_path)

    def start() -> subprocess.Popen[bytes]:
        return storeapi.start("import", "--resume", STATE, str(file))

    client = start()
    try:
        for kill in range(KILLS):
            goal = stored(tmp_path) + chance.randint(1, 1500)
            wait_until(lambda goal=goal: stored(tmp_path) >= goal)
            if kill % 2:
                server.kill()
                server.start()
            else:
                client.kill()
                client.communicate()
                client = start()
        assert client.wait(scaled_timeout(120)) == 0, client.communicate()
    finally:
        client.kill()
        client.communicate()
    code, exported, _ = storeapi.process("export")

    assert code == 0
    found = [{name: it for name, it in json.loads(line).items() if it} for line in exported.splitlines()]
    assert [{name: it[name] for name in it if name not in ("labels", "ancestor_ids")} for it in found] == [
        json.loads(line) for line in lines(RECORDS)
    ]
    # Each was created once.
    assert query(
        database_url, "SELECT count(*), count(DISTINCT resource_id) FROM changes WHERE kind = 2"
    ) == [(RECORDS - 1, RECORDS - 1)]
    assert not (tmp_path / STATE).exists()
