"""TLS between the service and PostgreSQL: what `sslmode` and its companions in DATABASE_URL mean.

The database is reached in two ways, by psycopg (`migrate`, `check` and the start of `serve`) and by asyncpg
(all calls). Every rule holds for both.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc
import psycopg
import pytest
import trustme
from sqlalchemy.engine import make_url
from storeapi.v1 import posts_pb2

from store_service import config as settings
from store_service.database import connect, schema
from store_service.errors import DatabaseUnavailable
from store_service.server import serving
from tests.support.postgresql import new_database, postgres_server, supports_tls
from tests.support.server_process import run_command
from tests.support.stubs import Stubs

pytestmark = pytest.mark.skipif(not supports_tls(), reason="this PostgreSQL was built without TLS")

NAME = "localhost"
"""The name in the server's certificate."""

OTHER_NAME = "127.0.0.1"
"""The same server under a name that its certificate does not have."""

SETTINGS = b"""
ssl = on
ssl_ca_file = 'ca.crt'
"""

ACCESS = b"""
hostssl all certain  127.0.0.1/32 cert
hostssl all postgres 127.0.0.1/32 trust
"""
"""Connections need TLS, and those of one role a client certificate with its name."""


@dataclass(frozen=True)
class TlsServer:
    """A PostgreSQL that takes encrypted connections only."""

    port: int
    root: Path
    """Certificate of the authority that signed the server's."""
    unknown_root: Path
    """Certificate of another one."""
    certificate: Path
    """Certificate of the client `certain`."""
    key: Path

    def url(self, database: str, *, user: str = "postgres", host: str = NAME, **options: Any) -> str:
        """A database URL with the given query options."""
        query = urlencode(options)
        return f"postgresql://{user}:hunter2@{host}:{self.port}/{database}" + (f"?{query}" if query else "")


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """One for all tests of this module."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    of_server, of_client = authority.issue_cert(NAME), authority.issue_cert(common_name="certain")
    paths = {name: folder / f"{name}.pem" for name in ("root", "unknown_root", "certificate", "key")}
    authority.cert_pem.write_to_path(paths["root"])
    trustme.CA().cert_pem.write_to_path(paths["unknown_root"])
    of_client.cert_chain_pems[0].write_to_path(paths["certificate"])
    # libpq refuses a key that others may read.
    paths["key"].touch(mode=0o600)
    of_client.private_key_pem.write_to_path(paths["key"])
    files = {
        "postgresql.auto.conf": SETTINGS,
        "pg_hba.conf": ACCESS,
        "ca.crt": authority.cert_pem.bytes(),
        "server.crt": of_server.cert_chain_pems[0].bytes(),
        "server.key": of_server.private_key_pem.bytes(),
    }
    with postgres_server(files) as server:
        made = TlsServer(port=server.port, **paths)
        with psycopg.connect(made.url("postgres", sslmode="require"), autocommit=True) as connection:
            connection.execute("CREATE ROLE certain LOGIN SUPERUSER")
        yield made


@pytest.fixture(scope="module")
def database(tls_server: TlsServer) -> Iterator[str]:
    """The name of a database with the current schema, where no test stores anything."""
    with new_database(tls_server.url("postgres", sslmode="require")) as url:
        schema.upgrade(url)
        yield str(make_url(url).database)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without certificates, for libpq looks there, and an environment that names none."""
    for name in ("PGSSLMODE", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


async def by_psycopg(url: str) -> None:
    await asyncio.to_thread(schema.check, url)


async def by_asyncpg(url: str) -> None:
    async with connect.open_database(url) as store:
        await schema.look(store)


Way = Callable[[str], Awaitable[None]]

both_ways = pytest.mark.parametrize("reach", [by_psycopg, by_asyncpg])


async def refused(reach: Way, url: str) -> None:
    """The database cannot be reached so."""
    with pytest.raises(DatabaseUnavailable):
        await reach(url)


class TestServing:
    """A whole service, from an empty database on."""

    @pytest.fixture
    def watched(self, tls_server: TlsServer) -> Iterator[str]:
        """An empty database that records how each migration command connected."""
        with new_database(tls_server.url("postgres", sslmode="require")) as url:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("CREATE SCHEMA seen CREATE TABLE commands (ssl bool, client_dn text)")
                connection.execute(
                    """
                    CREATE FUNCTION seen.note() RETURNS event_trigger LANGUAGE plpgsql AS $$
                    BEGIN
                        INSERT INTO seen.commands
                        SELECT ssl, client_dn FROM pg_stat_ssl WHERE pid = pg_backend_pid();
                    END $$
                    """
                )
                connection.execute(
                    "CREATE EVENT TRIGGER note ON ddl_command_end EXECUTE FUNCTION seen.note()"
                )
            yield str(make_url(url).database)

    async def seen(self, tls_server: TlsServer, database: str, url: str) -> tuple[list[Any], set[Any]]:
        """Serves and stores a post; returns the connections of the service, and those of the migration."""
        config = settings.load(DATABASE_URL=url, listen="127.0.0.1:0")
        async with serving(config) as server, grpc.aio.insecure_channel(server.address) as channel:
            stubs = Stubs(channel)
            post = await stubs.create_post("over TLS")
            assert (await stubs.posts.GetPost(posts_pb2.GetPostRequest(id=post.id))).body == "over TLS"
            with psycopg.connect(tls_server.url(database, sslmode="require")) as connection:
                serving_ones = connection.execute(
                    "SELECT ssl, client_dn FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
                    " WHERE application_name = 'store-service' AND datname = current_database()"
                ).fetchall()
                migrating = connection.execute("SELECT DISTINCT ssl, client_dn FROM seen.commands").fetchall()
        return serving_ones, set(migrating)

    async def test_every_postgresql_connection_is_encrypted(
        self, tls_server: TlsServer, watched: str
    ) -> None:
        """Writer, readers and migration, as pg_stat_ssl reports."""
        url = tls_server.url(watched, sslmode="verify-full", sslrootcert=tls_server.root)

        serving_ones, migrating = await self.seen(tls_server, watched, url)

        assert serving_ones == [(True, None)] * 3
        assert migrating == {(True, None)}

    async def test_every_postgresql_connection_sends_the_client_certificate(
        self, tls_server: TlsServer, watched: str
    ) -> None:
        """A role that requires one can migrate and serve."""
        url = tls_server.url(
            watched,
            user="certain",
            sslmode="verify-full",
            sslrootcert=tls_server.root,
            sslcert=tls_server.certificate,
            sslkey=tls_server.key,
        )

        serving_ones, migrating = await self.seen(tls_server, watched, url)

        assert [ssl for ssl, _ in serving_ones] == [True] * 3
        assert {ssl for ssl, _ in migrating} == {True}
        (name,) = {name for _, name in [*serving_ones, *migrating]}
        assert "/CN=certain" in name


@both_ways
async def test_verify_full_refuses_another_host(reach: Way, tls_server: TlsServer, database: str) -> None:
    """Also with a certificate of a trusted authority."""
    options = {"sslmode": "verify-full", "sslrootcert": tls_server.root}
    await reach(tls_server.url(database, **options))

    await refused(reach, tls_server.url(database, host=OTHER_NAME, **options))


@both_ways
@pytest.mark.parametrize("mode", ["verify-ca", "require"])
async def test_root_certificate_selects_the_trusted_authority(
    reach: Way, mode: str, tls_server: TlsServer, database: str
) -> None:
    """For any host name; also with `require`."""
    await reach(tls_server.url(database, host=OTHER_NAME, sslmode=mode, sslrootcert=tls_server.root))

    await refused(reach, tls_server.url(database, sslmode=mode, sslrootcert=tls_server.unknown_root))


@both_ways
async def test_require_alone_encrypts_without_verification(
    reach: Way, tls_server: TlsServer, database: str
) -> None:
    await reach(tls_server.url(database, host=OTHER_NAME, sslmode="require"))


@both_ways
@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
async def test_verification_needs_a_root_certificate(
    reach: Way, mode: str, tls_server: TlsServer, database: str
) -> None:
    await refused(reach, tls_server.url(database, sslmode=mode))


@both_ways
async def test_root_certificate_in_the_home_directory_is_used(
    reach: Way, tls_server: TlsServer, database: str, home: Path
) -> None:
    """The default path of libpq; `require` then verifies too."""
    at_home = home / ".postgresql" / "root.crt"
    at_home.parent.mkdir()
    at_home.write_bytes(tls_server.root.read_bytes())
    await reach(tls_server.url(database, sslmode="verify-full"))

    at_home.write_bytes(tls_server.unknown_root.read_bytes())
    await refused(reach, tls_server.url(database, sslmode="require"))


@both_ways
async def test_root_certificates_of_the_system_are_used(
    reach: Way, tls_server: TlsServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`sslrootcert=system` asks OpenSSL, which reads SSL_CERT_FILE."""
    url = tls_server.url(database, sslmode="verify-full", sslrootcert="system")
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.root))
    await reach(url)

    monkeypatch.setenv("SSL_CERT_FILE", str(tls_server.unknown_root))
    await refused(reach, url)


@both_ways
async def test_root_certificate_file_without_certificate_is_refused(
    reach: Way, tls_server: TlsServer, database: str, tmp_path: Path
) -> None:
    """Verification is not disabled silently."""
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nothing of the kind")

    await refused(reach, tls_server.url(database, sslmode="require", sslrootcert=wrong))


@both_ways
async def test_role_that_requires_a_client_certificate_is_refused_without_one(
    reach: Way, tls_server: TlsServer, database: str
) -> None:
    await refused(reach, tls_server.url(database, user="certain", sslmode="require"))


@both_ways
@pytest.mark.parametrize("options", [{}, {"sslmode": "disable"}])
async def test_connections_are_not_encrypted_without_sslmode(
    reach: Way, options: dict[str, str], tls_server: TlsServer, database: str
) -> None:
    """A server that requires TLS refuses migrations and calls alike."""
    await refused(reach, tls_server.url(database, **options))


@pytest.mark.parametrize(
    ("mode", "root", "why"),
    [
        ("verify-full", "root", "does not match host name"),
        ("verify-ca", "unknown_root", "certificate verify failed"),
        ("verify-full", None, "root certificate file"),
        (None, None, "no encryption"),
    ],
    ids=["another host", "unknown authority", "no authority", "no sslmode"],
)
def test_refused_connection_is_one_line(
    mode: str | None, root: str | None, why: str, tls_server: TlsServer, database: str, tmp_path: Path
) -> None:
    """With the database and the reason, and without secrets."""
    options = {"sslcert": tls_server.certificate, "sslkey": tls_server.key}
    if mode is not None:
        options |= {"sslmode": mode}
    if root is not None:
        options |= {"sslrootcert": getattr(tls_server, root)}
    url = tls_server.url(database, host=OTHER_NAME, **options)

    run = run_command("check", folder=tmp_path, settings={"DATABASE_URL": url})

    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"store-service: cannot use the database postgresql://postgres:***@{OTHER_NAME}:")
    assert why in line
    assert "hunter2" not in line
    assert not any(text in line for text in tls_server.key.read_text().splitlines())
