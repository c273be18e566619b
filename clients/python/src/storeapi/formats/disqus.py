"""Disqus: the XML file of Admin > Moderate Comments > Export."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from storeapi.formats.records import Record, Report, parse_time
from storeapi.formats.source import Source
from storeapi.formats.xml import Element, elements

_PREFIXES: Final = (("http://disqus.com/disqus-internals", "dsq:"), ("http://disqus.com", ""))


def read(source: Source, report: Report) -> Iterator[Record]:
    """Reads threads with comments as posts, and posts as comments."""
    for element in elements(source, root="disqus", select={"thread": 2, "post": 2}, prefixes=_PREFIXES):
        if element.name == "post":
            yield _comment(element, report)
        elif _is_true(element, "isDeleted"):
            report.count("read", "post")
            report.leave_out("post", "deleted", element.place)
        else:
            yield _post(element, report)


def _post(thread: Element, report: Report) -> Record:
    return Record(
        kind="post",
        id=thread.attribute("dsq:id"),
        place=thread.place,
        body=thread.text("message"),
        title=thread.text("title"),
        url=thread.text("link"),
        author=thread.text("author", "name"),
        create_time=parse_time(thread.text("createdAt")),
        labels={
            "identifier": thread.text("id"),
            "closed": "true" if _is_true(thread, "isClosed") else "",
        },
        needs_comments=True,
    )


def _comment(post: Element, report: Report) -> Record:
    is_deleted = _is_true(post, "isDeleted")
    if not is_deleted:
        if post.text("author", "email"):
            report.change("comment", "e-mail address left out", post.place)
        if post.text("ipAddress"):
            report.change("comment", "IP address left out", post.place)
    return Record(
        kind="comment",
        # Posts of other systems that were imported into Disqus can have only <id>.
        id=post.attribute("dsq:id") or post.text("id"),
        place=post.place,
        body=post.text("message"),
        author=post.text("author", "name"),
        create_time=parse_time(post.text("createdAt")),
        labels={"status": "spam" if _is_true(post, "isSpam") else "approved"},
        post_id=post.attribute("dsq:id", "thread"),
        reply_to_id=post.attribute("dsq:id", "parent"),
        is_deleted=is_deleted,
    )


def _is_true(element: Element, name: str) -> bool:
    return element.text(name).lower() in ("true", "1")
