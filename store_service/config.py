"""The settings, which are read from the environment and from the file `.env`.

`load` checks all of them. The lazy module attribute `config` has the settings of the process.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, SettingsConfigDict

from store_service import setting_values as values
from store_service.env_file import ENV_FILE, variables_of_file
from store_service.errors import BadSetting
from store_service.setting_rules import check_combinations

ENV_PREFIX = "STORE_"


class Config(BaseSettings):
    """All settings, with their defaults."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_file=ENV_FILE, extra="ignore", frozen=True, env_ignore_empty=True
    )

    # DATABASE_URL and DB_FORCE_ROLL_BACK have the names that the storeapi application gave them.
    DATABASE_URL: values.DatabaseUrl = Field(
        default="sqlite:///store.db", validation_alias="DATABASE_URL", repr=False
    )
    """Where posts and comments are stored: sqlite:/// and a file (four slashes for an absolute path), or
    postgresql://user:password@host/database, with ?sslmode=verify-full for TLS. Separate several hosts by
    commas (a:5432,b:5432); ?host=/run/postgresql is a Unix socket."""

    DATABASE_READ_URL: values.ReadUrls = Field(default="", validation_alias="DATABASE_READ_URL", repr=False)
    """Replicas of DATABASE_URL that answer the reads of callers who allow it: the URL of a PostgreSQL
    standby, or several, separated by spaces. Each may have several hosts, of which one is used."""
    DATABASE_DIRECT_URL: values.OptionalPostgresqlUrl = Field(
        default="", validation_alias="DATABASE_DIRECT_URL", repr=False
    )
    """The same PostgreSQL database without a pooler in transaction mode, for schema upgrades and
    notifications. Empty: DATABASE_URL is used, and behind a pooler in transaction mode watches poll."""

    DB_FORCE_ROLL_BACK: bool = Field(default=False, validation_alias="DB_FORCE_ROLL_BACK")
    """For tests: everything is rolled back when the server stops."""

    listen: values.ListenAddress = "127.0.0.1:50051"
    """Address to serve on; port 0 lets the system choose."""

    allow_insecure: bool = False
    """Allow addresses that other machines can reach without TLS, because something else encrypts."""

    tls_cert: values.ExistingFile = ""
    """File with the certificate chain of the server (PEM). With STORE_TLS_CERT and STORE_TLS_KEY, callers
    must use TLS. Loaded again when it changes."""

    tls_key: values.ExistingFile = ""
    """File with the private key of STORE_TLS_CERT (PEM, not encrypted)."""

    tls_client_ca: values.ExistingFile = ""
    """File with certificate authorities for clients (PEM). Each client needs a certificate from one of
    them."""

    api_keys_file: values.NewOrExistingFile = ""
    """File of API keys, created by `store-service keys new`. Callers need a key, except for health checks.
    Loaded again when it changes."""

    jwt_public_keys_file: values.JwtFile = ""
    """File with the public keys of the token issuer (JWT), PEM or JWKS. Needs the extra `store-service[jwt]`.
    Loaded again when it changes."""

    jwt_secret_file: values.JwtFile = ""
    """File with a shared secret for tokens (HS256) instead of public keys, at least 32 bytes."""

    jwt_audience: values.TrimmedText = ""
    """Required audience of tokens (`aud`)."""

    jwt_issuer: values.TrimmedText = ""
    """Required issuer of tokens (`iss`)."""

    jwt_leeway_seconds: float = Field(default=30.0, ge=0, le=600)
    """Allowed difference between the clocks of the issuer and the service."""

    jwt_scope_claim: values.TrimmedText = "scope"
    """Claim of tokens with the permissions: read, write, watch."""

    reflection: Literal["callers", "open", "off"] = "callers"
    """Access to the descriptors: callers (with valid credentials, if credentials are required), open (every
    caller), or off."""

    auto_migrate: bool = True
    """Upgrade the database schema at start. Otherwise `store-service migrate` does."""

    workers: int = Field(default=1, ge=1, le=256)
    """Processes that serve on one port. On SQLite, one more process then writes for all of them."""

    shutdown_grace_seconds: float = Field(default=5.0, ge=0, le=3600)
    """Time for running calls to finish after SIGTERM or SIGINT."""

    shutdown_delay_seconds: float = Field(default=0.0, ge=0, le=3600)
    """Time after SIGTERM or SIGINT during which health reports NOT_SERVING and calls are still accepted. Set
    it to the time in which the load balancer detects the change."""

    read_only: bool = False
    """Refuse writes with READ_ONLY. Reads and watches continue, and retention deletes nothing."""

    max_concurrent_calls: int = Field(default=1000, ge=1, le=100_000)
    """Maximum number of calls in flight in a process. Further calls get OVERLOADED. Watches have a separate
    limit, and health checks have none."""

    max_concurrent_bytes: int = Field(default=134_217_728, ge=1024)
    """Maximum number of bytes of all requests in flight in a process. A request of more than 64 KiB above it
    gets OVERLOADED. In memory a request takes about three times its size."""

    rate_limit_per_caller: float = Field(default=0.0, ge=0, le=1_000_000)
    """Maximum number of calls a second of one caller, on average and as a burst. Further calls get
    RATE_LIMITED. A caller is identified by the name of its key, token or certificate, or by its address. 0
    disables the limit."""

    trusted_proxies: values.Networks = ""
    """Addresses or networks (10.1.0.0/16) of proxies, separated by commas. For their calls, the last address
    of x-forwarded-for that is not one of these is the caller, for STORE_RATE_LIMIT_PER_CALLER and in the log.
    Empty: x-forwarded-for is ignored."""

    max_call_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Maximum duration of a call, regardless of its deadline. Longer calls get DEADLINE_EXCEEDED."""

    max_request_bytes: int = Field(default=4_194_304, ge=1024, le=67_108_864)
    """Maximum size of a request in bytes, also after decompression."""

    max_metadata_bytes: int = Field(default=8_192, ge=1024, le=1_048_576)
    """Maximum size of the metadata of a call in bytes, with 32 additional bytes for each key, as in
    HTTP/2."""

    max_batch_size: int = Field(default=1000, ge=1, le=1000)
    """Maximum number of ids or requests in a batch request."""

    max_page_size: int = Field(default=1000, ge=1, le=1000)
    """Maximum page size. Larger values are capped."""

    max_reply_depth: int = Field(default=64, ge=0, le=128)
    """Maximum depth of a reply: the number of comments above it. 0 refuses replies."""

    max_pending_response_bytes_per_connection: int = Field(default=33_554_432, ge=0)
    """Bytes of responses of more than 4 KiB that a client may leave unread on one connection. Further calls
    on it fail with OVERLOADED."""

    max_pending_response_bytes: int = Field(default=268_435_456, ge=4_194_304)
    """Bytes of responses of more than 4 KiB that all clients of a process may leave unread. No connection
    may hold more than what remains for the others. Reads that do not fit fail with OVERLOADED, and
    connections that read nothing are closed, the largest first."""

    max_connections: int = Field(default=1000, ge=1, le=1_000_000)
    """Maximum number of connections to a process; further connections are closed at once. Each needs a file
    descriptor: the limit of open files is raised at start. If that is not possible, fewer connections are
    accepted."""

    max_connections_per_address: int = Field(default=500, ge=1, le=1_000_000)
    """Maximum number of connections from one address (IPv6: one /64 network) to a process. Above it, the
    newest are closed within seconds. Behind a proxy all connections have the address of the proxy; use the
    value of STORE_MAX_CONNECTIONS there."""

    max_streams_per_connection: int = Field(default=1000, ge=1, le=1_000_000)
    """Maximum number of calls and watches in flight on one connection. Further calls wait in the client."""

    max_connection_seconds: float = Field(default=3600.0, gt=0, le=2_000_000)
    """Maximum age of a connection. The client is then asked to open another one, which spreads the load."""

    max_connection_grace_seconds: float = Field(default=60.0, gt=0, le=2_000_000)
    """Time for calls and watches to end on a connection that is too old. After it, watches get UNAVAILABLE
    and continue on another connection."""

    max_idle_seconds: float = Field(default=600.0, gt=0, le=2_000_000)
    """Maximum time without a call on a connection. The client opens another one for its next call."""

    handshake_timeout_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Maximum time from the start of a connection to its first HTTP/2 frame."""

    max_body_bytes: int = Field(default=65_536, ge=1, le=1_048_576)
    """Maximum length of the body of a post or comment, in bytes of UTF-8."""

    read_connections: int = Field(default=2, ge=1, le=16)
    """Number of connections that read. One more connection writes, and on PostgreSQL another one listens
    while watches are open."""

    lock_timeout_seconds: float = Field(default=5.0, gt=0, le=60)
    """Maximum time that a write waits for locks before it fails with DATABASE_BUSY."""

    statement_timeout_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Maximum duration of a statement on PostgreSQL before it fails with DATABASE_BUSY."""

    connect_timeout_seconds: float = Field(default=5.0, gt=0, le=60)
    """Maximum time to open a connection to PostgreSQL before it counts as unavailable."""

    max_replica_lag_seconds: float = Field(default=10.0, ge=1, le=86_400)
    """Maximum age of what a replica lacks. Above it, the replica is not used until it has caught up."""
    statement_cache_size: int = Field(default=-1, ge=-1, le=10_000)
    """Maximum number of statements that each session of PostgreSQL keeps prepared. -1: 100, or 0 behind a
    pooler in transaction mode without support for prepared statements."""

    request_id_retention_hours: float = Field(default=24.0, gt=0, le=8760)
    """How long a request with a request_id can be repeated and gets its first response."""

    change_retention_hours: float = Field(default=168.0, gt=0, le=87_600)
    """How long changes are kept for ChangeService.Watch."""

    max_change_rows: int = Field(default=10_000_000, ge=1)
    """Maximum number of changes that are kept, regardless of their age."""

    undelete_hours: float = Field(default=0.0, ge=0, le=87_600)
    """How long deleted posts and comments can be restored. 0: they are removed at once."""

    revisions: int = Field(default=10, ge=0, le=100)
    """Number of former versions that are kept of each post and comment. 0: none."""

    search: bool = True
    """Maintain an index for full-text search. Otherwise it is emptied, and searches get SEARCH_DISABLED. All
    processes that use a database need the same value."""

    max_watches: int = Field(default=100, ge=0, le=10_000)
    """Maximum number of open watches in a process. Each can use 8 MiB if its caller reads slowly."""

    keepalive_seconds: float = Field(default=30.0, ge=1, le=3600)
    """Time without data on a connection after which the server sends a ping."""

    keepalive_timeout_seconds: float = Field(default=10.0, gt=0, le=3600)
    """Maximum time for the response to a ping. After it, the connection is closed."""

    metrics_listen: values.OptionalAddress = ""
    """Address for metrics, at /metrics, without authentication. Empty: no metrics."""

    tracing: values.TracingFlag = False
    """Export OpenTelemetry spans as configured by the variables OTEL_*. Needs the extra `telemetry`."""

    channelz: bool = False
    """Serve grpc.channelz.v1.Channelz, which shows the connections of gRPC and the addresses of callers."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Minimum level of log lines. Each call is one line of level info."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """json: one object per line; console: readable text; auto: json unless stderr is a terminal."""

    @property
    def upgrade_url(self) -> str:
        """The URL through which the schema is upgraded."""
        return self.DATABASE_DIRECT_URL or self.DATABASE_URL

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        check_combinations(self)
        return self


def environment_variable(field_name: str) -> str:
    """Returns the environment variable that sets a field."""
    alias = Config.model_fields[field_name].validation_alias
    return alias if isinstance(alias, str) else f"{ENV_PREFIX}{field_name}".upper()


def load(**overrides: Any) -> Config:
    """Reads the settings. `overrides`, by field name, take precedence over the environment.

    Raises:
        BadSetting: A value is invalid, or the file .env cannot be read. The text is one line that names the
            variable and does not repeat the value.
        TypeError: An override is not a setting.
    """
    if unknown := sorted(overrides.keys() - Config.model_fields.keys()):
        raise TypeError(f"no such setting: {', '.join(unknown)}")
    # Checks the whole file. pydantic would ignore invalid lines and use defaults.
    variables_of_file()
    given = {
        environment_variable(name) if name.isupper() else name: value for name, value in overrides.items()
    }
    try:
        config = Config(**given)
        if "DATABASE_URL" not in config.model_fields_set and _is_empty("DATABASE_URL"):
            # A deployment that forwards an unset variable would silently serve a new file.
            raise BadSetting("DATABASE_URL: is empty; unset it to use the file store.db")
        return config
    except UnicodeDecodeError:  # Only of a pipe. For a file, `variables_of_file` raises BadSetting.
        raise BadSetting("the file .env is not UTF-8") from None
    except OSError as error:
        raise BadSetting(f"cannot read the file .env: {error.strerror}") from None
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False, include_input=False):
            message = values.error_message(detail)
            if detail["loc"]:
                name = str(detail["loc"][0])
                message = f"{environment_variable(name) if name in Config.model_fields else name}: {message}"
            problems.append(message)
        raise BadSetting("; ".join(problems)) from None


def _is_empty(variable: str) -> bool:
    """Returns whether a variable has an empty value in the environment or in the file .env."""
    sources = (EnvSettingsSource, DotEnvSettingsSource)
    return any(
        source(Config, env_ignore_empty=False).env_vars.get(variable.lower()) == "" for source in sources
    )


def unknown_variables(names: Iterable[str]) -> list[str]:
    """Returns the names with the prefix STORE_ that are not settings, which are probably misspelled."""
    known = {environment_variable(name) for name in Config.model_fields}
    return sorted(name for name in names if name.upper().startswith(ENV_PREFIX) and name.upper() not in known)


@cache
def _config() -> Config:
    return load()


def __getattr__(name: str) -> Any:
    # `from store_service.config import config` works as in the storeapi application, and loads the settings
    # at the first use.
    if name == "config":
        return _config()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
