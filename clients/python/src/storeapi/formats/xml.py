"""Reads selected elements of an XML file of any size, and trusts nothing in it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from xml.parsers import expat

from storeapi.formats.records import FormatError
from storeapi.formats.source import CHUNK, Source
from storeapi.formats.texts import MAX_BODY_BYTES, without_invalid_characters

MAX_DEPTH: Final = 64
"""Elements inside each other."""
MAX_NAMES: Final = 1000
"""Different names of elements and attributes, which the parser keeps."""
MAX_NODES: Final = 1000
"""Elements with different paths in one selected element. More are ignored."""
MAX_TOKEN_BYTES: Final = 1 << 20
"""Size of one tag, comment or processing instruction, which the parser keeps until it is complete. Versions
of expat before 2.6 scan it again for each chunk."""

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DECLARATION: Final = re.compile(rb"""^\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
_ENCODING: Final = re.compile(
    r"utf-?8|us-ascii|iso-8859-\d+|windows-125\d|koi8-[ru]|gb2312|gbk|gb18030|big5|shift_jis|euc-(jp|kr)"
)


class Element:
    """A selected element, or an element in it."""

    __slots__ = ("_parts", "_size", "attributes", "children", "line", "name", "parent")

    def __init__(
        self, name: str, attributes: dict[str, str], line: int, parent: Element | None = None
    ) -> None:
        """Begins without text and children."""
        self.name: str = name
        self.attributes: dict[str, str] = attributes
        self.line: int = line
        self.parent: Element | None = parent
        self.children: dict[str, Element] = {}
        self._parts: list[str] = []
        self._size = 0

    @property
    def place(self) -> str:
        """Where it begins."""
        return f"line {self.line}"

    def text(self, *path: str) -> str:
        """The text of the first element at a path below this one, without spaces around it; empty if there is
        none. No more than a body can have is kept."""
        found = self.find(*path)
        return "".join(found._parts).strip() if found else ""

    def attribute(self, name: str, *path: str) -> str:
        """An attribute of the first element at a path; empty if there is none."""
        found = self.find(*path)
        return found.attributes.get(name, "").strip() if found else ""

    def find(self, *path: str) -> Element | None:
        """The first element at a path below this one."""
        found: Element | None = self
        for name in path:
            found = found.children.get(name) if found else None
        return found

    def has_content(self, *path: str) -> bool:
        """Whether there is an element at a path, with text or other elements in it."""
        found = self.find(*path)
        return found is not None and bool(found.children or found.text())

    def append(self, text: str) -> None:
        """Adds text; what is more than a body can have is dropped."""
        if self._size <= MAX_BODY_BYTES:
            self._parts.append(text)
            self._size += len(text)


class _Handler:
    """Builds the selected elements."""

    def __init__(
        self, source: Source, root: str, select: Mapping[str, int], prefixes: Sequence[tuple[str, str]]
    ) -> None:
        self._source = source
        self._root = root
        self._select = select
        self._prefixes = prefixes
        self._short: dict[str, str] = {}
        self._depth = 0
        # The number of elements in each selected element that has begun.
        self._nodes: list[int] = []
        self._current: Element | None = None
        self._ignored = 0
        self.finished: list[Element] = []
        # Names are not interned: a dict of them would grow with the file.
        self.parser = parser = expat.ParserCreate("utf-8", " ", intern=None)
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        # Without a document type there are only the five entities of XML: nothing to expand or to load.
        parser.StartDoctypeDeclHandler = self._document_type

    def _document_type(self, *_: object) -> None:
        raise self.error("a document type (<!DOCTYPE>) is refused; exports have none")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = self._name(name)
        self._depth += 1
        if self._depth == 1 and name != self._root:
            raise self.error(f"expected the element <{self._root}>, found <{name}>")
        if self._depth > MAX_DEPTH:
            raise self.error(f"more than {MAX_DEPTH} elements inside each other")
        parent = self._current
        if self._ignored:
            self._ignored += 1
        elif self._select.get(name) == self._depth:
            self._nodes.append(0)
            self._current = self._element(name, attributes)
        elif parent is not None:
            if name in parent.children or self._nodes[-1] == MAX_NODES:
                self._ignored = 1
                return
            self._nodes[-1] += 1
            self._current = parent.children[name] = self._element(name, attributes)

    def _element(self, name: str, attributes: dict[str, str]) -> Element:
        named = {self._name(key): value for key, value in attributes.items()}
        return Element(name, named, self.parser.CurrentLineNumber, self._current)

    def _end(self, name: str) -> None:
        if self._ignored:
            self._ignored -= 1
        elif self._current is not None:
            if self._select.get(self._current.name) == self._depth:
                self._nodes.pop()
                self.finished.append(self._current)
            self._current = self._current.parent
        self._depth -= 1

    def _text(self, text: str) -> None:
        if self._current is not None and not self._ignored:
            self._current.append(text)

    def _name(self, name: str) -> str:
        """The name with the prefix that the format expects; the file can have another for the namespace."""
        short = self._short.get(name)
        if short is None:
            if len(self._short) >= MAX_NAMES:
                raise self.error(f"more than {MAX_NAMES} different names of elements and attributes")
            namespace, _, local = name.rpartition(" ")
            short = next(
                (prefix + local for start, prefix in self._prefixes if namespace.startswith(start)), name
            )
            self._short[name] = short
        return short

    def error(self, problem: str) -> FormatError:
        return self._source.error(f"line {self.parser.CurrentLineNumber}", problem)


def elements(
    source: Source, *, root: str, select: Mapping[str, int], prefixes: Sequence[tuple[str, str]]
) -> Iterator[Element]:
    """Yields each selected element when it ends. One that is inside another has it as its parent, and is
    not among its children.

    Memory does not grow with the file, except for what a caller keeps. Bytes that are not valid in the
    encoding, and characters that XML does not allow, become U+FFFD.

    Args:
        source: The file.
        root: The name of the outermost element.
        select: The names of the elements, with the depth at which they are; that of the root is 1.
        prefixes: Pairs of the start of a namespace and the prefix for its names; the first match counts.

    Raises:
        FormatError: The file is not well-formed, has a document type, or exceeds a limit of this module.
    """
    handler = _Handler(source, root, select, prefixes)
    parser = handler.parser
    fed = 0
    with source.open() as file:
        try:
            for text in _texts(source, file.read):
                data = text.encode()
                parser.Parse(data, False)
                fed += len(data)
                if fed - max(parser.CurrentByteIndex, 0) > MAX_TOKEN_BYTES + CHUNK:
                    raise handler.error(f"a tag or comment of more than {MAX_TOKEN_BYTES} bytes")
                yield from handler.finished
                handler.finished.clear()
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise source.error(
                f"line {error.lineno}, column {error.offset + 1}",
                f"not well-formed XML ({expat.ErrorString(error.code)}); expected a complete <{root}> file",
            ) from None
    yield from handler.finished


def _texts(source: Source, read: Callable[[int], bytes]) -> Iterator[str]:
    chunk = read(CHUNK)
    bom, encoding = next((it for it in _BOMS if chunk.startswith(it[0])), (b"", ""))
    if not encoding:
        declared = _DECLARATION.match(chunk)
        encoding = declared[1].decode().lower() if declared else "utf-8"
        if not _ENCODING.fullmatch(encoding):
            raise source.error("line 1", f"the encoding {encoding!r} is not supported; expected UTF-8")
    chunk = chunk[len(bom) :]
    decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
    while chunk:
        yield without_invalid_characters(decoder.decode(chunk))
        chunk = read(CHUNK)
    yield without_invalid_characters(decoder.decode(b"", final=True))
