"""Translates messages of the service and of the client to the names of options and arguments."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import Final

_OPTIONS: Final = {
    "author": "--author",
    "labels": "--label",
    "external_id": "--external-id",
    "reply_to_id": "--reply-to",
    "create_time_from": "--created-from",
    "create_time_before": "--created-before",
    "show_deleted": "--show-deleted",
}
"""The options for fields of resources and filters."""

_WORDS: Final[tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]] = (
    (
        rf"\b(?:post|comment|(?:post_|comment_)?filter)\.({'|'.join(_OPTIONS)})\b",
        lambda found: _OPTIONS[found[1]],
    ),
    (r"\b(external_id|create_time_from)\b", lambda found: _OPTIONS[found[1]]),
    (r"\b(?:post|comment)\.(\w+)\b", lambda found: found[1].upper()),
    (r"\bids\[(\d+)\]", lambda found: f"ID argument {int(found[1]) + 1}"),
    (r"\bset (force|return_existing|tls=)", r"add \1"),
    (r"\bforce\b", "--force"),
    (r"\btls=True\b", "--tls"),
    (r"\btls=False\b", "--no-tls"),
    (r"\bwith initial_state, or with earliest\b", "with --from initial-state, or with --from earliest"),
    (r"\bresume_token:", "--resume-token:"),
    (r"\bresume_token\b", "token"),
    (
        r"\b(request_id|return_existing|order_by|page_size|allow_missing|api_key|tls_ca|tls_cert|tls_key)\b",
        lambda found: f"--{found[1].replace('_', '-')}",
    ),
)
"""Names of the API, and the names that the command has for them."""


def with_option_names(message: str) -> str:
    """The message with options and arguments instead of the names of fields and parameters."""
    for pattern, words in _WORDS:
        message = re.sub(pattern, words, message)
    return message


def os_error_reason(error: OSError | UnicodeError) -> str:
    """The reason of a failed file operation, without the number and the file name that Python adds."""
    if isinstance(error, UnicodeError):
        return "not valid UTF-8"
    return error.strerror or errno.errorcode.get(error.errno or 0, "") or str(error)
