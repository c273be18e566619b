"""`storeapi comments`."""

from __future__ import annotations

from functools import partial

import click

from storeapi.cli import arguments, output
from storeapi.cli.help import Group, examples
from storeapi.cli.settings import Settings
from storeapi.model import Comment


@click.group(cls=Group)
def comments() -> None:
    """Add, read, change, delete and count comments."""


@comments.command(epilog=examples("storeapi comments create 1 Welcome"))
@click.argument("post_id", type=arguments.ID)
@arguments.body_argument
@arguments.request_id_option
@click.pass_obj
def create(settings: Settings, post_id: int, body: str, request_id: str | None) -> None:
    """Add a comment to a post.

    BODY is its text, or "-" to read it from stdin, as it is with its last line end.
    """
    with settings.connect() as client:
        comment = client.comments.create(post_id=post_id, body=body, request_id=request_id)
        output.print_items([comment], as_json=settings.json)


@comments.command(epilog=examples("storeapi comments get 1 2 3"))
@arguments.ids_argument
@click.pass_obj
def get(settings: Settings, ids: tuple[int, ...]) -> None:
    """Print comments by their ids.

    They come in the order asked for. If one is not there, none is printed.
    """
    with settings.connect() as client:
        output.print_items(client.comments.get_many(ids), as_json=settings.json)


@comments.command(
    "list",
    epilog=examples(
        "storeapi comments list --post 1", "storeapi comments list --order-by id-desc --limit 20"
    ),
)
@click.option("--post", "post_id", metavar="ID", type=arguments.ID, help="Only the comments of this post.")
@arguments.list_options
@click.pass_obj
def list_comments(settings: Settings, post_id: int | None, selection: arguments.Selection) -> None:
    """Print the comments of one post, or of all, oldest first.

    A terminal gets one screen of them, unless --limit or --all says otherwise; everything else gets all.
    """
    with settings.connect() as client:
        list_items = partial(client.comments.list, post_id=post_id)
        output.print_list(list_items, selection, as_json=settings.json)


@comments.command(epilog=examples('storeapi comments update 1 "Welcome back" --etag v1'))
@click.argument("id", type=arguments.ID)
@arguments.body_argument
@arguments.etag_option
@arguments.request_id_option
@click.pass_obj
def update(settings: Settings, id: int, body: str, etag: str, request_id: str | None) -> None:
    """Give a comment another text.

    BODY is the text, or "-" to read it from stdin.
    """
    with settings.connect() as client:
        comment = client.comments.update(id, body=body, etag=etag, request_id=request_id)
        output.print_items([comment], as_json=settings.json)


@comments.command(epilog=examples("storeapi comments delete 1 2 --allow-missing"))
@arguments.ids_argument
@arguments.allow_missing_option
@arguments.etag_option
@arguments.request_id_option
@click.pass_obj
def delete(
    settings: Settings, ids: tuple[int, ...], allow_missing: bool, etag: str, request_id: str | None
) -> None:
    """Delete comments and print them as they last were.

    All of them are deleted, or on any error none.
    """
    arguments.check_one_etag(ids, etag)
    with settings.connect() as client:
        if etag:
            comment = client.comments.delete(
                ids[0], etag=etag, allow_missing=allow_missing, request_id=request_id
            )
            # One that was not there comes back with nothing but its id.
            deleted: tuple[Comment, ...] = (comment,) if comment.etag else ()
        else:
            deleted = client.comments.delete_many(ids, allow_missing=allow_missing, request_id=request_id)
        output.print_items(deleted, as_json=settings.json)


@comments.command(epilog=examples("storeapi comments count 1 2 3"))
@click.argument("post_ids", metavar="POST_ID...", type=arguments.ID, nargs=-1, required=True)
@click.pass_obj
def count(settings: Settings, post_ids: tuple[int, ...]) -> None:
    """Print how many comments posts have; a post that is not there has none."""
    with settings.connect() as client:
        counts = client.comments.count(post_ids)
        # In the order asked for, which a map does not keep.
        in_order = {post_id: counts[post_id] for post_id in post_ids}
        output.print_counts(in_order, as_json=settings.json)
