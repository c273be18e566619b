"""`storeapi posts` and `storeapi comments`: the same commands for each resource type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from storeapi import StoreClient
from storeapi._resources import COMMENTS, POSTS, ResourceType
from storeapi.cli import arguments, output
from storeapi.cli.filters import Conditions, filter_options
from storeapi.cli.help import Group, examples
from storeapi.cli.settings import Settings

Decorator = Callable[[Any], Any]


def collection(client: StoreClient, resource_type: ResourceType[Any]) -> Any:
    """`client.posts` or `client.comments`."""
    return getattr(client, f"{resource_type.name}s")


def _group(
    resource_type: ResourceType[Any],
    *,
    orders: Sequence[str] = arguments.ORDERS,
    list_options: Sequence[Decorator] = (),
    list_examples: Sequence[str] = (),
) -> click.Group:
    """The commands of one resource type.

    Args:
        resource_type: Defines the arguments and options for fields.
        orders: The orders of `list`.
        list_options: More options of `list`, passed to the method of the client.
        list_examples: Examples of these.
    """
    name = resource_type.name
    plural = f"{name}s"
    command = f"storeapi {plural}"
    # An argument for each required field that is not a text.
    ids = "1 " * sum(resource_type.draft_fields[it] is int for it in resource_type.required)
    group = Group(plural, help=f"Create, read, update and delete {plural}.")

    @group.command(
        help=f'Create a {name}.\n\nBODY is its text, or "-" to read it from stdin, with all line ends.',
        epilog=examples(f'{command} create {ids}"Hello, world"', f"{command} create {ids}- < letter.txt"),
    )
    @arguments.field_parameters(resource_type)
    @arguments.request_id_option
    @click.pass_obj
    def create(settings: Settings, /, request_id: str | None, **fields: Any) -> None:
        with settings.connect() as client:
            created = collection(client, resource_type).create(
                **arguments.given(fields), request_id=request_id
            )
            output.print_items([created], as_json=settings.json)

    @group.command(
        help=f"Print {plural} by their ids, in this order.\n\nIf one does not exist, nothing is printed.",
        epilog=examples(f"{command} get 1 2 3"),
    )
    @arguments.ids_argument
    @arguments.show_deleted_option
    @click.pass_obj
    def get(settings: Settings, ids: tuple[int, ...], show_deleted: bool) -> None:
        with settings.connect() as client:
            found = collection(client, resource_type).get_many(ids, show_deleted=show_deleted)
            output.print_items(found, as_json=settings.json)

    @group.command(
        "list",
        help=f"Print {plural}, oldest first.\n\nWithout --limit or --all a terminal shows one screen; "
        f"elsewhere all {plural} are printed.",
        epilog=examples(
            *list_examples,
            f"{command} list --order-by id-desc --limit 20",
            f"{command} list --label status=new --created-from 2026-11-22",
        ),
    )
    @_all(list_options)
    @filter_options(resource_type)
    @arguments.list_options(orders)
    @click.pass_obj
    def list_resources(
        settings: Settings, /, selection: arguments.Selection, conditions: Conditions, **query: Any
    ) -> None:
        query["filter"] = conditions.filter(resource_type)
        with settings.connect() as client:
            list_items = collection(client, resource_type).list
            output.print_list(list_items, query, selection, as_json=settings.json)

    @group.command(
        help=f'Update a {name}.\n\nBODY is the new text, or "-" to read it from stdin. Without BODY the text '
        "does not change. Only what is given changes.",
        epilog=examples(
            f'{command} update 1 "Hello again" --etag v1',
            f"{command} update 1 --set-label status=hidden --remove-label new",
        ),
    )
    @click.argument("id", type=arguments.ID)
    @arguments.update_parameters(resource_type)
    @arguments.etag_option
    @arguments.request_id_option
    @click.pass_obj
    def update(settings: Settings, /, id: int, etag: str, request_id: str | None, **fields: Any) -> None:
        arguments.check_update(fields)
        with settings.connect() as client:
            resources = collection(client, resource_type)
            updated = resources.update(id, **arguments.given(fields), etag=etag, request_id=request_id)
            output.print_items([updated], as_json=settings.json)

    @group.command(
        help=f"Delete {plural} and print their last states.\n\nIf one cannot be deleted, none are.",
        epilog=examples(f"{command} delete 1 2 --allow-missing"),
    )
    @arguments.ids_argument
    @arguments.force_option(resource_type)
    @arguments.allow_missing_option
    @arguments.etag_option
    @arguments.request_id_option
    @click.pass_obj
    def delete(settings: Settings, /, ids: tuple[int, ...], etag: str, **options: Any) -> None:
        arguments.check_one_etag(ids, etag)
        with settings.connect() as client:
            resources = collection(client, resource_type)
            if etag:
                deleted = resources.delete(ids[0], etag=etag, **options)
                # With --allow-missing, a resource that did not exist has only an id.
                output.print_items([deleted] if deleted.etag else [], as_json=settings.json)
            else:
                output.print_items(resources.delete_many(ids, **options), as_json=settings.json)

    @group.command(
        help=f"Restore a deleted {name} and print it.\n\nWhat was deleted together with it by --force is "
        "restored too. This is possible until its purge_time, if the service keeps deleted "
        f"{plural}. `{command} list --show-deleted` lists them.",
        epilog=examples(f"{command} undelete 1"),
    )
    @click.argument("id", type=arguments.ID)
    @arguments.request_id_option
    @click.pass_obj
    def undelete(settings: Settings, id: int, request_id: str | None) -> None:
        with settings.connect() as client:
            restored = collection(client, resource_type).undelete(id, request_id=request_id)
            output.print_items([restored], as_json=settings.json)

    @group.command(
        help=f"Print the former versions of a {name}, newest first.\n\nThe service keeps the last 10 unless "
        "it is configured otherwise.",
        epilog=examples(f"{command} revisions 1"),
    )
    @click.argument("id", type=arguments.ID)
    @arguments.show_deleted_option
    @click.pass_obj
    def revisions(settings: Settings, id: int, show_deleted: bool) -> None:
        with settings.connect() as client:
            versions = collection(client, resource_type).revisions(id, show_deleted=show_deleted)
            output.print_items(versions, as_json=settings.json)

    @group.command(
        help=f'Search the texts of {plural}, newest first.\n\nQUERY has words, "phrases", prefixes* and '
        f"-exclusions. Each result is an id and the part of the text around the first match.",
        epilog=examples(f"{command} search 'coffee \"free refill\" -decaf'"),
    )
    @arguments.query_argument
    @_all(list_options)
    @filter_options(resource_type)
    @arguments.search_options
    @click.pass_obj
    def search(
        settings: Settings, /, query: str, limit: int | None, conditions: Conditions, **options: Any
    ) -> None:
        with settings.connect() as client:
            results = collection(client, resource_type).search(
                query, limit=limit, filter=conditions.filter(resource_type), **options
            )
            output.print_results(results, as_json=settings.json)

    return group


def _all(decorators: Sequence[Decorator]) -> Decorator:
    def decorate(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


posts: Final = _group(POSTS)
comments: Final = _group(
    COMMENTS,
    orders=arguments.ORDERS + arguments.THREAD_ORDERS,
    list_options=[
        click.option("--post", "post_id", metavar="ID", type=arguments.ID, help="Only comments on this post.")
    ],
    list_examples=[
        "storeapi comments list --post 1",
        "storeapi comments list --post 1 --order-by thread",
    ],
)


_max_count_option = click.option(
    "--max-count",
    metavar="NUMBER",
    type=click.IntRange(min=0),
    default=0,
    help="Stop counting at NUMBER, which takes a bounded time; 0: no limit.",
)


@posts.command("count", epilog=examples("storeapi posts count", "storeapi posts count --label status=new"))
@filter_options(POSTS)
@_max_count_option
@click.pass_obj
def count_posts(settings: Settings, max_count: int, conditions: Conditions) -> None:
    """Print the number of posts."""
    with settings.connect() as client:
        count = client.posts.count(conditions.filter(POSTS), max_count=max_count)
        output.print_count(count, counted="post", as_json=settings.json)


@comments.command(
    "count", epilog=examples("storeapi comments count 1 2 3", "storeapi comments count --label status=new")
)
@click.argument("post_ids", metavar="[POST_ID]...", type=arguments.ID, nargs=-1)
@filter_options(COMMENTS)
@_max_count_option
@click.pass_obj
def count_comments(
    settings: Settings, post_ids: tuple[int, ...], max_count: int, conditions: Conditions
) -> None:
    """Print the number of comments of each post; 0 if the post does not exist.

    Without POST_ID, print the number of comments of all posts together.
    """
    filter = conditions.filter(COMMENTS)
    with settings.connect() as client:
        if not post_ids:
            count = client.comments.count_all(filter, max_count=max_count)
            output.print_count(count, counted="comment", as_json=settings.json)
            return
        counts = client.comments.count(post_ids, filter, max_count=max_count)
        # In the order of the arguments, which a map does not keep.
        counts = {post_id: counts[post_id] for post_id in post_ids}
        output.print_counts(counts, of="post", counted="comment", as_json=settings.json)


@comments.command("count-replies", epilog=examples("storeapi comments count-replies 1 2 3"))
@click.argument("comment_ids", metavar="COMMENT_ID...", type=arguments.ID, nargs=-1, required=True)
@filter_options(COMMENTS, is_about_replies=True)
@_max_count_option
@click.pass_obj
def count_replies(
    settings: Settings, comment_ids: tuple[int, ...], max_count: int, conditions: Conditions
) -> None:
    """Print the number of direct replies to each comment."""
    with settings.connect() as client:
        filter = conditions.filter(COMMENTS)
        counts = client.comments.count_replies(comment_ids, filter, max_count=max_count)
        counts = {comment_id: counts[comment_id] for comment_id in comment_ids}
        output.print_counts(counts, of="comment", counted="reply", as_json=settings.json)
