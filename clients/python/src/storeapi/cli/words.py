"""Messages of the service and of the client, in the words of the command line."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

_WORDS: Final[tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = (
    (r"\b(post|comment)\.body\b", "BODY"),
    (r"\bcomment\.post_id\b", "POST_ID"),
    (r"\b(post|comment)\.id\b", "ID"),
    (r"\bids\[(\d+)\]", lambda found: f"ID argument {int(found[1]) + 1}"),
    (r"\bset (force|tls=)", r"add \1"),
    (r"\bforce\b", "--force"),
    (r"\btls=True\b", "--tls"),
    (r"\btls=False\b", "--no-tls"),
    (r"\bwith initial_state, or with earliest\b", "with --from initial-state, or with --from earliest"),
    (r"\bresume_token:", "--resume-token:"),
    (r"\bresume_token\b", "token"),
    (
        r"\b(request_id|order_by|page_size|allow_missing|api_key|tls_ca|tls_cert|tls_key)\b",
        lambda found: f"--{found[1].replace('_', '-')}",
    ),
)
"""What the API calls things, and what the command calls them."""


def in_words_of_the_command(message: str) -> str:
    """The message with options and arguments instead of the names of fields and parameters."""
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message


def said_by_system(error: OSError | UnicodeError) -> str:
    """What was wrong with a file, without the number and the name that Python puts around it."""
    if isinstance(error, UnicodeError):
        return "it is not UTF-8"
    return error.strerror or errno.errorcode.get(error.errno or 0, "") or str(error)
