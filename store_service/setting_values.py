"""Types of settings with a check, and the messages for invalid values.

Each check returns the value, or raises ValueError with a text that follows the name of the variable.
"""

import importlib.util
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import ErrorDetails

from store_service import database_url
from store_service.address import Address, parse_networks

_FILE_URL = re.compile(r"sqlite:///(?!:memory:)[^?]+", re.DOTALL)
"""URLs of files. All others are parsed, for a message that says what is wrong."""


def _check_database_url(value: str) -> str:
    """Accepts a URL of an SQLite file or of a PostgreSQL database."""
    if value.startswith("postgresql://"):
        if importlib.util.find_spec("asyncpg") is None or importlib.util.find_spec("psycopg") is None:
            raise ValueError("needs the extra store-service[postgresql], which is not installed")
        database_url.parse(value)
        return value
    if value.startswith("postgres://"):
        raise ValueError("must start with postgresql://, not postgres://")
    if _FILE_URL.fullmatch(value):
        return value
    # Imported late: commands such as `health` do not need it, and its import takes a third of their CPU time.
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(value)
    except (ArgumentError, ValueError):
        raise ValueError("must be a URL such as sqlite:///store.db") from None
    if url.drivername != "sqlite":
        raise ValueError("must start with sqlite:/// or postgresql://")
    if url.database in (None, "", ":memory:") or url.query:
        raise ValueError("must name only a file, such as sqlite:///store.db")
    return value


def _check_read_urls(value: str) -> str:
    """Accepts URLs of PostgreSQL databases, separated by white space, and an empty value."""
    for url in value.split():
        if not url.startswith("postgresql://") or url.count("://") > 1:
            raise ValueError("must start with postgresql://; several URLs are separated by spaces")
        _check_database_url(url)
    return value


def _check_optional_postgresql_url(value: str) -> str:
    """Accepts a URL of a PostgreSQL database, and an empty value."""
    if value and not value.startswith("postgresql://"):
        raise ValueError("must start with postgresql://")
    return _check_database_url(value) if value else value


def _check_address(value: str) -> str:
    """Accepts HOST:PORT and unix:PATH."""
    Address.parse(value)
    return value


def _check_optional_address(value: str) -> str:
    """Accepts HOST:PORT, unix:PATH and an empty value."""
    return _check_address(value) if value else value


def _check_networks(value: str) -> str:
    """Accepts addresses and networks, separated by commas, and an empty value."""
    parse_networks(value)
    return value


def _check_file(value: str) -> str:
    """Accepts the path of an existing file, and an empty value."""
    # The message does not repeat the value, which may be a secret in the place of a path.
    if value and not Path(value).is_file():
        raise ValueError("the file does not exist")
    return value


def _check_file_or_new_file(value: str) -> str:
    """Accepts the path of a file in an existing folder, and an empty value."""
    if value and not Path(value).parent.is_dir():
        raise ValueError("the folder of the file does not exist")
    return value


def _check_file_for_jwt(value: str) -> str:
    """Accepts the path of an existing file, if the extra for tokens is installed, and an empty value."""
    if value and importlib.util.find_spec("jwt") is None:
        raise ValueError("needs the extra store-service[jwt], which is not installed")
    return _check_file(value)


def _check_trimmed(value: str) -> str:
    """Accepts a text without leading and trailing white space."""
    if value != value.strip():
        raise ValueError("must not begin or end with white space")
    return value


def _check_tracing(value: bool) -> bool:
    """Accepts true if the extra for tracing is installed."""
    if value:
        try:
            found = importlib.util.find_spec("opentelemetry.sdk.trace")
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ValueError("needs the extra store-service[telemetry], which is not installed")
    return value


DatabaseUrl = Annotated[str, AfterValidator(_check_database_url)]
ReadUrls = Annotated[str, AfterValidator(_check_read_urls)]
OptionalPostgresqlUrl = Annotated[str, AfterValidator(_check_optional_postgresql_url)]
ListenAddress = Annotated[str, AfterValidator(_check_address)]
OptionalAddress = Annotated[str, AfterValidator(_check_optional_address)]
Networks = Annotated[str, AfterValidator(_check_networks)]
ExistingFile = Annotated[str, AfterValidator(_check_file)]
NewOrExistingFile = Annotated[str, AfterValidator(_check_file_or_new_file)]
JwtFile = Annotated[str, AfterValidator(_check_file_for_jwt)]
TrimmedText = Annotated[str, AfterValidator(_check_trimmed)]
TracingFlag = Annotated[bool, AfterValidator(_check_tracing)]


_MESSAGES = {
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "greater_than": "must be more than {gt:,}",
    "greater_than_equal": "must be at least {ge:,}",
    "less_than_equal": "must be at most {le:,}",
    "literal_error": "must be {expected}",
}
"""Messages for values that pydantic rejects, by pydantic's error type."""


def error_message(detail: ErrorDetails) -> str:
    """Returns the message for an invalid value; for a ValueError of a check, its text."""
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    limits = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in detail.get("ctx", {}).items()
    }
    return _MESSAGES[detail["type"]].format(**limits).replace("'", "")
