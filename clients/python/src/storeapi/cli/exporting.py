"""`storeapi export`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from storeapi import Comments, Posts, StoreClient
from storeapi.cli import progress
from storeapi.cli.files import whole_file
from storeapi.cli.help import examples
from storeapi.cli.lines import line_of
from storeapi.cli.progress import Report
from storeapi.cli.settings import Settings

PAGE_SIZE = 1000
"""The most that the service gives at once."""


@click.command(
    "export", epilog=examples("storeapi export all.jsonl", "storeapi export | gzip > all.jsonl.gz")
)
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.pass_obj
def export(settings: Settings, file: Path) -> None:
    """Write all posts and comments as JSON lines.

    FILE appears, or is replaced, only when all of it is written; "-" is stdout, the default. All posts come
    first, oldest first, then all comments, as `storeapi import` reads them. What others change meanwhile may
    or may not be in it, but no comment is there without its post.
    """
    with settings.connect() as client, progress.shown(prints=str(file) == "-") as report:
        if str(file) == "-":
            counts = write_all(client, sys.stdout.buffer, report)
            sys.stdout.flush()
        else:
            with whole_file(file) as target:
                counts = write_all(client, target, report)
    click.echo(f"exported {counts[0]} posts and {counts[1]} comments", err=True)


def write_all(client: StoreClient, target: IO[bytes], report: Report) -> tuple[int, int]:
    """Writes every post and comment, and returns how many posts and comments these are."""
    for_terminal = target.isatty()
    post_ids: set[int] = set()
    for post in _reported("exporting posts", client.posts, report):
        target.write(line_of(post, for_terminal=for_terminal))
        post_ids.add(post.id)
    comments = 0
    for comment in _reported("exporting comments", client.comments, report):
        # A post that was added since the last page of posts is not in the file, so its comments stay out.
        if comment.post_id in post_ids:
            target.write(line_of(comment, for_terminal=for_terminal))
            comments += 1
    return len(post_ids), comments


def _reported(phase: str, resource: Posts | Comments, report: Report) -> Iterator[Any]:
    """All posts or comments, oldest first.

    The service does not tell how many there are. Ids grow, so the part that is done is that of the newest id.
    """
    report(phase, 0, None)
    newest = next(iter(resource.list(order_by="id desc", page_size=1)), None)
    done = 0
    for page in resource.list(page_size=PAGE_SIZE).pages():
        yield from page.items
        done += len(page.items)
        if newest is not None and page.items:
            report(phase, done, min(page.items[-1].id / newest.id, 1.0))
