"""The file `.env` with settings."""

import io
from pathlib import Path

from dotenv.parser import Binding, parse_stream

from store_service.errors import BadSetting

ENV_FILE = ".env"
"""Name of the file, in the folder in which the service is started."""


def variables_of_file() -> set[str]:
    """Returns the names of all variables in the file; an empty set if there is no file.

    Raises:
        BadSetting: The file cannot be read, or a line is invalid. The text has the number of the line and
            nothing of its content.
    """
    file = Path(ENV_FILE)
    # A pipe can be read only once, which pydantic does.
    if not file.is_file():
        return set()
    try:
        content = file.read_bytes()
        text = content.decode()
    except OSError as error:
        raise BadSetting(f"cannot read the file {ENV_FILE}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = 1 + content.count(b"\n", 0, error.start)
        raise BadSetting(f"{ENV_FILE}: line {line} is not UTF-8") from None
    names = set()
    for binding in parse_stream(io.StringIO(text, newline=None)):
        if binding.error:
            raise BadSetting(f"{ENV_FILE}: line {_line_number(binding)} is not NAME=value")
        if binding.key is not None:
            names.add(binding.key)
    return names


def _line_number(binding: Binding) -> int:
    """Returns the line of a binding. The parser counts the blank lines before a binding as part of it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
