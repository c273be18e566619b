"""`storeapi export`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from storeapi import Collection, StoreClient
from storeapi._resources import AnyResource
from storeapi.cli import progress
from storeapi.cli.arguments import MAX_PAGE_SIZE
from storeapi.cli.files import whole_file
from storeapi.cli.help import examples
from storeapi.cli.lines import line_of
from storeapi.cli.progress import Report
from storeapi.cli.settings import Settings


@click.command(
    "export", epilog=examples("storeapi export all.jsonl", "storeapi export | gzip > all.jsonl.gz")
)
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.pass_obj
def export(settings: Settings, file: Path) -> None:
    """Write all posts and comments as JSON lines.

    FILE is created, or replaced, only when the export is complete; "-" is stdout, the default. All posts come
    first, oldest first, then all comments, as `storeapi import` reads them. Concurrent changes may or may not
    be included, but no comment is included without its post. Of deleted posts and comments, only the
    tombstones of comments that have replies are included.
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
    """Writes every post and comment, and returns the number of posts and of comments."""
    for_terminal = target.isatty()
    post_ids: set[int] = set()
    for post in _reported("exporting posts", client.posts, report):
        target.write(line_of(post, for_terminal=for_terminal))
        post_ids.add(post.id)
    comments = 0
    for comment in _reported("exporting comments", client.comments, report):
        # A post that was created after the last page of posts is not in the file. Neither are its comments.
        if comment.post_id in post_ids:
            target.write(line_of(comment, for_terminal=for_terminal))
            comments += 1
    return len(post_ids), comments


def _reported(
    phase: str, collection: Collection[AnyResource, Any, Any, Any], report: Report
) -> Iterator[AnyResource]:
    """All resources, oldest first.

    The service does not report their number. Ids grow, so the fraction done is estimated from the newest id.
    """
    report(phase, 0, None)
    newest = next(iter(collection.list(order_by="id desc", page_size=1)), None)
    done = 0
    for page in collection.list(page_size=MAX_PAGE_SIZE).pages():
        yield from page.items
        done += len(page.items)
        if newest is not None and page.items:
            report(phase, done, min(page.items[-1].id / newest.id, 1.0))
