"""A plain implementation of searches, and a comparison of the search index with the tables.

The implementation shares nothing with that of the service: it finds the scripts by the names of characters,
and compares texts character by character, without pairs of characters.
"""

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from sqlalchemy import text as sql

from store_service.database.connect import is_sqlite
from store_service.database.search_entries import Entry, fields_of
from store_service.search import tokenize
from tests.support.database import database_connection
from tests.support.errors import received_error
from tests.support.timeouts import scaled_timeout

_SPACELESS = (
    *("CJK ", "IDEOGRAPHIC", "HANGZHOU", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO", "VERTICAL KANA"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "KANGXI"),
)
_MARK_NAMES = ("COMBINING ", "HEBREW POINT", "HEBREW ACCENT", "HEBREW MARK", "VARIATION SELECTOR")
_ARABIC_SIGNS = ("FATHA", "DAMMA", "KASRA", "SHADDA", "SUKUN", "TATWEEL", "SUPERSCRIPT ALEF")


@dataclass(frozen=True)
class Unit:
    """A word, or a character of a script without spaces."""

    text: str
    is_spaceless: bool = False
    """Whether it is a character of such a script."""
    is_joined: bool = False
    """Whether it directly follows another character of such a script."""


def _folded(character: str) -> str:
    if unicodedata.category(character) == "Cf" or character in "\u3099\u309a":
        return ""
    decomposed = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", character.casefold()))
    kept = ""
    for it in decomposed:
        name = unicodedata.name(it, "")
        is_sign = name.startswith("ARABIC ") and any(name.split(" ", 1)[1] == sign for sign in _ARABIC_SIGNS)
        is_tanwin = name in ("ARABIC FATHATAN", "ARABIC DAMMATAN", "ARABIC KASRATAN")
        is_accent = name.startswith(_MARK_NAMES) and it not in "\u3099\u309a"
        if not (is_accent or is_sign or is_tanwin):
            kept += it
    return unicodedata.normalize("NFC", kept)


def units(text: str) -> list[Unit]:
    """Returns the units of a text."""
    found: list[Unit] = []
    word = ""
    was_spaceless = False
    folded = "".join(_folded(it) for it in unicodedata.normalize("NFKC", text))
    for character in f"{folded} ":
        is_part = unicodedata.category(character)[0] in "LMN"
        is_spaceless = is_part and unicodedata.name(character, "").startswith(_SPACELESS)
        if word and (is_spaceless or not is_part):
            found.append(Unit(word))
            word = ""
        if is_spaceless:
            found.append(Unit(character, is_spaceless=True, is_joined=was_spaceless))
        elif is_part:
            word += character
        was_spaceless = is_spaceless
    return found


@dataclass(frozen=True)
class Term:
    """A word or phrase of a query."""

    text: str
    is_quoted: bool = False
    is_prefix: bool = False
    is_excluded: bool = False

    def __str__(self) -> str:
        text = f'"{self.text}"' if self.is_quoted else self.text
        return f"{'-' if self.is_excluded else ''}{text}{'*' if self.is_prefix else ''}"

    def is_in(self, text: Sequence[Unit]) -> bool:
        """Whether a text has the term."""
        wanted = units(self.text)
        return any(self._is_at(text[n : n + len(wanted)], wanted) for n in range(len(text)))

    def _is_at(self, found: Sequence[Unit], wanted: Sequence[Unit]) -> bool:
        if len(found) < len(wanted):
            return False
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            if index and one.is_joined != other.is_joined:
                return False
            # At the end of a phrase, a run without spaces may be the beginning of a longer one.
            is_prefix = index == len(wanted) - 1 and (self.is_prefix or other.is_spaceless)
            if one.text != other.text and not (is_prefix and one.text.startswith(other.text)):
                return False
        return True


def matches(body: str, terms: Sequence[Term]) -> bool:
    """Whether a body matches a query."""
    text = units(body)
    return all(it.is_in(text) != it.is_excluded for it in terms)


def index_differences(database_url: str) -> dict[str, Any]:
    """Returns what a search index has that differs from the posts and comments; empty if it agrees."""
    on_sqlite = is_sqlite(database_url)
    key, tokens = ("rowid", "tokens") if on_sqlite else ("id", "CAST(tokens AS text)")
    as_stored = sql("SELECT :it" if on_sqlite else "SELECT CAST(CAST(:it AS tsvector) AS text)")
    found: dict[str, Any] = {}
    with database_connection(database_url) as connection:
        for table, more, condition in (
            ("post", "0, 0", ""),
            ("comment", "post_id, reply_to_id", "WHERE delete_time IS NULL"),
        ):
            rows = connection.execute(
                sql(f"SELECT id, body, author, labels, {more} FROM {table}s {condition}")
            )
            expected = {}
            for id, body, author, labels, post_id, reply_to_id in rows.all():
                entry = Entry(id, tokenize(body), fields_of(labels, author, post_id, reply_to_id))
                if entry.words:
                    it = entry.on_sqlite() if on_sqlite else entry.on_postgresql()
                    expected[id] = connection.scalar(as_stored, {"it": it})
            stored = dict(map(tuple, connection.execute(sql(f"SELECT {key}, {tokens} FROM {table}_search"))))
            for id in stored.keys() | expected.keys():
                if stored.get(id) != expected.get(id):
                    found[f"{table} {id}"] = (stored.get(id), expected.get(id))
            if on_sqlite:
                # Fails if the index of FTS5 differs from its rows.
                connection.execute(
                    sql(f"INSERT INTO {table}_search ({table}_search) VALUES ('integrity-check')")
                )
    return found


async def when_ready(call: Callable[[], Awaitable[Any]]) -> Any:
    """Returns the response of a search, after the index has been built."""
    async with asyncio.timeout(scaled_timeout()):
        while True:
            try:
                return await call()
            except grpc.RpcError as error:
                if received_error(error).reason != "SEARCH_INDEX_NOT_READY":
                    raise
