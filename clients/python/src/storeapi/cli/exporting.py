"""`storeapi export`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from storeapi import ExportTotals, StoreClient
from storeapi.cli import progress
from storeapi.cli.failures import CommandFailed, ExitCode
from storeapi.cli.files import whole_file
from storeapi.cli.help import examples
from storeapi.cli.partial_export import PartialExport
from storeapi.cli.progress import Report
from storeapi.cli.settings import Settings


@click.command(
    "export", epilog=examples("storeapi export all.jsonl", "storeapi export | gzip > all.jsonl.gz")
)
@click.argument("file", default="-", type=click.Path(dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--resume", is_flag=True, help="Continue the export into FILE that was interrupted.")
@click.pass_obj
def export(settings: Settings, file: Path, resume: bool) -> None:
    """Write everything that is stored as JSON lines.

    Posts, comments and tombstones, deleted posts and comments that can be restored, and former versions, with
    ids, times and etags: `storeapi import` stores them again. It needs the permission admin. Other callers
    may write meanwhile: the records are those of one point in time, at the end of the export.

    FILE is created, or replaced, only when the export is complete; "-" is stdout, the default. Until then the
    records are in FILE.partial, or in a temporary file. After an interruption, --resume continues.
    """
    if str(file) == "-":
        if resume:
            raise click.UsageError("--resume needs a FILE", click.get_current_context())
        with tempfile.TemporaryFile() as partial_file:
            counted = _write(settings, PartialExport(partial_file), file)
    else:
        part, state = file.with_name(f"{file.name}.partial"), file.with_name(f"{file.name}.partial.state")
        if resume and not (part.exists() and state.exists()):
            raise click.UsageError(f"there is no interrupted export into {file}", click.get_current_context())
        with part.open("r+b" if resume else "w+b") as partial_file:
            partial = PartialExport(partial_file, state)
            if resume:
                partial.resume()
            try:
                counted = _write(settings, partial, file)
            except KeyboardInterrupt:
                partial.save()
                message = f"interrupted; to continue: storeapi export --resume {file}"
                raise CommandFailed(message, exit_code=ExitCode.INTERRUPTED) from None
            except BaseException:
                partial.save()
                if not partial.cursor:
                    partial.remove(part)
                raise
            partial.remove(part)
    click.echo(_summary(*counted), err=True)


def _write(settings: Settings, partial: PartialExport, file: Path) -> tuple[int, ExportTotals]:
    with settings.connect() as client, progress.shown(prints=str(file) == "-") as report:
        totals = receive(client, partial, report)
        report("writing", partial.records, None)
        if str(file) == "-":
            count = partial.write_to(sys.stdout.buffer)
            sys.stdout.flush()
        else:
            with whole_file(file) as target:
                count = partial.write_to(target)
    return count, totals


def receive(client: StoreClient, partial: PartialExport, report: Report) -> ExportTotals:
    """Adds all batches of an export, and returns the number of its records."""
    total = 0
    report("exporting", partial.records, None)
    with client.transfer.export(cursor=partial.cursor) as batches:
        for batch in batches:
            partial.add(batch)
            total = batch.estimated_records or total
            report("exporting", partial.records, min(partial.records / total, 1.0) if total else None)
            if batch.totals is not None:
                return batch.totals
    raise AssertionError("an export that is not closed ends with totals")


def _summary(count: int, totals: ExportTotals) -> str:
    text = f"exported {totals.posts} posts and {totals.comments} comments"
    more = [
        f"{number} {name}"
        for number, name in (
            (totals.deleted_posts, "deleted posts"),
            (totals.deleted_comments, "deleted comments"),
            (totals.revisions, "former versions"),
        )
        if number
    ]
    text += f", {', '.join(more)}" if more else ""
    # Retention removes deleted resources without changes.
    return text if count == totals.all else f"{text}; {count} records, some of which were purged meanwhile"
