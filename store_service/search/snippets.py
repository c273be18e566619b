"""The part of a text around the matches of a query, with the matches marked."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from store_service.search.query import SearchQuery
from store_service.search.tokenizer import is_pair, token_spans

MAX_CHARACTERS = 240
"""Maximum length of a snippet, without the ellipses."""

CHARACTERS_BEFORE = 60
"""Approximate number of characters before the first match."""

ELLIPSIS = "…"


@dataclass(frozen=True, slots=True)
class SnippetPart:
    """A part of a snippet."""

    text: str
    is_match: bool = False


def snippet(text: str, tokens: Sequence[str], query: SearchQuery) -> tuple[SnippetPart, ...]:
    """Returns the parts of the snippet of a text that matches. Together they are a part of the text, with an
    ellipsis where it is cut."""
    found = sorted(
        [
            (index, index + len(phrase.tokens) - 1, phrase.is_prefix and len(phrase.tokens[-1]) == 1)
            for phrase in query.required
            for index in islice(phrase.occurrences(tokens), MAX_CHARACTERS)
        ]
    )
    first = found[0][0] if found else 0
    # A token has at least one character, so later ones are outside of the snippet.
    spans = list(islice(token_spans(text), first + MAX_CHARACTERS))
    begin = _begin(spans, first) if first < len(spans) else 0
    end = _end(text, begin)
    ranges: list[tuple[int, int]] = []
    for index, last, is_character in found:
        if last >= len(spans):
            continue
        start, stop = spans[index][0], spans[last][1]
        if is_character and is_pair(tokens[last]) and last + 1 < len(spans):
            stop = spans[last + 1][0]
        if ranges and start <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], max(stop, ranges[-1][1])
        else:
            ranges.append((start, stop))
    return tuple(_parts(text, begin, end, ranges))


def _begin(spans: Sequence[tuple[int, int]], first: int) -> int:
    """Returns the beginning of the first word that is at most CHARACTERS_BEFORE before a match."""
    start = spans[first][0]
    if start <= CHARACTERS_BEFORE:
        return 0
    return min(it for it, _ in spans[: first + 1] if it >= start - CHARACTERS_BEFORE)


def _end(text: str, begin: int) -> int:
    """Returns the end of the snippet, if possible not in a word."""
    end = begin + MAX_CHARACTERS
    if end >= len(text):
        return len(text)
    space = max(text.rfind(it, begin + MAX_CHARACTERS * 3 // 4, end) for it in (" ", "\n", "\t"))
    return space if space > 0 else end


def _parts(text: str, begin: int, end: int, ranges: Sequence[tuple[int, int]]) -> list[SnippetPart]:
    parts = [SnippetPart(ELLIPSIS)] if begin else []
    position = begin
    for start, stop in ranges:
        start, stop = max(start, position), min(stop, end)
        if start >= stop:
            continue
        if position < start:
            parts.append(SnippetPart(text[position:start]))
        parts.append(SnippetPart(text[start:stop], is_match=True))
        position = stop
    if position < end:
        parts.append(SnippetPart(text[position:end]))
    if end < len(text):
        parts.append(SnippetPart(ELLIPSIS))
    return parts
