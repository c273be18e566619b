"""Parses queries, and matches them with the tokens of a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from store_service.search.tokenizer import MAX_TOKEN_CHARACTERS, phrase_tokens

MAX_QUERY_BYTES = 1024
"""Maximum length of a query, in bytes of UTF-8."""

MAX_QUERY_TERMS = 16
"""Maximum number of words and phrases of a query, excluded ones included."""

MAX_QUERY_TOKENS = 64
"""Maximum number of tokens of a query. A script without spaces has one token for each character."""

_QUOTES = {0x201C: '"', 0x201D: '"', 0x201E: '"'}
"""Typographic quotes, which some keyboards enter."""


class QuerySyntaxError(Exception):
    """A query is not valid. The text says why and where."""

    def __init__(self, problem: str, position: int | None = None) -> None:
        """Takes the problem, and the index of the character where it is."""
        super().__init__(problem if position is None else f"{problem} at character {position + 1}")


@dataclass(frozen=True, slots=True)
class Phrase:
    """Consecutive tokens of a text."""

    tokens: tuple[str, ...]
    is_prefix: bool = False
    """Whether the last token is the beginning of a token."""

    def occurrences(self, text: Sequence[str]) -> Iterator[int]:
        """Yields the indexes at which the phrase begins in the tokens of a text."""
        *first, last = self.tokens
        count = len(first)
        for index in range(len(text) - count):
            if (text[index + count].startswith(last) if self.is_prefix else text[index + count] == last) and (
                not count or list(text[index : index + count]) == first
            ):
                yield index

    def is_in(self, text: Sequence[str]) -> bool:
        """Whether the phrase occurs in the tokens of a text."""
        if not self.is_prefix and self.tokens[-1] not in text:
            return False
        return next(self.occurrences(text), None) is not None


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """A parsed query."""

    required: tuple[Phrase, ...]
    """The phrases that a text must have; at least one."""
    excluded: tuple[Phrase, ...] = ()
    """The phrases that a text must not have."""

    def matches(self, text: Sequence[str]) -> bool:
        """Whether a text with these tokens matches."""
        return all(it.is_in(text) for it in self.required) and not any(it.is_in(text) for it in self.excluded)

    def score(self, text: Sequence[str]) -> int:
        """Returns the rank of a text that matches: it grows with each occurrence of a phrase, by less each
        time, and less in a long text. No other text changes it."""
        half = 0.5 + len(text) / 100
        counts = [sum(1 for _ in it.occurrences(text)) for it in self.required]
        return round(1_000_000 * sum(count / (count + half) for count in counts))


def parse(text: str) -> SearchQuery:
    """Parses a query: words, "phrases", prefixes*, and -exclusions of each.

    Terms without letters and digits are ignored.

    Raises:
        QuerySyntaxError: The query is not valid, or exceeds a limit.
    """
    if len(text.encode()) > MAX_QUERY_BYTES:
        raise QuerySyntaxError(f"must not be longer than {MAX_QUERY_BYTES} bytes of UTF-8")
    # Dictionaries, because terms can be repeated.
    required: dict[Phrase, None] = {}
    excluded: dict[Phrase, None] = {}
    token_count = term_count = 0
    for position, term, is_excluded, is_prefix in _terms(text.translate(_QUOTES)):
        tokens, ends_in_run = phrase_tokens(term)
        if not tokens:
            continue
        term_count += 1
        token_count += len(tokens)
        if term_count > MAX_QUERY_TERMS:
            raise QuerySyntaxError(f"must not have more than {MAX_QUERY_TERMS} words and phrases", position)
        if token_count > MAX_QUERY_TOKENS:
            raise QuerySyntaxError(f"must not have more than {MAX_QUERY_TOKENS} words", position)
        phrase = Phrase(tuple(tokens), ends_in_run or (is_prefix and len(tokens[-1]) < MAX_TOKEN_CHARACTERS))
        (excluded if is_excluded else required)[phrase] = None
    if not required:
        raise QuerySyntaxError(
            "must have a word that is not excluded" if excluded else "must have a letter or a digit"
        )
    return SearchQuery(tuple(required), tuple(excluded))


def _terms(text: str) -> Iterator[tuple[int, str, bool, bool]]:
    """Yields the terms of a query: position, text, whether it is excluded, and whether it is a prefix."""
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        begin = position
        is_excluded = text[position] == "-"
        position += is_excluded
        if is_excluded and (position == len(text) or text[position].isspace()):
            raise QuerySyntaxError("expected a word or phrase after the -", begin)
        if text[position] == '"':
            end = text.find('"', position + 1)
            if end < 0:
                raise QuerySyntaxError("the phrase has no closing quote; it begins", position)
            term, position = text[position + 1 : end], end + 1
        else:
            end = position
            while end < len(text) and text[end] != '"' and not text[end].isspace():
                end += 1
            term, position = text[position:end], end
            if term.endswith("*"):
                yield begin, term, is_excluded, True
                continue
        is_prefix = text.startswith("*", position)
        position += is_prefix
        yield begin, term, is_excluded, is_prefix
