"""`store-service keys`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from store_service.cli.errors import fail, settings_or_exit
from store_service.cli.help import Group, epilog
from store_service.config import Config

if TYPE_CHECKING:
    from store_service.auth.api_keys import KeyLine


@click.group(
    cls=Group,
    epilog=epilog("store-service keys new billing --permissions read,write", "store-service keys list"),
)
@click.pass_context
def keys(context: click.Context) -> None:
    """Create, list and remove the API keys of STORE_API_KEYS_FILE."""
    context.obj = settings_or_exit()


@keys.command("new", epilog=epilog("store-service keys new billing --permissions read,write"))
@click.argument("name")
@click.option(
    "--permissions",
    metavar="LIST",
    required=True,
    help="One or more of read,write,watch,admin, separated by commas.",
)
@click.pass_obj
def new_key(config: Config, name: str, permissions: str) -> None:
    """Create a key, print it, and add it to the file.

    The log shows NAME as the caller. The key is printed on stdout only once, because the file has only its
    SHA-256. A running server accepts the key within two seconds. Several keys may have the same name, so that
    a caller can change from one key to the next.
    """
    from store_service.auth import api_keys
    from store_service.auth.principal import parse_permissions

    path = _keys_file(config)
    key = api_keys.new_key()
    try:
        api_keys.append(path, name=name, key=key, permissions=parse_permissions(permissions.split(",")))
    except (ValueError, OSError) as error:
        fail(f"no key was created: {_error_text(error, path)}")
    click.echo(key)


@keys.command("list", epilog=epilog("store-service keys list"))
@click.pass_obj
def list_keys(config: Config) -> None:
    """List the name, the permissions and the first digits of the hash of each key.

    Prints one line for each key or certificate, with three fields separated by tabs. The hash of a
    certificate is -.
    """
    from store_service.auth import api_keys

    path = _keys_file(config)
    try:
        ring = api_keys.parse(path.read_bytes())
    except OSError as error:
        fail(f"STORE_API_KEYS_FILE: {_error_text(error, path)}")
    except ValueError as error:
        fail(f"STORE_API_KEYS_FILE: {path}: {error}")
    for line in ring.lines:
        _print(line)


@keys.command(
    "remove", epilog=epilog("store-service keys remove billing", "store-service keys remove 9f86d081")
)
@click.argument("which", metavar="NAME_OR_HASH")
@click.option("--all", "all_of_name", is_flag=True, help="Remove all lines with this name.")
@click.pass_obj
def remove_key(config: Config, which: str, all_of_name: bool) -> None:
    """Remove a key or certificate from the file, and print its line as `keys list` does.

    NAME_OR_HASH is the name, or the first digits of the hash as `keys list` prints them. If several keys have
    the name, give the hash of one, or --all. A running server refuses the key within two seconds. Comments
    and the other lines are unchanged.
    """
    from store_service.auth import api_keys

    path = _keys_file(config)
    try:
        removed = api_keys.remove(path, which, all_of_name=all_of_name)
    except (ValueError, OSError) as error:
        fail(f"no key was removed: {_error_text(error, path)}")
    for line in removed:
        _print(line)


def _print(line: "KeyLine") -> None:
    click.echo(f"{line.name}\t{','.join(sorted(line.permissions))}\t{line.digest.hex()[:8] or '-'}")


def _keys_file(config: Config) -> Path:
    if not config.api_keys_file:
        fail("STORE_API_KEYS_FILE: must be set to the file of the keys", exit_code=2)
    return Path(config.api_keys_file)


def _error_text(error: Exception, path: Path) -> str:
    """Returns the message of an error, with the path for errors of the system."""
    return f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
