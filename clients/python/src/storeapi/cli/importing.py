"""`storeapi import`."""

from __future__ import annotations

import hashlib
import sys
import tempfile
import uuid
from pathlib import Path
from typing import IO, Final

import click

from storeapi.cli import lines, output, progress
from storeapi.cli.batches import Importer
from storeapi.cli.failures import CommandFailed, ExitCode
from storeapi.cli.help import examples
from storeapi.cli.progress import Report
from storeapi.cli.settings import Settings

BY_CONTENT: Final = uuid.UUID("8f6f2f0e-6c1b-4d57-9a53-0f6a2f5f7c11")
"""The namespace of import ids that are derived from the content of a file."""


@click.command(
    "import", epilog=examples("storeapi import all.jsonl > ids.tsv", "zcat all.jsonl.gz | storeapi import")
)
@click.argument(
    "file", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
)
@click.option(
    "--import-id",
    metavar="TEXT",
    help="Id of this import. Default: derived from the content of the file.",
)
@click.option(
    "--ignore-unknown-fields",
    is_flag=True,
    help="Import without the fields that this version of the command does not know.",
)
@click.pass_obj
def import_(settings: Settings, file: Path, import_id: str | None, ignore_unknown_fields: bool) -> None:
    """Create the posts and comments of an export, each with a new id.

    The whole FILE ("-" is stdin, the default) is checked before anything is stored. Posts are created first,
    then comments on the new posts, in batches that are stored completely or not at all. Times and etags are
    new too. A comment must come before the replies to it. A reply to a comment that is not in the file
    becomes a comment at the top level. The tombstone of a deleted comment is created as a comment with the
    text "deleted", which is deleted when its replies exist: so replies keep their places. A post that the
    erasure of its author has emptied gets the same text. Another line with a delete_time is an error. The new
    ids go to stdout, unless that is a terminal: lines of kind, old id and new id.

    An unknown field is an error, unless --ignore-unknown-fields is given: the file may be from a newer
    version. A missing optional field gets its default.

    To continue an interrupted import, run the same command again. Nothing is created twice: every batch has a
    request id derived from the import id and its number, and a repeated batch gets its first response. The
    service keeps request ids for 24 hours unless configured otherwise; after that, a second run creates
    everything again. If a line is refused, change it, keep the lines before it unchanged, and run again with
    the import id in the error.

    To import the same file twice on purpose, give another --import-id. If resources that an import created
    have been deleted since, an import with the same id does not create them again: it reports them and ends
    with exit code 4.
    """
    # A copy, because it is read several times: stdin can be read only once, and a file can change.
    with tempfile.TemporaryFile() as copy, progress.shown(prints=settings.json) as report:
        if str(file) == "-":
            digest = _copied(sys.stdin.buffer, copy, report)
        else:
            with file.open("rb") as source:
                digest = _copied(source, copy, report)
        contents = lines.check(copy, report, ignore_unknown_fields=ignore_unknown_fields)
        import_id = import_id or str(uuid.uuid5(BY_CONTENT, digest))
        total = contents.posts + contents.comments
        done = 0
        report("importing", done, 0.0)
        with settings.connect() as client:
            importer = Importer(client, copy, import_id)
            try:
                for batch in importer.run():
                    for line, new_id in batch:
                        _print_ids(line, new_id, as_json=settings.json)
                    sys.stdout.flush()
                    done += len(batch)
                    report("importing", done, done / total)
            except KeyboardInterrupt:
                raise CommandFailed(
                    f"interrupted; to continue, {importer.again}", exit_code=ExitCode.INTERRUPTED
                ) from None
    if importer.deleted:
        raise CommandFailed(
            f"{importer.deleted} of {total} posts and comments were created by this import before and have "
            f"been deleted since; they were not created again (import id {import_id}; with another "
            "--import-id everything is created again)",
            exit_code=ExitCode.CONFLICT,
        )
    if contents.orphans:
        click.echo(
            f"{contents.orphans} replies to comments that are not in the file are comments at the top level",
            err=True,
        )
    summary = f"imported {contents.posts} posts and {contents.comments} comments (import id {import_id})"
    click.echo(summary, err=True)


def _copied(source: IO[bytes], copy: IO[bytes], report: Report) -> str:
    """Copies a file and returns the SHA-256 of its content."""
    digest = hashlib.sha256()
    report("reading bytes", 0, None)
    while piece := source.read(1 << 20):
        digest.update(piece)
        copy.write(piece)
        report("reading bytes", copy.tell(), None)
    return digest.hexdigest()


def _print_ids(line: lines.Line, new_id: int, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"kind": line.kind, "old_id": line.id, "new_id": new_id})
    elif not sys.stdout.isatty():
        click.echo(f"{line.kind}\t{line.id}\t{new_id}")
