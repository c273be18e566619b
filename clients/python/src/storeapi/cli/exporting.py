"""`storeapi export`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import click

from storeapi import StoreClient
from storeapi.cli import output
from storeapi.cli.files import whole_file
from storeapi.cli.lines import line_of
from storeapi.cli.settings import Settings

PAGE_SIZE = 1000
"""The most that the service gives at once."""


@click.command("export")
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.pass_obj
def export(settings: Settings, file: Path) -> None:
    """Write all posts and comments as JSON lines.

    FILE appears, or is replaced, only when all of it is written; "-" is stdout, the default. All posts come
    first, oldest first, then all comments, as `storeapi import` reads them. What others change meanwhile may
    or may not be in it, but no comment is there without its post.
    """
    with settings.connect() as client, output.progress("exported") as advance:
        if str(file) == "-":
            counts = write_all(client, sys.stdout.buffer, advance)
            sys.stdout.flush()
        else:
            with whole_file(file) as target:
                counts = write_all(client, target, advance)
    click.echo(f"exported {counts[0]} posts and {counts[1]} comments", err=True)


def write_all(client: StoreClient, target: IO[bytes], advance: Callable[[int], None]) -> tuple[int, int]:
    """Writes every post and comment, tells `advance` of each, and returns how many posts and comments."""
    for_terminal = target.isatty()
    post_ids: set[int] = set()
    for post in client.posts.list(page_size=PAGE_SIZE):
        target.write(line_of(post, for_terminal=for_terminal))
        post_ids.add(post.id)
        advance(1)
    comments = 0
    for comment in client.comments.list(page_size=PAGE_SIZE):
        # A post that was added since the last page of posts is not in the file, so its comments stay out.
        if comment.post_id in post_ids:
            target.write(line_of(comment, for_terminal=for_terminal))
            comments += 1
            advance(1)
    return len(post_ids), comments
