"""`store-service keys`."""

from pathlib import Path

import click

from store_service.cli.ending import EPILOG, fail, settings_or_exit
from store_service.config import Config


@click.group(epilog=EPILOG, invoke_without_command=True)
@click.pass_context
def keys(context: click.Context) -> None:
    """Make and list the API keys of STORE_API_KEYS_FILE."""
    context.obj = settings_or_exit()
    if context.invoked_subcommand is None:
        raise click.UsageError("Missing command: new or list.")


@keys.command("new", epilog=EPILOG)
@click.argument("name")
@click.option("--rights", metavar="LIST", required=True, help="What it allows: some of read,write,watch.")
@click.pass_obj
def new_key(config: Config, name: str, rights: str) -> None:
    """Make a key for the caller NAME, print it, and add its line to the file.

    The key is printed on stdout this once: the file has only its SHA-256. A running server takes it within
    two seconds. Several keys may have one name, so that a caller can move from one to the next. To take a
    key away, delete its line.
    """
    from store_service.access import keys as api_keys
    from store_service.access.caller import rights_from

    path = _keys_file(config)
    key = api_keys.new_key()
    try:
        api_keys.append(path, name=name, key=key, rights=rights_from(rights.split(",")))
    except (ValueError, OSError) as error:
        fail(f"no key was made: {_explained(error, path)}")
    click.echo(key)


@keys.command("list", epilog=EPILOG)
@click.pass_obj
def list_keys(config: Config) -> None:
    """List the names that have keys or certificates, their rights, and how each hash begins."""
    from store_service.access import keys as api_keys

    path = _keys_file(config)
    try:
        ring = api_keys.parse(path.read_bytes())
    except OSError as error:
        fail(f"STORE_API_KEYS_FILE: {_explained(error, path)}")
    except ValueError as error:
        fail(f"STORE_API_KEYS_FILE: {path}: {error}")
    for line in ring.lines:
        click.echo(f"{line.name}\t{','.join(sorted(line.rights))}\t{line.digest.hex()[:8] or '-'}")


def _keys_file(config: Config) -> Path:
    if not config.api_keys_file:
        fail("STORE_API_KEYS_FILE: must be set, to the file that holds the keys", exit_code=2)
    return Path(config.api_keys_file)


def _explained(error: Exception, path: Path) -> str:
    """What was wrong; the system leaves out with which file."""
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
