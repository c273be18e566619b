"""What each format makes of a file that has everything that its documentation describes."""

import gzip
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from storeapi import formats
from storeapi.formats import FormatError, ImportedRecord, Report, Source, parse_time

from tests.support.imported_files import changed, left_out, read_file, spooled
from tests.support.repository import ROOT

FILES = Path(__file__).with_name("files")


@pytest.fixture
def isso(tmp_path: Path) -> Path:
    path = tmp_path / "comments.db"
    database = sqlite3.connect(path)
    database.executescript((FILES / "isso.sql").read_text())
    database.close()
    return path


def thread(records: list[ImportedRecord]) -> dict[str, str]:
    """What each comment replies to, in the order of the import."""
    return {it.external_id: it.reply_to_external_id for it in records if it.kind == "comment"}


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[arg-type, misc]


def test_wordpress_posts_pages_and_comments() -> None:
    records, report = read_file("wordpress", FILES / "wordpress.xml")
    by_id = {(it.kind, it.external_id): it for it in records}
    post = by_id["post", "wordpress:1"]
    assert post.body == "<!-- wp:paragraph -->\n<p>First <b>post</b> 🎉 ]]></p>\n<!-- /wp:paragraph -->"
    assert post.labels == {
        "source": "wordpress",
        "status": "publish",
        "title": "Hello &amp; welcome",
        "type": "post",
        "url": "https://blog.example/hello/",
    }
    assert (post.author, post.create_time, post.update_time) == (
        "ann",
        at(2024, 5, 6, 7, 8, 9),
        at(2024, 5, 7, 7, 8, 9),
    )
    draft = by_id["post", "wordpress:2"]
    assert (draft.body, draft.create_time) == ("https://blog.example/?p=2", at(2024, 6, 1, 10))
    assert (draft.labels["status"], draft.labels["type"], draft.labels["protected"]) == (
        "draft",
        "page",
        "true",
    )
    assert (
        by_id["post", "wordpress:4"].body == "picture with a comment\nhttps://blog.example/hello/picture-2/"
    )
    assert thread(records) == {
        "wordpress:11": "",
        "wordpress:12": "wordpress:11",
        "wordpress:14": "",
        "wordpress:16": "",
    }
    comment = by_id["comment", "wordpress:12"]
    assert (comment.author, comment.post_external_id, comment.create_time) == (
        "Carl",
        "wordpress:1",
        at(2024, 5, 6, 10),
    )
    assert [it.labels["status"] for it in records if it.kind == "comment"] == [
        "approved",
        "pending",
        "trash",
        "spam",
    ]
    assert by_id["comment", "wordpress:11"].author == ""
    assert by_id["comment", "wordpress:16"].create_time is None
    assert report.counts == {"read": {"post": 4, "comment": 7}}
    assert left_out(report) == {
        "comment: an earlier one has the same id": ["line 130"],
        "comment: comment type of a plug-in": ["line 78"],
        "comment: pingback or trackback": ["line 60"],
        "post: without comments": ["line 101"],
    }
    assert changed(report) == {
        "comment: IP address left out": ["line 35"],
        "comment: at the top level, because the comment it replies to is not imported": ["line 69"],
        "comment: author left out: an e-mail address or IP address": ["line 50"],
        "comment: e-mail address left out": ["line 35"],
        "comment: metadata left out": ["line 35"],
        "comment: web site of the author left out": ["line 35"],
        "comment: without a valid time, so it gets the time of the import": ["line 121"],
        "post: categories and tags left out": ["line 15"],
        "post: excerpt left out": ["line 15"],
        "post: local time of the site taken as UTC": ["line 88"],
        "post: metadata left out": ["line 15"],
        "post: password left out": ["line 88"],
    }


def test_disqus_threads_and_posts() -> None:
    records, report = read_file("disqus", FILES / "disqus.xml")
    post = records[0]
    assert (post.external_id, post.body, post.author) == (
        "disqus:100",
        "Article 42\nhttps://site.example/42/",
        "Ann",
    )
    assert post.labels == {
        "closed": "true",
        "identifier": "article-42",
        "source": "disqus",
        "title": "Article 42",
        "url": "https://site.example/42/",
    }
    assert thread(records) == {
        "disqus:201": "",
        "disqus:202": "disqus:201",
        "disqus:203": "disqus:202",
        "disqus:555": "",
    }
    first, deleted, reply, spam = records[1:]
    assert (first.body, first.author) == ("<p>Top &lt;b&gt; level 😀</p>", "Bob")
    assert (deleted.body, deleted.author, deleted.labels["status"]) == ("deleted", "", "deleted")
    assert (reply.create_time, reply.post_external_id) == (at(2023, 2, 1, 2), "disqus:100")
    assert (spam.labels["status"], spam.create_time) == ("spam", None)
    assert report.counts == {"read": {"post": 3, "comment": 6}}
    assert left_out(report) == {
        "comment: deleted, without replies": ["line 87"],
        "comment: its post is not imported": ["line 106"],
        "post: deleted": ["line 34"],
        "post: without comments": ["line 24"],
    }


def test_isso_threads_and_comments(isso: Path) -> None:
    records, report = read_file("isso", isso)
    posts = [(it.external_id, it.body, it.labels.get("url")) for it in records if it.kind == "post"]
    assert posts == [("isso:1", "First article\n/blog/1/", "/blog/1/"), ("isso:2", "/blog/2/", "/blog/2/")]
    assert thread(records) == {
        "isso:1": "",
        "isso:2": "isso:1",
        "isso:3": "",
        "isso:4": "isso:3",
        "isso:6": "",
        "isso:7": "",
    }
    comments = [it for it in records if it.kind == "comment"]
    assert [it.labels["status"] for it in comments] == [
        "approved",
        "pending",
        "deleted",
        "approved",
        "approved",
        "approved",
    ]
    assert comments[0].create_time == at(2023, 11, 14, 22, 13, 20, 250_000)
    assert comments[1].update_time == at(2023, 11, 14, 22, 15, 50, 500_000)
    assert (comments[5].body, comments[5].create_time) == ("NUL\ufffd\ufffd", None)
    assert left_out(report) == {
        "comment: deleted, without replies": ["comment 5"],
        "comment: its post is not imported": ["comment 8"],
        "post: without comments": ["thread 3"],
    }
    assert report.changed["comment", "votes left out"].count == 1
    assert report.changed["comment", "IP address left out"].count == 2


def test_isso_is_not_changed_and_can_be_in_use(isso: Path) -> None:
    before = isso.read_bytes()
    user = sqlite3.connect(isso)
    user.execute("BEGIN IMMEDIATE")
    user.execute("DELETE FROM comments")
    records, _ = read_file("isso", isso)
    user.rollback()
    user.close()
    assert len(records) == 8
    assert isso.read_bytes() == before


def test_a_huge_comment_of_isso_is_cut(isso: Path) -> None:
    user = sqlite3.connect(isso, isolation_level=None)
    user.execute("UPDATE comments SET text = ? WHERE id = 1", ["x" + "🎉" * 100_000])
    user.close()
    records, report = read_file("isso", isso)
    assert records[2].body == "x" + "🎉" * 16_383
    assert changed(report)["comment: text cut after 65,536 bytes"] == ["comment 1"]
    assert changed(report)["comment: U+FFFD in the place of invalid characters"] == ["comment 7"]


def test_isso_is_read_as_of_one_point_in_time(isso: Path) -> None:
    user = sqlite3.connect(isso, isolation_level=None)
    user.execute("PRAGMA journal_mode = WAL")
    records = formats.reader("isso")(Source(isso), Report())
    first = next(records)
    user.execute("DELETE FROM comments WHERE id > 1")
    assert len([first, *records]) == 11
    user.close()


@pytest.mark.parametrize("compress", [False, True])
def test_remark42_pages_and_comments(tmp_path: Path, compress: bool) -> None:
    path = FILES / "remark42.jsonl"
    if compress:
        path = tmp_path / "backup.gz"
        path.write_bytes(gzip.compress((FILES / "remark42.jsonl").read_bytes()))
    records, report = read_file("remark42", path)
    posts = {it.external_id: it for it in records if it.kind == "post"}
    assert list(posts) == ["remark42:https://site.example/p1", "remark42:https://site.example/p2"]
    post = posts["remark42:https://site.example/p1"]
    assert (post.body, post.create_time) == (
        "First page\nhttps://site.example/p1",
        at(2022, 3, 4, 11, 6, 7, 123_456),
    )
    assert thread(records) == {
        "remark42:c1": "",
        "remark42:c2": "remark42:c1",
        "remark42:c3": "remark42:c2",
        "remark42:c4": "",
    }
    comments = {it.external_id: it for it in records if it.kind == "comment"}
    assert comments["remark42:c1"].labels == {
        "pinned": "true",
        "source": "remark42",
        "status": "approved",
    }
    assert comments["remark42:c1"].body == "<p>Top <strong>level</strong> 😀</p>\n"
    assert comments["remark42:c2"].labels["status"] == "deleted"
    assert comments["remark42:c3"].update_time == at(2022, 3, 4, 11, 9)
    assert comments["remark42:c4"].body == "<p>nul \ufffd and half \ufffd a pair</p>"
    assert report.counts == {"read": {"post": 3, "comment": 9}}
    assert left_out(report) == {
        "comment: a line that is not a JSON object": ["line 8"],
        "comment: an earlier one has the same id": ["line 7"],
        "comment: deleted, without replies": ["line 11"],
        "comment: its post is not imported": ["line 9"],
        "comment: without text": ["line 10"],
        "post: without comments": ["line 11"],
    }


@pytest.mark.parametrize("name", ["disqus", "isso", "remark42", "wordpress"])
def test_no_email_and_ip_address_is_imported(name: str, isso: Path) -> None:
    path = {"isso": isso, "remark42": FILES / "remark42.jsonl"}.get(name, FILES / f"{name}.xml")
    records, _ = read_file(name, path)
    texts = " ".join(f"{it.author} {it.body} {dict(it.labels)}" for it in records)
    assert "mail.example" not in texts
    assert "192.0.2." not in texts
    assert "0a1b2c" not in texts


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "iso-8859-1"])
def test_xml_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    text = (
        f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?>\r\n'
        '<disqus xmlns="http://disqus.com" xmlns:d="http://disqus.com/disqus-internals">\r\n'
        '<thread d:id="1"><title>é</title></thread>\r\n'
        '<post d:id="2"><message>à\r\nb</message><thread d:id="1"/></post></disqus>'
    )
    path.write_bytes(text.encode(encoding))
    records, _ = read_file("disqus", path)
    assert [it.body for it in records] == ["é", "à\nb"]
    assert records[1].place == "line 4"


def test_bytes_that_are_not_valid_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    path.write_bytes(
        b'<disqus xmlns="http://disqus.com" xmlns:dsq="http://disqus.com/disqus-internals">'
        b'<thread dsq:id="1"><title>T</title></thread><post dsq:id="2"><thread dsq:id="1"/>'
        b"<message>a\x00b\x0bc\xffd\xef\xbf\xbfe</message></post></disqus>"
    )
    records, report = read_file("disqus", path)
    assert records[1].body == "a\ufffdb\ufffdc\ufffdd\ufffde"
    assert changed(report)["comment: U+FFFD in the place of invalid characters"] == ["line 1"]


def test_a_line_of_remark42_that_is_too_long_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    lines = (FILES / "remark42.jsonl").read_text().splitlines()
    long = lines[1].replace("level", "x" * 3_000_000)
    path.write_text("\n".join([lines[0], long, lines[3]]))
    records, report = read_file("remark42", path)
    assert left_out(report) == {"comment: a line of more than 1,048,576 bytes": ["line 2"]}
    assert thread(records) == {"remark42:c3": ""}


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (
            "wordpress",
            b"<rss><channel>\n<item><title>x</item></channel></rss>",
            "line 2, column 17: not well-formed",
        ),
        ("wordpress", b"<rss><channel>\n", "line 2, column 1: not well-formed XML (no element found)"),
        (
            "wordpress",
            b"",
            "line 1, column 1: not well-formed XML (no element found); expected a complete <rss>",
        ),
        ("wordpress", b"<html></html>", "line 1: expected the element <rss>, found <html>"),
        ("disqus", b"<rss></rss>", "line 1: expected the element <disqus>, found <rss>"),
        (
            "disqus",
            b'<?xml version="1.0" encoding="rot13"?>',
            "line 1: the encoding 'rot13' is not supported",
        ),
        ("disqus", b"\x1f\x8b\x08\x00broken", "gzip data is damaged or incomplete"),
        ("disqus", gzip.compress(b"<disqus>" * 100, mtime=0)[:30], "gzip data is damaged or incomplete"),
        ("isso", b"no database", "cannot be read as the SQLite database of Isso: file is not a database"),
        ("isso", b"", "not a database of Isso: the table threads has no id, title, uri"),
        ("remark42", b"", "the file is empty"),
        ("remark42", b"[]\n", 'line 1: expected the line {"version": 1, ...}'),
        ("remark42", b'{"version":7}\n', "line 1: version 7 of backups is not supported"),
    ],
)
def test_a_file_that_is_not_of_the_format_names_the_place(
    name: str, content: bytes, problem: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        read_file(name, path)
    assert str(caught.value).startswith(str(path))
    assert problem in str(caught.value)


def test_a_view_in_a_database_is_not_read(isso: Path) -> None:
    database = sqlite3.connect(isso)
    database.executescript(
        "ALTER TABLE comments RENAME TO other; CREATE VIEW comments AS SELECT * FROM other ORDER BY random();"
    )
    database.close()
    with pytest.raises(
        FormatError, match="not a database of Isso: the table comments has no author, created"
    ):
        read_file("isso", isso)


def test_a_damaged_database_is_an_error(isso: Path) -> None:
    content = bytearray(isso.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    isso.write_bytes(content)
    with pytest.raises(FormatError, match="cannot be read as the SQLite database of Isso"):
        read_file("isso", isso)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2024-05-06 07:08:09", at(2024, 5, 6, 7, 8, 9)),
        ("2024-05-06T07:08:09.1234567Z", at(2024, 5, 6, 7, 8, 9, 123_456)),
        ("2024-05-06T07:08:09+02:00", at(2024, 5, 6, 5, 8, 9)),
        ("2024-05-06T22:08:09.5-0230", at(2024, 5, 7, 0, 38, 9, 500_000)),
        ("0000-00-00 00:00:00", None),
        ("0001-01-01T00:00:00Z", None),
        ("2024-02-30 00:00:00", None),
        ("9999-12-31T23:59:59-01:00", None),
        ("Mon, 30 Nov -0001 00:00:00 +0000", None),
        ("٢٠٢٤-05-06 07:08:09", None),
        ("", None),
    ],
)
def test_times(text: str, time: datetime | None) -> None:
    assert parse_time(text) == time


def test_a_package_adds_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "example_comments.py").write_text(
        "from storeapi.formats import Record\n"
        "def read(source, report):\n"
        "    with source.open() as file:\n"
        "        yield Record(kind='post', id='1', place='line 1', body=file.readline(100).decode())\n"
    )
    metadata = tmp_path / "example_comments-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: example-comments\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[storeapi.formats]\nexample = example_comments:read\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert formats.names() == ["disqus", "example", "isso", "remark42", "wordpress"]
    file = tmp_path / "file"
    file.write_text("Hello")
    records, _ = read_file("example", file)
    assert [(it.external_id, it.body) for it in records] == [("example:1", "Hello")]


def test_the_format_in_the_documentation_works(tmp_path: Path) -> None:
    page = (ROOT / "docs/importing.md").read_text()
    example: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], example)
    path = tmp_path / "file"
    path.write_text("1\t2024-05-06 07:08:09\tHello\n2\tnever\tagain\n")
    one, other = spooled(example["read"](Source(path), Report()), "example", Report())
    assert (one.external_id, one.body, one.create_time) == ("example:1", "Hello", at(2024, 5, 6, 7, 8, 9))
    assert (other.place, other.create_time) == ("line 2", None)


def test_an_unknown_format_names_the_formats() -> None:
    with pytest.raises(
        LookupError, match="'movable-type'; the formats are disqus, isso, remark42, wordpress"
    ):
        formats.reader("movable-type")


def test_the_progress_reaches_the_end(tmp_path: Path) -> None:
    path = tmp_path / "export.xml"
    path.write_bytes((FILES / "disqus.xml").read_bytes() + b" " * 500_000)
    fractions: list[float] = []
    list(formats.reader("disqus")(Source(path, fractions.append), Report()))
    assert fractions == sorted(fractions)
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
