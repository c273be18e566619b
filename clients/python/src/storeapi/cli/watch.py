"""`storeapi watch`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import click

from storeapi import Change
from storeapi._resources import COMMENTS, POSTS
from storeapi.cli import arguments, output
from storeapi.cli.files import replace_text
from storeapi.cli.filters import Conditions, filter_options
from storeapi.cli.help import examples
from storeapi.cli.settings import Settings
from storeapi.cli.text import field

Start = Literal["now", "earliest", "initial_state"]

STARTS: dict[str, Start] = {"now": "now", "earliest": "earliest", "initial-state": "initial_state"}
"""The values of --from."""


@click.command(epilog=examples("storeapi watch", "storeapi --json watch --from earliest --token-file place"))
@click.option(
    "--from",
    "start",
    type=click.Choice(list(STARTS)),
    default="now",
    show_default=True,
    help="Start at the current position, at the oldest change that is kept, or with all existing resources.",
)
@click.option("--resume-token", metavar="TOKEN", help="Continue after this token, instead of --from.")
@click.option(
    "--token-file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Continue after the token in this file, if it exists, and store the newest token in it.",
)
@click.option(
    "--kind", "kinds", type=click.Choice(["post", "comment"]), multiple=True, help="Only these; repeatable."
)
@click.option(
    "--post",
    "post_ids",
    metavar="ID",
    type=arguments.ID,
    multiple=True,
    help="Only this post and its comments; repeatable.",
)
@filter_options(POSTS, COMMENTS)
@click.option(
    "--exit-after",
    metavar="N",
    type=click.IntRange(min=1),
    help="End after N changes, and the rest of their last batch.",
)
@click.pass_obj
def watch(
    settings: Settings,
    start: str,
    resume_token: str | None,
    token_file: Path | None,
    kinds: tuple[Literal["post", "comment"], ...],
    post_ids: tuple[int, ...],
    conditions: Conditions,
    exit_after: int | None,
) -> None:
    r"""Print changes as they happen, one line each, until Ctrl-C.

    The command reconnects when the service is unavailable. With --token-file no change is missed between two
    runs: the token is written after the changes before it were printed, so after a crash the last few can be
    printed again. A line has three fields separated by tabs: the time, the action with kind and id, and the
    body, with line ends, tabs and backslashes as \n, \t and \\. With --json the last change of a batch has
    the position after it in "resume_token", and the others have null.

    --author, --label, --created-from and --created-before select changes of posts and comments that match
    before or after the change; --reply-to selects only among the comments.
    """
    resume_token = _stored_token(token_file) or resume_token
    printed = 0
    with (
        settings.connect() as client,
        client.changes.watch(
            resume_token=resume_token,
            start=STARTS[start],
            kinds=kinds,
            post_ids=post_ids,
            post_filter=conditions.filter(POSTS),
            comment_filter=conditions.filter(COMMENTS),
        ) as changes,
    ):
        for batch in changes.batches():
            for change in batch.changes:
                is_last = change is batch.changes[-1]
                _print(change, batch.resume_token if is_last else None, as_json=settings.json)
            sys.stdout.flush()
            if token_file is not None and batch.resume_token != resume_token:
                replace_text(token_file, batch.resume_token + "\n")
                resume_token = batch.resume_token
            printed += len(batch.changes)
            if exit_after is not None and printed >= exit_after:
                return


def _stored_token(token_file: Path | None) -> str:
    """The token in the file; empty if there is none."""
    if token_file is None:
        return ""
    if not token_file.absolute().parent.is_dir():
        raise click.UsageError(f"the directory of {token_file} does not exist", click.get_current_context())
    try:
        return token_file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError:
        raise click.UsageError(
            f"{token_file} does not contain a token", click.get_current_context()
        ) from None


def _print(change: Change, resume_token: str | None, *, as_json: bool) -> None:
    time = output.rfc3339(change.commit_time)
    if not as_json:
        body = "" if change.resource is None else f"\t{field(change.resource.body)}"
        on_post = f" on post {change.post_id}" if change.kind == "comment" else ""
        click.echo(f"{time or '-'}\t{change.action} {change.kind} {change.id}{on_post}{body}")
        return
    resource: dict[str, Any] = {}
    if change.resource is not None:
        resource = {change.kind: output.record(change.resource)}
    output.print_json(
        {
            "action": change.action,
            "kind": change.kind,
            "id": change.id,
            "post_id": change.post_id,
            "commit_time": time,
            "request_id": change.request_id,
            **resource,
            "resume_token": resume_token,
        }
    )
