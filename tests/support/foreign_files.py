"""Files of other systems, of any size, as their public documentation describes them."""

import gzip
import json
import sqlite3
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

COMMENTS_OF_POST = 100
BODY = "A comment with <b>HTML</b>, an emoji 🎉 and some words. " * 8
"""About 450 bytes."""

Writer = Callable[[Path, int], None]
"""Writes a file with a number of comments: every third one replies to the comment after it."""


def parent(number: int) -> int:
    """The comment that a comment replies to; 0 for none."""
    return number + 1 if number % 3 == 0 and (number + 1) % COMMENTS_OF_POST else 0


def time(number: int) -> str:
    """The time of a comment."""
    return str(datetime(2024, 1, 1) + timedelta(seconds=number))


def write_wordpress(path: Path, comments: int) -> None:
    """WXR 1.2."""
    with path.open("w", encoding="utf-8") as file:
        file.write(
            '<?xml version="1.0" encoding="UTF-8" ?>\n<rss version="2.0"'
            ' xmlns:content="http://purl.org/rss/1.0/modules/content/"'
            ' xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:wp="http://wordpress.org/export/1.2/">\n<channel>\n'
        )
        for number in range(1, comments + 1):
            post, position = divmod(number - 1, COMMENTS_OF_POST)
            if position == 0:
                file.write(
                    f"<item><title>Post {post}</title><link>https://blog.example/{post}</link>"
                    "<dc:creator><![CDATA[ann]]></dc:creator>"
                    f"<content:encoded><![CDATA[{BODY}]]></content:encoded>"
                    f"<wp:post_id>{post + 1}</wp:post_id>"
                    "<wp:post_date_gmt>2023-01-01 00:00:00</wp:post_date_gmt>"
                    "<wp:status>publish</wp:status><wp:post_type>post</wp:post_type>\n"
                )
            file.write(
                f"<wp:comment><wp:comment_id>{number}</wp:comment_id>"
                f"<wp:comment_author><![CDATA[author {number % 50}]]></wp:comment_author>"
                f"<wp:comment_author_email>a{number}@mail.example</wp:comment_author_email>"
                f"<wp:comment_date_gmt>{time(number)}</wp:comment_date_gmt>"
                f"<wp:comment_content><![CDATA[{number}: {BODY}]]></wp:comment_content>"
                "<wp:comment_approved>1</wp:comment_approved><wp:comment_type>comment</wp:comment_type>"
                f"<wp:comment_parent>{parent(number)}</wp:comment_parent></wp:comment>\n"
            )
            if position == COMMENTS_OF_POST - 1 or number == comments:
                file.write("</item>\n")
        file.write("</channel>\n</rss>\n")


def write_disqus(path: Path, comments: int) -> None:
    """The XML export of Disqus."""
    with path.open("w", encoding="utf-8") as file:
        file.write(
            '<?xml version="1.0" encoding="utf-8"?>\n'
            '<disqus xmlns="http://disqus.com" xmlns:dsq="http://disqus.com/disqus-internals">\n'
        )
        for post in range((comments - 1) // COMMENTS_OF_POST + 1):
            file.write(
                f'<thread dsq:id="{post + 1}"><id>page-{post}</id><link>https://site.example/{post}</link>'
                f"<title>Page {post}</title><message/><createdAt>2023-01-01T00:00:00Z</createdAt>"
                "<isClosed>false</isClosed><isDeleted>false</isDeleted></thread>\n"
            )
        for number in range(1, comments + 1):
            above = f'<parent dsq:id="{parent(number)}"/>' if parent(number) else ""
            file.write(
                f'<post dsq:id="{number}"><id/><message><![CDATA[{number}: {BODY}]]></message>'
                f"<createdAt>{time(number).replace(' ', 'T')}Z</createdAt><isDeleted>false</isDeleted>"
                f"<isSpam>false</isSpam><author><name>author {number % 50}</name></author>"
                f'<thread dsq:id="{(number - 1) // COMMENTS_OF_POST + 1}"/>{above}</post>\n'
            )
        file.write("</disqus>\n")


def write_isso(path: Path, comments: int) -> None:
    """The database of Isso."""
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE threads (id INTEGER PRIMARY KEY, uri VARCHAR(256) UNIQUE, title VARCHAR(256))"
    )
    database.execute(
        "CREATE TABLE comments (tid REFERENCES threads(id), id INTEGER PRIMARY KEY, parent INTEGER,"
        " created FLOAT NOT NULL, modified FLOAT, mode INTEGER, remote_addr VARCHAR, text VARCHAR NOT NULL,"
        " author VARCHAR, email VARCHAR, website VARCHAR, likes INTEGER, dislikes INTEGER,"
        " voters BLOB NOT NULL, notification INTEGER DEFAULT 0)"
    )
    database.executemany(
        "INSERT INTO threads VALUES (?, ?, ?)",
        (
            (post + 1, f"/page/{post}", f"Page {post}")
            for post in range((comments - 1) // COMMENTS_OF_POST + 1)
        ),
    )
    database.executemany(
        "INSERT INTO comments VALUES (?, ?, ?, ?, NULL, 1, '192.0.2.0', ?, ?, NULL, NULL, 0, 0, x'00', 0)",
        (
            (
                (number - 1) // COMMENTS_OF_POST + 1,
                number,
                parent(number) or None,
                1_700_000_000.5 + number,
                f"{number}: {BODY}",
                f"author {number % 50}",
            )
            for number in range(1, comments + 1)
        ),
    )
    database.commit()
    database.close()


def write_remark42(path: Path, comments: int) -> None:
    """A backup of remark42, compressed."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
        file.write('{"version":1,"users":[],"posts":[]}\n')
        for number in range(1, comments + 1):
            comment = {
                "id": f"c{number}",
                "pid": f"c{parent(number)}" if parent(number) else "",
                "text": f"<p>{number}: {BODY}</p>",
                "user": {"name": f"author {number % 50}", "id": f"github_{number % 50}", "ip": "0a1b"},
                "locator": {"site": "x", "url": f"https://site.example/{(number - 1) // COMMENTS_OF_POST}"},
                "score": 0,
                "vote": 0,
                "time": f"{time(number).replace(' ', 'T')}.5Z",
                "title": "A page",
            }
            file.write(json.dumps(comment, ensure_ascii=False, separators=(",", ":")) + "\n")


WRITERS: dict[str, Writer] = {
    "disqus": write_disqus,
    "isso": write_isso,
    "remark42": write_remark42,
    "wordpress": write_wordpress,
}
