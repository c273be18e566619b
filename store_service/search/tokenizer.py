"""Splits texts into tokens. Documents and queries have the same tokens on both engines.

A text is normalized (NFKC), its case is folded, and accents are removed. A word is a run of letters, digits
and marks. Scripts without spaces between words are split into pairs of characters: a run c1 c2 c3 has the
tokens c1c2, c2c3 and c3. So each part of the run is a sequence of tokens, and each character the beginning of
one.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import accumulate

VERSION = f"1-{unicodedata.unidata_version}"
"""Changes with the tokens of texts. The tables of Unicode are part of it."""

MAX_TOKEN_CHARACTERS = 40
"""Longer words are cut."""

MAX_TOKENS = 65_536
"""Maximum number of tokens of a text. What follows cannot be found. The default maximum size of a body never
reaches this or the next limit."""

MAX_TOKEN_BYTES = 262_144
"""Maximum bytes of all tokens of a text, as UTF-8."""

_REMOVED = re.compile(
    # Accents of Latin, Greek and Cyrillic.
    "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
    # Hebrew points, which most texts leave out.
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"
    # Arabic vowel signs, which most texts leave out, and tatweel, which only stretches a word.
    "\u0640\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed"
    # Variation selectors.
    "\u180b-\u180d\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)

_VOICE_MARKS = (0x3099, 0x309A)
"""Marks of Kana, which are removed where they do not combine with the character before them."""

_CLASS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1100-\u11ff\u3131-\u318e\ua960-\ua97f\uac00-\ud7ff"  # Hangul
    "\u3040-\u30ff\u31f0-\u31ff\U0001b000-\U0001b16f"  # Hiragana, Katakana
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b"  # Han
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_SPACELESS = re.compile(f"[{_CLASS}]+")
_PARTS = re.compile(f"[{_CLASS}]+|[^{_CLASS}]+")
_WORDS = re.compile(r"[^ ]+")


MAX_CACHED_CHARACTERS = 20_000
"""More than the characters of any language. All characters of Unicode would need 150 MB."""


class _Folding(dict[int, str]):
    """The folded form of each character: letters, digits and marks, and a space for everything else."""

    def __missing__(self, code: int) -> str:
        if len(self) >= MAX_CACHED_CHARACTERS:
            self.clear()
        if code in _VOICE_MARKS:
            self[code] = ""
            return ""
        folded = unicodedata.normalize("NFKC", chr(code)).casefold()
        folded = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", folded))
        folded = unicodedata.normalize("NFC", _REMOVED.sub("", folded))
        self[code] = "".join(map(_letter, folded))
        return self[code]


def _letter(character: str) -> str:
    category = unicodedata.category(character)
    # Format characters, such as soft hyphens, are inside of words.
    return "" if category == "Cf" else character if category[0] in "LNM" else " "


_FOLDING = _Folding()


def tokenize(text: str) -> list[str]:
    """Returns the tokens of a text. Takes about 20 microseconds for 1000 characters of ASCII."""
    words = _folded(text).split(" ")
    if text.isascii():
        tokens = [
            word if len(word) <= MAX_TOKEN_CHARACTERS else word[:MAX_TOKEN_CHARACTERS]
            for word in words
            if word
        ]
    else:
        tokens = [token for word in words for token in _tokens_of(word)]
    return _limited(tokens) if len(text) > MAX_TOKENS else tokens


def _folded(text: str) -> str:
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return text.translate(_FOLDING)


def _limited(tokens: list[str]) -> list[str]:
    sizes = accumulate(len(token.encode()) for token in tokens[:MAX_TOKENS])
    return tokens[: sum(size <= MAX_TOKEN_BYTES for size in sizes)]


def _tokens_of(word: str) -> list[str]:
    if word.isascii() or not _SPACELESS.search(word):
        return [word[:MAX_TOKEN_CHARACTERS]] if word else []
    return [token for part in _PARTS.findall(word) for token in _tokens_of_part(part)]


def _tokens_of_part(part: str) -> list[str]:
    if not _SPACELESS.match(part):
        return [part[:MAX_TOKEN_CHARACTERS]]
    return [part[n : n + 2] for n in range(len(part))]


def phrase_tokens(text: str) -> tuple[list[str], bool]:
    """Returns the tokens of a phrase of a query, and whether the last one is a prefix.

    At the end of a phrase, a run of a script without spaces may be the beginning of a longer one.
    """
    tokens = tokenize(text)
    if not tokens or len(tokens[-1]) > 1 or not _SPACELESS.match(tokens[-1]):
        return tokens, False
    if (
        len(tokens) > 1
        and len(tokens[-2]) == 2
        and tokens[-2][1] == tokens[-1]
        and _SPACELESS.fullmatch(tokens[-2])
    ):
        return tokens[:-1], False
    return tokens, True


def is_pair(token: str) -> bool:
    """Whether a token is a pair of characters of a script without spaces."""
    return len(token) == 2 and _SPACELESS.fullmatch(token) is not None


def token_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yields where each token of `tokenize` begins and ends in the text."""
    if text.isascii():
        yield from (word.span() for word in _WORDS.finditer(text.translate(_FOLDING)))
        return
    folded, starts, ends = _places(text)
    for word in _WORDS.finditer(folded):
        for part in _PARTS.finditer(word[0]):
            first, last = word.start() + part.start(), word.start() + part.end()
            if _SPACELESS.match(part[0]):
                for n in range(first, last):
                    yield starts[n], ends[min(n + 1, last - 1)]
            else:
                yield starts[first], ends[last - 1]


def _places(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """Returns the folded form of a text, and where in the text each of its characters begins and ends."""
    if unicodedata.is_normalized("NFKC", text) and all(len(_FOLDING[ord(it)]) == 1 for it in set(text)):
        return text.translate(_FOLDING), range(len(text)), range(1, len(text) + 1)
    pieces, folded = _pieces(text)
    starts: list[int] = []
    ends: list[int] = []
    for start, end, piece in pieces:
        if piece:
            starts += [start] * len(piece)
            ends += [end] * len(piece)
        elif ends:
            # Removed marks belong to the character before them.
            ends[-1] = end
    return folded, starts, ends


def _pieces(text: str) -> tuple[list[tuple[int, int, str]], str]:
    """Returns parts of a text, as start, end and folded form, and the joined folded form.

    A part is a character, or several that are normalized together.
    """
    if text.isascii() or unicodedata.is_normalized("NFKC", text):
        pieces = [(n, n + 1, _FOLDING[ord(it)]) for n, it in enumerate(text)]
    else:
        pieces = [
            (it.start(), it.end(), unicodedata.normalize("NFKC", it[0]).translate(_FOLDING))
            for it in _clusters(text)
        ]
    return pieces, "".join([piece for _, _, piece in pieces])


def _clusters(text: str) -> Iterator[re.Match[str]]:
    """Yields each character with those after it that can combine with it."""
    # Marks, the vowels and final consonants of Hangul, and the voice marks of halfwidth Katakana.
    marks = {it for it in set(text) if unicodedata.category(it)[0] == "M" or it in "\uff9e\uff9f"}
    followers = re.escape("".join(sorted(marks))) + "\u1160-\u11ff"
    return re.finditer(f"(?s).[{followers}]*", text)
