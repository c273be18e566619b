"""The settings: read from the environment and from `.env`, checked before anything starts.

`config` is made at its first use; a bad setting raises `BadSetting`, whose text names the variable.
"""

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

ENV_PREFIX = "STORE_"


class BadSetting(Exception):
    """A setting has a value that is not allowed; the text is one line that names it."""


def _database_url(value: str) -> str:
    try:
        url = make_url(value)
    except ArgumentError:
        raise ValueError("must be a URL such as sqlite:///store.db") from None
    if url.drivername != "sqlite":
        raise ValueError("must start with sqlite:///")
    if url.database in (None, "", ":memory:") or "memory" in str(url.query.get("mode", "")):
        raise ValueError("must name a file, as sqlite:///store.db does; a database in memory keeps nothing")
    if url.query:
        raise ValueError("takes no options after ?")
    return value


def _listen(value: str) -> str:
    host, separator, port = value.rpartition(":")
    if value.startswith("unix:"):
        return value
    if not (separator and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError("must be HOST:PORT, as 127.0.0.1:50051 or [::]:50051, or unix:PATH")
    return value


class Config(BaseSettings):
    """Every setting, with its default."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True
    )

    # These two keep the names that the application before this service gave them.
    DATABASE_URL: Annotated[str, AfterValidator(_database_url)] = Field(
        default="sqlite:///store.db", validation_alias="DATABASE_URL", repr=False
    )
    """Where posts and comments are kept: sqlite:/// and a file (four slashes for an absolute path)."""

    DB_FORCE_ROLL_BACK: bool = Field(default=False, validation_alias="DB_FORCE_ROLL_BACK")
    """For tests: everything is rolled back when the server stops."""

    listen: Annotated[str, AfterValidator(_listen)] = "127.0.0.1:50051"
    """Address to serve on; port 0 lets the system choose."""

    auto_migrate: bool = True
    """Bring the database's schema up to date at start; otherwise `store-service migrate` does."""

    grace_seconds: float = Field(default=5.0, ge=0, le=3600)
    """How long running calls may take to finish after SIGTERM or SIGINT."""

    max_body_bytes: int = Field(default=65_536, ge=1, le=1_048_576)
    """Longest body of a post or comment, in bytes of UTF-8."""

    readers: int = Field(default=2, ge=1, le=16)
    """Connections that read; there is one more, which writes."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least important line that is logged; each call is one line of level info."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """json: one object a line; console: for people; auto: json unless stderr is a terminal."""


def variable_of(field_name: str) -> str:
    """The environment variable that sets a field."""
    alias = Config.model_fields[field_name].validation_alias
    return alias if isinstance(alias, str) else f"{ENV_PREFIX}{field_name}".upper()


def load(**overrides: Any) -> Config:
    """Reads the settings; `overrides` (by field name) win over the environment.

    Raises:
        BadSetting: A value is not allowed.
    """
    given = {variable_of(name) if name.isupper() else name: value for name, value in overrides.items()}
    try:
        return Config(**given)
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False, include_input=False):
            name = str(detail["loc"][0])
            variable = variable_of(name) if name in Config.model_fields else name
            problems.append(f"{variable}: {detail['msg'].removeprefix('Value error, ')}")
        raise BadSetting("; ".join(problems)) from None


def unknown_variables(environment: dict[str, str]) -> list[str]:
    """Variables with our prefix that no setting reads: most likely misspelt."""
    known = {variable_of(name) for name in Config.model_fields}
    return sorted(
        name for name in environment if name.upper().startswith(ENV_PREFIX) and name.upper() not in known
    )


@cache
def _config() -> Config:
    return load()


def __getattr__(name: str) -> Any:
    # `from store_service.config import config` works as it always has, but reads nothing before it is used.
    if name == "config":
        return _config()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
