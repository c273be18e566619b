"""`storeapi posts`."""

from __future__ import annotations

import click

from storeapi.cli import arguments, output
from storeapi.cli.help import Group, examples
from storeapi.cli.settings import Settings
from storeapi.model import Post


@click.group(cls=Group)
def posts() -> None:
    """Add, read, change and delete posts."""


@posts.command(
    epilog=examples('storeapi posts create "Hello, world"', "storeapi posts create - < letter.txt")
)
@arguments.body_argument
@arguments.request_id_option
@click.pass_obj
def create(settings: Settings, body: str, request_id: str | None) -> None:
    """Add a post.

    BODY is its text, or "-" to read it from stdin, as it is with its last line end.
    """
    with settings.connect() as client:
        post = client.posts.create(body=body, request_id=request_id)
        output.print_items([post], as_json=settings.json)


@posts.command(epilog=examples("storeapi posts get 1 2 3"))
@arguments.ids_argument
@click.pass_obj
def get(settings: Settings, ids: tuple[int, ...]) -> None:
    """Print posts by their ids.

    They come in the order asked for. If one is not there, none is printed.
    """
    with settings.connect() as client:
        output.print_items(client.posts.get_many(ids), as_json=settings.json)


@posts.command("list", epilog=examples("storeapi posts list --order-by id-desc --limit 20"))
@arguments.list_options
@click.pass_obj
def list_posts(settings: Settings, selection: arguments.Selection) -> None:
    """Print posts, oldest first.

    A terminal gets one screen of them, unless --limit or --all says otherwise; everything else gets all.
    """
    with settings.connect() as client:
        output.print_list(client.posts.list, selection, as_json=settings.json)


@posts.command(epilog=examples('storeapi posts update 1 "Hello again" --etag v1'))
@click.argument("id", type=arguments.ID)
@arguments.body_argument
@arguments.etag_option
@arguments.request_id_option
@click.pass_obj
def update(settings: Settings, id: int, body: str, etag: str, request_id: str | None) -> None:
    """Give a post another text.

    BODY is the text, or "-" to read it from stdin.
    """
    with settings.connect() as client:
        post = client.posts.update(id, body=body, etag=etag, request_id=request_id)
        output.print_items([post], as_json=settings.json)


@posts.command(epilog=examples("storeapi posts delete 1 2 --force"))
@arguments.ids_argument
@click.option("--force", is_flag=True, help="Delete their comments too.")
@arguments.allow_missing_option
@arguments.etag_option
@arguments.request_id_option
@click.pass_obj
def delete(
    settings: Settings,
    ids: tuple[int, ...],
    force: bool,
    allow_missing: bool,
    etag: str,
    request_id: str | None,
) -> None:
    """Delete posts and print them as they last were.

    All of them are deleted, or on any error none.
    """
    arguments.check_one_etag(ids, etag)
    with settings.connect() as client:
        if etag:
            post = client.posts.delete(
                ids[0], etag=etag, force=force, allow_missing=allow_missing, request_id=request_id
            )
            # One that was not there comes back with nothing but its id.
            deleted: tuple[Post, ...] = (post,) if post.etag else ()
        else:
            deleted = client.posts.delete_many(
                ids, force=force, allow_missing=allow_missing, request_id=request_id
            )
        output.print_items(deleted, as_json=settings.json)
