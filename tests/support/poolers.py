"""What can be between the service and PostgreSQL: PgBouncer in its modes, and HAProxy."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from tests.support.polling import wait_until
from tests.support.ports import free_port, listens
from tests.support.proxies import binary

KEEPS_STATEMENTS = (1, 21)
"""The first version of PgBouncer that supports prepared statements in transaction mode."""

PGBOUNCER = """
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
admin_users = {user}
server_login_retry = 1
{options}
"""

HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend all
    bind 127.0.0.1:{port}
    default_backend postgresql
backend postgresql
    server only {host}:{server_port}
"""


@dataclass
class Pooler:
    """A program in front of PostgreSQL."""

    folder: Path
    database_url: str
    """The database without the program in between."""
    is_haproxy: bool = False
    newer: bool = False
    """The PgBouncer that supports prepared statements."""
    options: dict[str, object] = field(default_factory=dict)
    """Settings of PgBouncer."""
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the same database through the program."""
        url = make_url(self.database_url).set(host="127.0.0.1", port=self.port)
        return url.render_as_string(hide_password=False)

    def start(self) -> None:
        """Starts it, and returns when it listens."""
        if self.is_haproxy:
            command = [binary("haproxy"), "-db", "-f", "configuration"]
        else:
            program = newer_pgbouncer() if self.newer else binary("pgbouncer")
            if _version(program) < KEEPS_STATEMENTS:
                # It does not know the setting.
                self.options.pop("max_prepared_statements", None)
            command = [program, "configuration"]
            if os.geteuid() == 0:
                # It refuses to run as root.
                command = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", *command]
                shutil.chown(self.folder, "nobody", "nogroup")
        self._configure()
        self._process = subprocess.Popen(
            command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: listens(self.port))

    def stop(self) -> None:
        """Kills it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Kills it and starts it again on the same port."""
        self.stop()
        self.start()

    def change(self, **options: object) -> None:
        """Changes settings of a running PgBouncer."""
        assert self._process is not None
        self.options |= options
        self._configure()
        self._process.send_signal(signal.SIGHUP)

    def _configure(self) -> None:
        url = make_url(self.database_url)
        (self.folder / "users").write_text(f'"{url.username}" "{url.password or ""}"\n')
        form = HAPROXY if self.is_haproxy else PGBOUNCER
        text = form.format(
            host=url.host,
            server_port=url.port,
            port=self.port,
            folder=self.folder,
            user=url.username,
            options="\n".join(f"{name} = {value}" for name, value in self.options.items()),
        )
        (self.folder / "configuration").write_text(text)


def newer_pgbouncer() -> str:
    """The path of a PgBouncer that supports prepared statements in transaction mode. Without one, the test is
    skipped, also on CI: Debian 12 has no such package, and its build needs the sources of another release."""
    for name in ("pgbouncer-newer", "pgbouncer"):
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/local/bin:/usr/sbin")
        if found is not None and _version(found) >= KEEPS_STATEMENTS:
            return found
    pytest.skip("PgBouncer 1.21 or newer is not installed; `make test-packages` builds it")


def _version(program: str) -> tuple[int, int]:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"PgBouncer (\d+)\.(\d+)", done.stdout)
    assert found is not None
    return int(found[1]), int(found[2])


@contextmanager
def pooler(
    database_url: str, *, is_haproxy: bool = False, newer: bool = False, **options: object
) -> Iterator[Pooler]:
    """A running program in front of a database."""
    # Not in pytest's folder: only root can look there.
    with tempfile.TemporaryDirectory() as folder:
        it = Pooler(Path(folder), database_url, is_haproxy=is_haproxy, newer=newer, options=dict(options))
        try:
            it.start()
            yield it
        finally:
            it.stop()


WITHOUT_STATEMENTS = "a pooler in transaction mode without support for prepared statements"
WITH_STATEMENTS = "a pooler in transaction mode with support for prepared statements"
SESSION = "a pooler in session mode"

TOPOLOGIES: dict[str, tuple[dict[str, Any] | None, str]] = {
    "direct": (None, "direct"),
    "haproxy": ({"is_haproxy": True}, "direct"),
    "session": ({"pool_mode": "session", "default_pool_size": 40}, SESSION),
    "transaction": ({"pool_mode": "transaction", "max_prepared_statements": 0}, WITHOUT_STATEMENTS),
    "transaction-newer": (
        {"newer": True, "pool_mode": "transaction", "max_prepared_statements": 100},
        WITH_STATEMENTS,
    ),
}
"""The arguments of `pooler`, and how the service describes the connection."""
