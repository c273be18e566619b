"""Escapes control characters in texts, so that they cannot control a terminal."""

import unicodedata

# These change the text direction, so that a line reads differently than it is.
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def one_line(text: str) -> str:
    """The text as one line: line ends and control characters are escaped, backslashes are not."""
    return "".join(_escaped(it) if _is_control(it) else it for it in text)


def field(text: str) -> str:
    """The text as a field of a line, reversible: backslashes are escaped too."""
    return "".join(_escaped(it) if it == "\\" or _is_control(it) else it for it in text)


def lines(text: str) -> str:
    """The text with its lines; all other control characters are escaped."""
    return "\n".join(one_line(line.expandtabs()) for line in text.split("\n"))


def in_json(line: str) -> str:
    """An equivalent line of JSON: control characters are escaped as JSON defines."""
    return "".join(f"\\u{ord(it):04x}" if _is_control(it) else it for it in line)


def _is_control(character: str) -> bool:
    return character in _TURNS or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    number = ord(character)
    return _SHORT.get(character) or (f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}")
