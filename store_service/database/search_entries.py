"""Rows of the indexes for full-text search, and the queries that the engines execute.

The ids are divided into blocks of BLOCK_IDS. Each token is stored with the character of its block before it.
So one part of an index has the tokens of one block. A query reads the parts of the blocks that it names, and
no statement reads the whole index, even for a prefix of all words (docs/decisions/0049).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from store_service.model import ResourceFilter, labels_from_text
from store_service.search import Phrase, SearchQuery

BLOCK_IDS = 65_536
"""Number of ids of a block."""

GROUP_IDS = 2048
"""Number of ids of a group. On PostgreSQL each row has a token of its group, because a GIN index cannot
return the rows of a block in the order of ids."""

_FIRST_BLOCK, _BLOCKS = 0xE100, 6144
"""The characters of blocks, of the private use area, which is in no token. Blocks with the same character are
distinguished by their ids."""

_MARK = "\ue000"
"""Begins the tokens that are not words."""

_LONG = f"{_MARK}x"
"""The token of a row on PostgreSQL that has no positions."""

MAX_POSITION = 16_000
"""Rows on PostgreSQL with more tokens have no positions: a `tsvector` has up to 16,383."""

MAX_OCCURRENCES = 250
"""Same for occurrences of one token, of which a `tsvector` has up to 255."""


def _block(id: int) -> str:
    return chr(_FIRST_BLOCK + id // BLOCK_IDS % _BLOCKS)


def _hashed(kind: str, text: str) -> str:
    return f"{_MARK}{kind}{blake2b(text.encode(), digest_size=8).hexdigest()}"


def filter_tokens(
    *, post_id: int, author: str, labels: Iterable[tuple[str, str]], reply_to_id: int | None
) -> list[str]:
    """Returns the tokens of the fields by which searches filter. So few rows are read that do not match."""
    tokens = [_hashed("l", f"{key}={value}") for key, value in labels]
    if post_id:
        tokens.append(f"{_MARK}p{post_id:x}")
    if author:
        tokens.append(_hashed("a", author))
    if reply_to_id:
        tokens.append(f"{_MARK}r{reply_to_id:x}")
    return tokens


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of an index."""

    id: int
    words: Sequence[str]
    """The tokens of the body."""
    fields: Sequence[str]
    """The tokens of the other fields."""

    def on_sqlite(self) -> str:
        """Returns the text for FTS5."""
        block = _block(self.id)
        return " ".join([block + it for it in (*self.words, *self.fields)])

    def on_postgresql(self) -> str:
        """Returns the `tsvector`."""
        block = _block(self.id)
        positions: dict[str, list[int]] = {}
        for position, word in enumerate(self.words, 1):
            positions.setdefault(word, []).append(position)
        fields = [*self.fields, f"{_MARK}g{self.id // GROUP_IDS:x}"]
        if len(self.words) <= MAX_POSITION and all(len(it) <= MAX_OCCURRENCES for it in positions.values()):
            words = [f"'{block}{it}':{','.join(map(str, at))}" for it, at in positions.items()]
        else:
            words = [f"'{block}{it}'" for it in positions]
            fields.append(_LONG)
        return " ".join([*words, *[f"'{block}{it}'" for it in fields]])


@dataclass(frozen=True, slots=True)
class Match:
    """What the rows of an index must have."""

    query: SearchQuery
    fields: Sequence[str]

    def on_sqlite(self, first_id: int, last_id: int) -> str:
        """Returns the query of FTS5 for a range of ids. Tokens are quoted, so none is syntax."""
        return " OR ".join([self._fts5(_block(id)) for id in range(first_id, last_id + 1, BLOCK_IDS)])

    def _fts5(self, block: str) -> str:
        def phrase(it: Phrase) -> str:
            return f'"{" ".join([block + token for token in it.tokens])}"{"*" if it.is_prefix else ""}'

        required = " AND ".join([phrase(it) for it in (*self.query.required, *_phrases(self.fields))])
        if not self.query.excluded:
            return f"({required})"
        return f"(({required}) NOT ({' OR '.join([phrase(it) for it in self.query.excluded])}))"

    def on_postgresql(self, first_id: int, last_id: int) -> str:
        """Returns the `tsquery` for a range of ids, all in one block unless the range consists of blocks."""
        blocks = [self._tsquery(_block(id)) for id in range(first_id, last_id + 1, BLOCK_IDS)]
        query = " | ".join(blocks)
        if last_id - first_id + 1 < BLOCK_IDS:
            groups = range(first_id // GROUP_IDS, last_id // GROUP_IDS + 1)
            block = _block(first_id)
            tokens = [f"'{block}{_MARK}g{it:x}'" for it in groups]
            query = f"({query}) & ({' | '.join(tokens)})"
        return query

    def _tsquery(self, block: str) -> str:
        def token(it: str, *, is_prefix: bool = False) -> str:
            return f"'{block}{it}'{':*' if is_prefix else ''}"

        conditions = [token(it) for it in self.fields]
        for phrase in self.query.required:
            *first, last = phrase.tokens
            each = [*map(token, first), token(last, is_prefix=phrase.is_prefix)]
            if len(each) == 1:
                conditions += each
            else:
                conditions.append(f"({' <-> '.join(each)} | {' & '.join([token(_LONG), *each])})")
        # Other exclusions are checked with the text: without positions they would be wrong.
        conditions += [
            f"!{token(it.tokens[0], is_prefix=it.is_prefix)}"
            for it in self.query.excluded
            if len(it.tokens) == 1
        ]
        return f"({' & '.join(conditions)})"


def _phrases(tokens: Iterable[str]) -> list[Phrase]:
    return [Phrase((it,)) for it in tokens]


def match_of(query: SearchQuery, filter: ResourceFilter, post_id: int) -> Match:
    """Returns what the rows of an index must have for a query and a filter. A time is not in the index."""
    return Match(
        query,
        filter_tokens(
            post_id=post_id, author=filter.author, labels=filter.labels, reply_to_id=filter.reply_to_id
        ),
    )


def fields_of(labels: str, author: str, post_id: int, reply_to_id: int) -> list[str]:
    """Returns the tokens of the fields of a stored resource; see `filter_tokens`."""
    return filter_tokens(
        post_id=post_id, author=author, labels=labels_from_text(labels).items(), reply_to_id=reply_to_id
    )
