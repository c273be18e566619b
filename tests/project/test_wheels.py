"""The wheels contain what users need, and no files of others."""

import json
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path, PurePosixPath

import pytest

from tests.support.repository import ROOT, Wheels

BOTH = ["storeapi", "store_service"]


def names_in(wheel: Path) -> set[str]:
    """Every file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel: Path) -> Message:
    """What the wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [it for it in archive.namelist() if it.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def top_level(names: set[str]) -> set[str]:
    """What an installation puts beside other people's packages."""
    return {name.partition("/")[0] for name in names if ".dist-info/" not in name}


def sources(folder: Path, *patterns: str) -> set[str]:
    """The files of a package, as a wheel names them."""
    found = {path for pattern in patterns for path in folder.rglob(pattern)}
    return {str(PurePosixPath(path.relative_to(folder.parent))) for path in found}


def test_client_wheel_has_types_and_stubs(wheels: Wheels) -> None:
    """With the comments for reflection."""
    names = names_in(wheels.storeapi)

    generated = {
        f"storeapi/v1/{proto.stem}_pb2{end}"
        for proto in (ROOT / "protos/storeapi/v1").glob("*.proto")
        for end in (".py", ".pyi", *(["_grpc.py", "_grpc.pyi"] if "\nservice " in proto.read_text() else []))
    }
    assert len(generated) == 8 * 2 + 5 * 2
    assert (
        generated | {"storeapi/py.typed", "storeapi/v1/descriptors.binpb", "storeapi/v1/__init__.py"} <= names
    )


def test_client_wheel_has_all_sources(wheels: Wheels) -> None:
    """No module of the client is left out."""
    package = ROOT / "clients/python/src/storeapi"

    modules = sources(package, "*.py", "*.pyi", "py.typed", "*.binpb", "*.proto", "*.yaml", "*.json")

    assert {name for name in names_in(wheels.storeapi) if ".dist-info/" not in name} == modules


def test_client_wheel_has_the_files_for_other_languages(wheels: Wheels) -> None:
    """Every proto of the repository, and the service config."""
    with zipfile.ZipFile(wheels.storeapi) as archive:
        shipped = {
            name.removeprefix("storeapi/protos/"): archive.read(name)
            for name in archive.namelist()
            if name.startswith("storeapi/protos/")
        }
        config = json.loads(archive.read("storeapi/service_config.json"))

    found = [*(ROOT / "protos").rglob("*.proto"), *(ROOT / "protos").glob("buf.gen.*.yaml")]
    assert shipped == {str(path.relative_to(ROOT / "protos")): path.read_bytes() for path in found}
    assert len(shipped) >= 4 + 3
    assert config["methodConfig"]


def test_server_wheel_has_all_sources_and_migrations(wheels: Wheels) -> None:
    """No module is left out, also not the revisions, which nothing imports."""
    names = names_in(wheels.store_service)

    modules = sources(ROOT / "store_service", "*.py")
    migrations = {name for name in modules if name.startswith("store_service/database/migrations/versions/")}
    assert modules <= names
    assert "store_service/database/migrations/env.py" in names
    assert len(migrations) >= 3


@pytest.mark.parametrize("distribution", BOTH)
def test_wheel_has_one_package_and_no_tests(wheels: Wheels, distribution: str) -> None:
    """A top-level google, buf or tests package would overwrite files of others.

    Protos are inside of the client's package, in a folder of their own, and nowhere else.
    """
    names = names_in(getattr(wheels, distribution))

    assert top_level(names) == {distribution}
    protos = {name for name in names if name.endswith(".proto")}
    assert {name for name in protos if not name.startswith("storeapi/protos/storeapi/v1/")} == set()
    assert not [name for name in names if "test" in PurePosixPath(name).name]
    assert not [name for name in names if "__pycache__" in name or name.endswith((".db", ".log", ".env"))]


@pytest.mark.parametrize("distribution", BOTH)
def test_wheel_has_its_license_and_readme(wheels: Wheels, distribution: str) -> None:
    """The licence is named, and its text is inside; the readme is the description."""
    wheel = getattr(wheels, distribution)
    metadata = metadata_of(wheel)

    readme = ROOT / ("clients/python" if distribution == "storeapi" else "") / "README.md"
    assert metadata["License-Expression"] == "MIT"
    assert [name for name in names_in(wheel) if name.endswith(".dist-info/licenses/LICENSE")]
    assert metadata.get_payload() == readme.read_text()


@pytest.mark.parametrize("distribution", BOTH)
def test_wheel_metadata_has_no_urls(wheels: Wheels, distribution: str) -> None:
    metadata = metadata_of(getattr(wheels, distribution))

    headers = {name.lower() for name in metadata}
    assert not headers & {"home-page", "download-url", "project-url", "author-email", "maintainer-email"}
    assert not [value for _, value in metadata.items() if "://" in value]


def test_server_requires_the_client_of_its_version(wheels: Wheels) -> None:
    """Both are released together, and the stubs are only in the client."""
    server, client = metadata_of(wheels.store_service), metadata_of(wheels.storeapi)

    assert server["Version"] == client["Version"]
    assert f"storeapi=={client['Version']}" in (server.get_all("Requires-Dist") or [])
