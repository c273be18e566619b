"""Makes texts acceptable for the service: its limits are those of a service with default settings."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from typing import Final

MAX_BODY_BYTES: Final = 65_536
"""Maximum size of a body in bytes of UTF-8 (`STORE_MAX_BODY_BYTES` of the service)."""
MAX_IDENTIFIER_BYTES: Final = 256
"""Maximum size of an author, an external id and the value of a label, in bytes of UTF-8."""
MAX_DEPTH: Final = 64
"""Maximum depth of a reply (`STORE_MAX_REPLY_DEPTH` of the service)."""

_INVALID: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f]+")
_EMAIL: Final = re.compile(r"[^\s@]+@[^\s@]+\.[^\s@]+")


def without_invalid_characters(text: str) -> str:
    """The text with U+FFFD for control characters, surrogates and noncharacters; tabs and line ends stay."""
    return _INVALID.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The text without control characters and line ends, as authors and labels must be."""
    return _CONTROL.sub(" ", without_invalid_characters(text)).strip()


def shortened(text: str, max_bytes: int) -> str:
    """The text, or the longest beginning that has at most so many bytes of UTF-8."""
    if len(text) * 4 <= max_bytes:
        return text
    encoded = text.encode()
    return text if len(encoded) <= max_bytes else encoded[:max_bytes].decode(errors="ignore")


def is_address(text: str) -> bool:
    """Whether a text is an e-mail address or an IP address."""
    if _EMAIL.search(text):
        return True
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def external_id(prefix: str, id: str) -> str:
    """The external id: PREFIX:ID, or a hash of the id if that would be too long or not one line."""
    plain = f"{prefix}:{id}"
    if plain == one_line(plain) and len(plain.encode()) <= MAX_IDENTIFIER_BYTES:
        return plain
    return f"{prefix}:sha256:{hashlib.sha256(id.encode(errors='replace')).hexdigest()}"
