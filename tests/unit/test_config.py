"""Settings: their sources, valid values and errors."""

import resource
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from storeapi.v1 import comments_pb2

from store_service import config as settings
from store_service import setting_values
from store_service.config import Config, environment_variable, load, unknown_variables
from store_service.env_file import variables_of_file
from store_service.errors import BadSetting
from store_service.setting_rules import BESIDE_BODY_BYTES


@pytest.fixture(autouse=True)
def empty_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from the environment of the tests, and no .env file."""
    for name in Config.model_fields:
        monkeypatch.delenv(environment_variable(name), raising=False)
    monkeypatch.chdir(tmp_path)


def test_defaults_serve_a_local_file_on_loopback() -> None:
    config = load()

    assert config.DATABASE_URL == "sqlite:///store.db"
    assert config.DB_FORCE_ROLL_BACK is False
    assert config.listen == "127.0.0.1:50051"
    assert config.max_body_bytes == 65_536
    assert config.auto_migrate is True


EXAMPLES: dict[str, tuple[str, Any]] = {
    "DATABASE_URL": ("sqlite:////srv/posts.db", "sqlite:////srv/posts.db"),
    "DB_FORCE_ROLL_BACK": ("true", True),
    "STORE_LISTEN": ("[::1]:0", "[::1]:0"),
    "STORE_ALLOW_INSECURE": ("true", True),
    "STORE_JWT_LEEWAY_SECONDS": ("1.5", 1.5),
    "STORE_JWT_SCOPE_CLAIM": ("permissions", "permissions"),
    "STORE_REFLECTION": ("off", "off"),
    "STORE_AUTO_MIGRATE": ("false", False),
    "STORE_SHUTDOWN_GRACE_SECONDS": ("1.5", 1.5),
    "STORE_SHUTDOWN_DELAY_SECONDS": ("2.5", 2.5),
    "STORE_READ_ONLY": ("true", True),
    "STORE_MAX_CONCURRENT_CALLS": ("1", 1),
    "STORE_MAX_CONCURRENT_BYTES": ("10000000", 10_000_000),
    "STORE_RATE_LIMIT_PER_CALLER": ("0.5", 0.5),
    "STORE_MAX_CALL_SECONDS": ("2.5", 2.5),
    "STORE_MAX_REQUEST_BYTES": ("100000", 100_000),
    "STORE_MAX_METADATA_BYTES": ("1024", 1024),
    "STORE_MAX_BATCH_SIZE": ("10", 10),
    "STORE_MAX_PAGE_SIZE": ("10", 10),
    "STORE_MAX_REPLY_DEPTH": ("0", 0),
    "STORE_UNDELETE_HOURS": ("0.5", 0.5),
    "STORE_REVISIONS": ("0", 0),
    "STORE_MAX_PENDING_RESPONSE_BYTES_PER_CONNECTION": ("0", 0),
    "STORE_MAX_CONNECTIONS_PER_ADDRESS": ("7", 7),
    "STORE_TRUSTED_PROXIES": ("10.1.0.0/16, ::1", "10.1.0.0/16, ::1"),
    "STORE_MAX_PENDING_RESPONSE_BYTES": ("4194304", 4_194_304),
    "STORE_MAX_CONNECTIONS": ("1", 1),
    "STORE_MAX_STREAMS_PER_CONNECTION": ("1", 1),
    "STORE_MAX_CONNECTION_SECONDS": ("0.5", 0.5),
    "STORE_MAX_CONNECTION_GRACE_SECONDS": ("0.5", 0.5),
    "STORE_MAX_IDLE_SECONDS": ("0.5", 0.5),
    "STORE_HANDSHAKE_TIMEOUT_SECONDS": ("0.5", 0.5),
    "STORE_MAX_BODY_BYTES": ("1", 1),
    "STORE_READ_CONNECTIONS": ("4", 4),
    "STORE_LOCK_TIMEOUT_SECONDS": ("0.5", 0.5),
    "STORE_STATEMENT_TIMEOUT_SECONDS": ("60", 60.0),
    "STORE_CONNECT_TIMEOUT_SECONDS": ("1", 1.0),
    "STORE_MAX_REPLICA_LAG_SECONDS": ("1.5", 1.5),
    "STORE_STATEMENT_CACHE_SIZE": ("0", 0),
    "STORE_REQUEST_ID_RETENTION_HOURS": ("0.5", 0.5),
    "STORE_CHANGE_RETENTION_HOURS": ("1", 1.0),
    "STORE_MAX_CHANGE_ROWS": ("1000", 1000),
    "STORE_MAX_WATCHES": ("0", 0),
    "STORE_KEEPALIVE_SECONDS": ("7.5", 7.5),
    "STORE_KEEPALIVE_TIMEOUT_SECONDS": ("0.5", 0.5),
    "STORE_METRICS_LISTEN": ("127.0.0.1:9464", "127.0.0.1:9464"),
    "STORE_TRACING": ("true", True),
    "STORE_CHANNELZ": ("true", True),
    "STORE_LOG_LEVEL": ("debug", "debug"),
    "STORE_LOG_FORMAT": ("json", "json"),
    "STORE_SEARCH": ("false", False),
}


def test_every_setting_has_an_example() -> None:
    """So that the tests below speak of all of them."""
    # What means nothing alone, is refused on SQLite, or is nothing by default, has tests of its own.
    alone = {"STORE_WORKERS", "STORE_API_KEYS_FILE", "STORE_TLS_CERT", "STORE_TLS_KEY", "STORE_TLS_CLIENT_CA"}
    alone |= {"STORE_JWT_PUBLIC_KEYS_FILE", "STORE_JWT_SECRET_FILE", "STORE_JWT_AUDIENCE", "STORE_JWT_ISSUER"}
    alone |= {"DATABASE_READ_URL", "DATABASE_DIRECT_URL"}
    assert EXAMPLES.keys() | alone == {environment_variable(name) for name in Config.model_fields}


@pytest.mark.parametrize(
    ("database_url", "direct_url", "problem"),
    [
        ("sqlite:///store.db", "postgresql://a/b", "must not be set, because DATABASE_URL is a SQLite file"),
        ("postgresql://a/b", "sqlite:///store.db", "must start with postgresql://"),
        ("postgresql://a/b", "postgresql://a", "must name a host and a database"),
    ],
)
def test_direct_url_is_one_of_postgresql(database_url: str, direct_url: str, problem: str) -> None:
    """The sentence names the variable."""
    with pytest.raises(BadSetting, match=f"^DATABASE_DIRECT_URL: {problem}"):
        settings.load(DATABASE_URL=database_url, DATABASE_DIRECT_URL=direct_url)


def test_several_workers_are_refused_on_a_unix_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes cannot share one."""
    monkeypatch.setenv("STORE_WORKERS", "2")
    monkeypatch.setenv("DATABASE_URL", "postgresql://store@localhost/store")

    with pytest.raises(BadSetting, match="STORE_WORKERS: must be 1 with a Unix socket"):
        load(listen="unix:store.sock")


def test_several_workers_are_refused_with_forced_rollback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_WORKERS", "2")
    monkeypatch.setenv("DATABASE_URL", "postgresql://store@localhost/store")
    monkeypatch.setenv("DB_FORCE_ROLL_BACK", "true")

    with pytest.raises(
        BadSetting, match=r"^STORE_WORKERS: must be 1 with DB_FORCE_ROLL_BACK, because each process.*$"
    ):
        load()


@pytest.mark.parametrize("database_url", ["sqlite:///store.db", "postgresql://store@localhost/store"])
def test_several_workers_are_allowed(monkeypatch: pytest.MonkeyPatch, database_url: str) -> None:
    monkeypatch.setenv("STORE_WORKERS", "2")
    monkeypatch.setenv("DATABASE_URL", database_url)

    assert load().workers == 2


READ_URLS = "postgresql://store:hunter2@a:5432,b:5433/store\n  postgresql://store@c/store?sslmode=require"


def test_several_replicas_are_separated_by_white_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://store@localhost/store")
    monkeypatch.setenv("DATABASE_READ_URL", READ_URLS)

    assert len(load().DATABASE_READ_URL.split()) == 2
    assert "hunter2" not in repr(load())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:///b.db", "must start with postgresql://"),
        ("a:5432", "must start with postgresql://"),
        ("postgresql://store@a/store,postgresql://store@b/store", "several URLs are separated by spaces"),
        ("postgresql://store@a/store postgresql://store:hunter2@b:x/store", "the port must be a number"),
    ],
)
def test_invalid_url_of_a_replica_is_explained(
    monkeypatch: pytest.MonkeyPatch, url: str, sentence: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://store@localhost/store")
    monkeypatch.setenv("DATABASE_READ_URL", url)

    with pytest.raises(BadSetting, match=f"^DATABASE_READ_URL: .*{sentence}") as raised:
        load()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("DATABASE_URL", "sqlite:///a.db", "needs a PostgreSQL database"),
        ("DB_FORCE_ROLL_BACK", "true", "must not be set with DB_FORCE_ROLL_BACK"),
    ],
)
def test_replicas_are_refused_where_there_cannot_be_any(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://store@localhost/store")
    monkeypatch.setenv("DATABASE_READ_URL", "postgresql://store@replica/store")
    monkeypatch.setenv(variable, value)

    with pytest.raises(BadSetting, match=f"^DATABASE_READ_URL: {sentence}"):
        load()


@pytest.mark.parametrize("option", ["", "?sslmode=verify-full", "?sslmode=require&sslrootcert=/ca.pem"])
def test_postgresql_tls_options_are_accepted(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    """By the options that libpq has."""
    url = f"postgresql://store:hunter2@localhost:5432/store{option}"
    monkeypatch.setenv("DATABASE_URL", url)

    assert url == load().DATABASE_URL
    assert "hunter2" not in repr(load())


@pytest.mark.parametrize("variable", EXAMPLES)
def test_setting_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Under the name that the manual gives it."""
    text, value = EXAMPLES[variable]
    (field,) = [name for name in Config.model_fields if environment_variable(name) == variable]
    assert getattr(load(), field) != value

    monkeypatch.setenv(variable, text)

    assert getattr(load(), field) == value


@pytest.mark.parametrize("variable", EXAMPLES)
def test_setting_is_read_from_the_env_file(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The environment has precedence."""
    text, value = EXAMPLES[variable]
    (field,) = [name for name in Config.model_fields if environment_variable(name) == variable]
    default = getattr(load(), field)
    Path(".env").write_text(f"{variable}={text}\n")

    assert getattr(load(), field) == value

    if default != "":  # an empty variable is as none, which is the rule of the next test
        monkeypatch.setenv(variable, str(default))
        assert getattr(load(), field) == default


@pytest.mark.parametrize("variable", sorted(EXAMPLES.keys() - {"DATABASE_URL"}))
def test_empty_setting_is_unset(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "")

    assert load() == Config()


@pytest.mark.parametrize("name", ["DATABASE_URL", "database_url"])
@pytest.mark.parametrize("is_in_file", [False, True], ids=["environment", "file"])
def test_empty_database_url_is_refused(monkeypatch: pytest.MonkeyPatch, is_in_file: bool, name: str) -> None:
    if is_in_file:
        Path(".env").write_text(f"{name}=\n")
    else:
        monkeypatch.setenv(name, "")

    with pytest.raises(BadSetting, match=r"^DATABASE_URL: is empty; "):
        load()
    assert load(DATABASE_URL="sqlite:///a.db").DATABASE_URL == "sqlite:///a.db"


def test_empty_database_url_in_the_environment_falls_back_to_the_env_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DATABASE_URL", "")
    Path(".env").write_text("DATABASE_URL=sqlite:///a.db\n")

    assert load().DATABASE_URL == "sqlite:///a.db"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://store:hunter2@localhost:5432x/store", "the port must be a number"),
        ("postgresql://store:hunter2@localhost:65536/store", "the port must be a number from 1 to 65535"),
        ("postgresql://store:pa@hunter2@localhost/store", "percent-encode the password"),
        ("postgresql://store:pa@hunter2/x@localhost/store", "percent-encode the password"),
        ("postgres://store:hunter2@localhost/store", "must start with postgresql://, not postgres://"),
    ],
)
def test_invalid_url_is_explained(monkeypatch: pytest.MonkeyPatch, url: str, sentence: str) -> None:
    """Without its password."""
    monkeypatch.setenv("DATABASE_URL", url)

    with pytest.raises(BadSetting) as raised:
        load()

    assert str(raised.value).startswith("DATABASE_URL: ")
    assert sentence in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_argument_overrides_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line is nearer than the environment."""
    monkeypatch.setenv("STORE_LISTEN", "127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///a.db")

    config = load(listen="127.0.0.1:2", DATABASE_URL="sqlite:///b.db")

    assert (config.listen, config.DATABASE_URL) == ("127.0.0.1:2", "sqlite:///b.db")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("DATABASE_URL", "store.db"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "sqlite:///"),
        ("DATABASE_URL", "sqlite:///:memory:"),
        ("DATABASE_URL", "sqlite:///x.db?mode=memory"),
        ("DATABASE_URL", "sqlite:///x.db?cache=shared"),
        ("DATABASE_URL", "sqlite+aiosqlite:///x.db"),
        ("DATABASE_URL", "mysql://localhost/x"),
        ("DATABASE_URL", "postgresql://localhost"),
        ("DATABASE_URL", "postgresql://localhost/x?sslmode=prefer"),
        ("DATABASE_URL", "postgresql://localhost/x?pool=3"),
        ("STORE_WORKERS", "0"),
        ("STORE_LOCK_TIMEOUT_SECONDS", "0"),
        ("STORE_STATEMENT_TIMEOUT_SECONDS", "0"),
        ("STORE_CONNECT_TIMEOUT_SECONDS", "-1"),
        ("DATABASE_URL", "mysql://user:hunter2@localhost/x"),
        ("DATABASE_URL", " "),
        ("DB_FORCE_ROLL_BACK", "perhaps"),
        ("STORE_LISTEN", "50051"),
        ("STORE_LISTEN", ":50051"),
        ("STORE_LISTEN", "127.0.0.1:"),
        ("STORE_LISTEN", "127.0.0.1:65536"),
        ("STORE_LISTEN", "127.0.0.1:-1"),
        ("STORE_LISTEN", "127.0.0.1:http"),
        ("STORE_LISTEN", "unix:"),
        ("STORE_LISTEN", "unix://"),
        ("STORE_METRICS_LISTEN", "unix:"),
        ("STORE_LISTEN", "127.0.0.1:\u0661"),
        ("STORE_AUTO_MIGRATE", "2"),
        ("STORE_SHUTDOWN_GRACE_SECONDS", "-1"),
        ("STORE_SHUTDOWN_GRACE_SECONDS", "nan"),
        ("STORE_SHUTDOWN_GRACE_SECONDS", "inf"),
        ("STORE_SHUTDOWN_GRACE_SECONDS", "3601"),
        ("STORE_MAX_BODY_BYTES", "0"),
        ("STORE_MAX_BODY_BYTES", "1048577"),
        ("STORE_MAX_BODY_BYTES", "64k"),
        ("STORE_READ_CONNECTIONS", "0"),
        ("STORE_READ_CONNECTIONS", "17"),
        ("STORE_REQUEST_ID_RETENTION_HOURS", "0"),
        ("STORE_REQUEST_ID_RETENTION_HOURS", "8761"),
        ("STORE_REQUEST_ID_RETENTION_HOURS", "nan"),
        ("STORE_CHANGE_RETENTION_HOURS", "0"),
        ("STORE_CHANGE_RETENTION_HOURS", "87601"),
        ("STORE_CHANGE_RETENTION_HOURS", "inf"),
        ("STORE_MAX_CHANGE_ROWS", "0"),
        ("STORE_MAX_CHANGE_ROWS", "1e7"),
        ("STORE_MAX_WATCHES", "-1"),
        ("STORE_MAX_WATCHES", "10001"),
        ("STORE_KEEPALIVE_SECONDS", "0.5"),
        ("STORE_KEEPALIVE_SECONDS", "3601"),
        ("STORE_KEEPALIVE_TIMEOUT_SECONDS", "0"),
        ("STORE_KEEPALIVE_TIMEOUT_SECONDS", "3601"),
        ("STORE_LOG_LEVEL", "INFO!"),
        ("STORE_LOG_FORMAT", "xml"),
    ],
)
def test_invalid_setting_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    """Without its value."""
    monkeypatch.setenv(variable, value)

    with pytest.raises(BadSetting) as raised:
        load()

    text = str(raised.value)
    assert text.startswith(f"{variable}: ")
    assert "\n" not in text
    assert "hunter2" not in text
    assert raised.value.__cause__ is None


def test_env_file_that_is_not_text_is_an_invalid_setting() -> None:
    """A service that reads it at SIGHUP continues."""
    Path(".env").write_bytes("STORE_LISTEN=münchen:1".encode("latin-1"))

    with pytest.raises(BadSetting, match=r"^\.env: line 1 is not UTF-8$"):
        load()


def test_unreadable_env_file_is_an_invalid_setting() -> None:
    """Such as when there are no descriptors left, which may be so at SIGHUP."""
    Path(".env").write_text("STORE_LISTEN=127.0.0.1:1")
    was = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, was[1]))
    try:
        with pytest.raises(BadSetting, match=r"^cannot read the file \.env: "):
            load()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, was)


def test_all_invalid_settings_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run shows every mistake."""
    monkeypatch.setenv("STORE_READ_CONNECTIONS", "0")
    monkeypatch.setenv("STORE_LISTEN", "x")

    with pytest.raises(BadSetting) as raised:
        load()

    assert "STORE_READ_CONNECTIONS: " in str(raised.value)
    assert "STORE_LISTEN: " in str(raised.value)


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:0", "0.0.0.0:65535", "[::1]:50051", "localhost:80", "unix:/tmp/x.sock"]
)
def test_valid_addresses_are_accepted(listen: str) -> None:
    """Hosts and sockets, IPv6 in brackets."""
    assert load(listen=listen, allow_insecure=True).listen == listen


@pytest.mark.parametrize(
    "listen",
    ["127.0.0.1:0", "127.1.2.3:0", "[::1]:0", "localhost:0", "unix:store.sock", "unix:/tmp/x.sock"],
)
def test_loopback_needs_no_tls(listen: str) -> None:
    assert load(listen=listen).tls_cert == ""


@pytest.mark.parametrize(
    "listen",
    [
        "0.0.0.0:0",
        "[::]:0",
        "10.0.0.1:0",
        "store.internal:0",
        "127.0.0.1.example:0",
        "[2001:db8::1]:0",
        "0:0",
    ],
)
def test_public_address_needs_tls_or_consent(monkeypatch: pytest.MonkeyPatch, listen: str) -> None:
    """STORE_ALLOW_INSECURE."""
    monkeypatch.setenv("STORE_LISTEN", listen)
    with pytest.raises(BadSetting, match=r"^STORE_LISTEN: .*STORE_TLS_CERT.*STORE_ALLOW_INSECURE=true"):
        load()

    monkeypatch.setenv("STORE_ALLOW_INSECURE", "true")
    assert load().listen == listen

    monkeypatch.delenv("STORE_ALLOW_INSECURE")
    a_file(monkeypatch, "STORE_TLS_CERT")
    a_file(monkeypatch, "STORE_TLS_KEY")
    assert load().listen == listen


def test_key_file_may_be_created_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its directory must exist."""
    monkeypatch.setenv("STORE_API_KEYS_FILE", "keys")
    assert load().api_keys_file == "keys"

    monkeypatch.setenv("STORE_API_KEYS_FILE", "nowhere/keys")
    with pytest.raises(BadSetting, match=r"^STORE_API_KEYS_FILE: the folder of the file does not exist"):
        load()


def a_file(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """Sets a variable to a file that is there."""
    Path(variable).write_text("")
    monkeypatch.setenv(variable, variable)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        (["STORE_TLS_CERT"], "STORE_TLS_KEY"),
        (["STORE_TLS_KEY"], "STORE_TLS_CERT"),
        (["STORE_TLS_CLIENT_CA"], "STORE_TLS_CERT and STORE_TLS_KEY"),
    ],
)
def test_incomplete_tls_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, given: list[str], missing: str
) -> None:
    for variable in given:
        a_file(monkeypatch, variable)

    with pytest.raises(BadSetting, match=rf"^{given[0]}: requires {missing}"):
        load()


@pytest.mark.parametrize("keys", ["STORE_JWT_PUBLIC_KEYS_FILE", "STORE_JWT_SECRET_FILE"])
def test_jwt_needs_keys_audience_and_issuer(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    monkeypatch.setenv("STORE_JWT_AUDIENCE", "storeapi")
    with pytest.raises(BadSetting, match=r"^STORE_JWT_AUDIENCE: requires STORE_JWT"):
        load()
    a_file(monkeypatch, keys)
    with pytest.raises(BadSetting, match=r"^STORE_JWT_ISSUER: must be set"):
        load()

    monkeypatch.setenv("STORE_JWT_ISSUER", "https://issuer.example")
    assert load().jwt_audience == "storeapi"

    a_file(monkeypatch, "STORE_JWT_PUBLIC_KEYS_FILE")
    a_file(monkeypatch, "STORE_JWT_SECRET_FILE")
    with pytest.raises(BadSetting, match=r"^STORE_JWT_SECRET_FILE: must not be set together"):
        load()


def test_jwt_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line says how to install it."""
    monkeypatch.setattr(setting_values.importlib.util, "find_spec", lambda _: None)
    a_file(monkeypatch, "STORE_JWT_SECRET_FILE")

    with pytest.raises(BadSetting, match=r"^STORE_JWT_SECRET_FILE: .*store-service\[jwt\]"):
        load()


def test_database_url_is_not_in_repr() -> None:
    assert "private" not in repr(load(DATABASE_URL="sqlite:////srv/private.db"))


def test_settings_are_immutable() -> None:
    config = load()

    with pytest.raises(ValueError, match="frozen"):
        config.listen = "127.0.0.1:1"


def test_every_setting_has_a_docstring() -> None:
    """The manual is where the setting is."""
    source = Path(settings.__file__).read_text()
    body = source[source.index("class Config") : source.index("def environment_variable")]

    for name in Config.model_fields:
        _, _, rest = body.partition(f"\n    {name}: ")
        assert '\n    """' in rest.split("\n\n")[0], name


def test_misspelt_override_is_an_error() -> None:
    """It would otherwise be ignored."""
    with pytest.raises(TypeError, match="no such setting: listne"):
        load(listne="127.0.0.1:0")


def test_misspelt_variables_are_found() -> None:
    environment = {
        "STORE_LISTEN": "x",
        "store_read_connections": "2",
        "STORE_LISTENS": "x",
        "store_x": "",
        "PATH": "x",
        "DATABASE_URL": "x",
    }

    assert unknown_variables(environment) == ["STORE_LISTENS", "store_x"]


FILE = b"""
# a comment
export STORE_READ_CONNECTIONS = 3
STORE_JWT_SCOPE_CLAIM='two words' # of it
STORE_API_KEYS_FILE="
"
STORE_BARE

"""
"""What files of settings may hold."""


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_names_in_the_env_file_are_found(line_end: bytes) -> None:
    """In whatever way they are written there."""
    assert variables_of_file() == set()

    Path(".env").write_bytes(FILE.replace(b"\n", line_end))

    names = {"STORE_READ_CONNECTIONS", "STORE_JWT_SCOPE_CLAIM", "STORE_API_KEYS_FILE", "STORE_BARE"}
    assert variables_of_file() == names


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (b"STORE_READ_CONNECTIONS 2", "is not NAME=value"),
        (b"=hunter2", "is not NAME=value"),
        (b"DATABASE_URL='hunter2", "is not NAME=value"),
        (b"DATABASE_URL=hunter2\xff", "is not UTF-8"),
    ],
)
def test_invalid_line_of_the_env_file_is_named_by_its_number(
    line_end: bytes, bad: bytes, problem: str
) -> None:
    """By its number, for its text may be a password."""
    Path(".env").write_bytes((FILE + bad + b"\nSTORE_READERS=2\n").replace(b"\n", line_end))

    with pytest.raises(BadSetting) as raised:
        load()

    line = FILE.count(b"\n") + 1
    assert str(raised.value) == f".env: line {line} {problem}"
    assert raised.value.__cause__ is None


def test_largest_body_must_fit_into_a_request() -> None:
    most = load(max_request_bytes=4096, max_body_bytes=4096 - BESIDE_BODY_BYTES)
    assert most.max_body_bytes > 3000

    with pytest.raises(BadSetting, match=r"^STORE_MAX_REQUEST_BYTES: .*STORE_MAX_BODY_BYTES"):
        load(max_request_bytes=4096, max_body_bytes=most.max_body_bytes + 1)


def test_largest_request_must_fit_into_the_decoding_limit() -> None:
    assert load(max_request_bytes=100_000, max_concurrent_bytes=100_000)

    with pytest.raises(BadSetting, match=r"^STORE_MAX_CONCURRENT_BYTES: .*STORE_MAX_REQUEST_BYTES"):
        load(max_request_bytes=100_001, max_concurrent_bytes=100_000)


def test_other_fields_fit_beside_the_largest_body() -> None:
    """An update has the most: a post or comment as it was read, a mask and a request_id."""
    body = "x" * settings.Config.model_fields["max_body_bytes"].default
    time = Timestamp(seconds=-62_135_596_800, nanos=999_999_999)
    comment = comments_pb2.Comment(
        id=2**63 - 1, post_id=2**63 - 1, body=body, etag=f"v{2**63}", create_time=time, update_time=time
    )
    largest = comments_pb2.UpdateCommentRequest(
        comment=comment,
        update_mask=FieldMask(paths=["body", "etag"]),
        request_id=str(uuid4()),
        **{
            field.name: True
            for field in comments_pb2.UpdateCommentRequest.DESCRIPTOR.fields
            if field.type == 8
        },
    )

    assert largest.ByteSize() <= len(body) + BESIDE_BODY_BYTES


def test_settings_are_loaded_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """`from store_service.config import config` gives the settings of the environment, once."""
    settings._config.cache_clear()
    monkeypatch.setenv("STORE_LISTEN", "127.0.0.1:4242")

    assert settings.config.listen == "127.0.0.1:4242"
    assert settings.config is settings.config
    settings._config.cache_clear()


def test_unknown_attribute_of_the_module_is_missing() -> None:
    """Other names are missing from the module, as they are from any."""
    with pytest.raises(AttributeError, match="no_such_name"):
        settings.no_such_name  # noqa: B018
