"""XML files that attack their reader."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest
from storeapi.formats import FormatError
from storeapi.formats.source import Source
from storeapi.formats.xml import MAX_NODES, Element, elements

BILLION_LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE rss [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(10))
    + "]><rss><item>&k;</item></rss>"
)
QUADRATIC = f'<!DOCTYPE rss [<!ENTITY a "{"x" * 100_000}">]><rss><item>{"&a;" * 100_000}</item></rss>'
EXTERNAL = '<!DOCTYPE rss [<!ENTITY a SYSTEM "{}">]><rss><item>&a;</item></rss>'
PARAMETER = '<!DOCTYPE rss [<!ENTITY % a SYSTEM "{}"> %a;]><rss><item>x</item></rss>'
EXTERNAL_DTD = '<!DOCTYPE rss SYSTEM "{}"><rss><item>x</item></rss>'


def read(path: Path, **select: int) -> Iterator[Element]:
    return elements(Source(path), root="rss", select=select or {"item": 2}, prefixes=())


def test_documents_with_entities_are_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    path = tmp_path / "export.xml"
    for document in (BILLION_LAUGHS, QUADRATIC, EXTERNAL, PARAMETER, EXTERNAL_DTD):
        path.write_text(document.replace("{}", secret.as_uri()))
        with pytest.raises(FormatError, match=r"line 1: a document type .* is refused"):
            list(read(path))


def test_an_entity_that_is_not_declared_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    path.write_text("<rss><item>&nbsp;</item></rss>")
    with pytest.raises(FormatError, match=r"line 1, column 12: not well-formed XML \(undefined entity"):
        list(read(path))


@pytest.mark.parametrize(
    ("begin", "repeated", "problem"),
    [
        ("<rss>", "<a>", "more than 64 elements inside each other"),
        ("<rss><!-- ", "x", "a tag or comment of more than 1048576 bytes"),
        ("<rss><item a='", "x", "a tag or comment of more than 1048576 bytes"),
        ("<rss><item><?x ", "x", "a tag or comment of more than 1048576 bytes"),
        ("<rss><", "x", "a tag or comment of more than 1048576 bytes"),
    ],
)
def test_what_the_parser_would_keep_is_limited(
    begin: str, repeated: str, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "export.xml.gz"
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write(begin)
        for _ in range(200):
            file.write(repeated * 100_000)
    with pytest.raises(FormatError, match=problem):
        list(read(path))


def test_different_names_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    path.write_text("<rss>" + "".join(f"<a{i}/>" for i in range(2000)) + "</rss>")
    with pytest.raises(FormatError, match="more than 1000 different names"):
        list(read(path))


def test_an_element_keeps_the_first_of_each_name_and_a_limited_text(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    path.write_text(
        "<rss><item><a>1</a><a>2<b>3</b></a>"
        + f"<c>{'x' * 1_000_000}</c>"
        + "<d><e f='g'>4</e></d></item></rss>"
    )
    (item,) = read(path)
    assert (item.text("a"), item.text("a", "b"), item.text("d", "e")) == ("1", "", "4")
    assert item.attribute("f", "d", "e") == "g"
    assert 65_536 < len(item.text("c")) < 200_000


def test_the_elements_in_an_element_are_limited(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    names = [f"n{i}" for i in range(MAX_NODES // 2)]
    inside = "".join(f"<{name}>1</{name}>" for name in names)
    path.write_text(
        f"<rss><item><a>{inside}</a><b>{inside}</b><c>{inside}</c></item><item><c>2</c></item></rss>"
    )
    first, second = read(path)
    assert [first.text(*it) for it in (("a", "n499"), ("b", "n400"), ("c", "n0"))] == ["1", "1", ""]
    assert second.text("c") == "2"


def test_a_selected_element_in_another_one_comes_first_and_is_not_its_child(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    path.write_text("<rss><item><id>1</id><note><id>2</id></note><x><note/></x></item></rss>")
    note, item = read(path, item=2, note=3)
    assert (note.text("id"), note.parent, item.find("note")) == ("2", item, None)
    assert item.text("id") == "1"
