"""WordPress: the XML file of Tools > Export (WXR 1.0 to 1.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from storeapi.formats.records import Record, RecordKind, Report, parse_time
from storeapi.formats.source import Source
from storeapi.formats.xml import Element, elements

_PREFIXES: Final = (
    ("http://wordpress.org/export/1.0/excerpt", "excerpt:"),
    ("http://wordpress.org/export/1.1/excerpt", "excerpt:"),
    ("http://wordpress.org/export/1.2/excerpt", "excerpt:"),
    ("http://wordpress.org/export/", "wp:"),
    ("http://purl.org/rss/1.0/modules/content/", "content:"),
    ("http://purl.org/dc/elements/", "dc:"),
)
_SELECT: Final = {"item": 3, "wp:comment": 4}
_STATUS: Final[Mapping[str, str]] = {"1": "approved", "0": "pending", "post-trashed": "trash"}
_COMMENT_TYPES: Final = frozenset({"", "comment", "review"})
_PINGS: Final = frozenset({"pingback", "trackback"})
_POST_TYPES: Final = frozenset({"post", "page"})

_LEFT_OUT_OF_COMMENTS: Final = (
    ("wp:comment_author_email", "e-mail address left out"),
    ("wp:comment_author_IP", "IP address left out"),
    ("wp:comment_author_url", "web site of the author left out"),
    ("wp:commentmeta", "metadata left out"),
)
_LEFT_OUT_OF_POSTS: Final = (
    ("excerpt:encoded", "excerpt left out"),
    ("category", "categories and tags left out"),
    ("wp:postmeta", "metadata left out"),
    ("wp:post_password", "password left out"),
)


def read(source: Source, report: Report) -> Iterator[Record]:
    """Reads posts, pages, other items with comments, and comments."""
    for element in elements(source, root="rss", select=_SELECT, prefixes=_PREFIXES):
        if element.name == "item":
            yield _post(element, report)
        elif element.text("wp:comment_type") in _PINGS:
            report.count("read", "comment")
            report.leave_out("comment", "pingback or trackback", element.place)
        elif element.text("wp:comment_type") not in _COMMENT_TYPES:
            report.count("read", "comment")
            report.leave_out("comment", "comment type of a plug-in", element.place)
        else:
            yield _comment(element, report)


def _post(item: Element, report: Report) -> Record:
    _report_left_out(item, "post", _LEFT_OUT_OF_POSTS, report)
    kind = item.text("wp:post_type")
    return Record(
        kind="post",
        id=item.text("wp:post_id"),
        place=item.place,
        body=item.text("content:encoded"),
        title=item.text("title"),
        url=item.text("link"),
        author=item.text("dc:creator"),
        create_time=_time(item, "wp:post_date", "post", report),
        update_time=parse_time(item.text("wp:post_modified_gmt")),
        labels={
            "status": item.text("wp:status"),
            "type": kind,
            "protected": "true" if item.text("wp:post_password") else "",
        },
        needs_comments=kind not in _POST_TYPES,
    )


def _comment(comment: Element, report: Report) -> Record:
    _report_left_out(comment, "comment", _LEFT_OUT_OF_COMMENTS, report)
    status = comment.text("wp:comment_approved")
    parent = comment.text("wp:comment_parent")
    return Record(
        kind="comment",
        id=comment.text("wp:comment_id"),
        place=comment.place,
        body=comment.text("wp:comment_content"),
        author=comment.text("wp:comment_author"),
        create_time=_time(comment, "wp:comment_date", "comment", report),
        labels={"status": _STATUS.get(status, status)},
        # The exporter writes the id of a post before its comments.
        post_id=comment.parent.text("wp:post_id") if comment.parent else "",
        reply_to_id="" if parent == "0" else parent,
    )


def _time(element: Element, name: str, kind: RecordKind, report: Report) -> datetime | None:
    """The time in UTC. Drafts have only a time in the time zone of the site, which the file does not name."""
    time = parse_time(element.text(f"{name}_gmt"))
    if time is None:
        time = parse_time(element.text(name))
        if time is not None:
            report.change(kind, "local time of the site taken as UTC", element.place)
    return time


def _report_left_out(
    element: Element, kind: RecordKind, names: tuple[tuple[str, str], ...], report: Report
) -> None:
    for name, description in names:
        if element.has_content(name):
            report.change(kind, description, element.place)
