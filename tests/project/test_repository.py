"""The repository keeps what it promises of itself: contract, changelog, commands, no traces of a machine."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import grpc
import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from storeapi.v1 import errors_pb2

from store_service.config import Config, environment_variable
from tests.support.repository import ROOT, repository_files
from tests.support.timeouts import scaled_timeout

CODES = {code.name for code in grpc.StatusCode}
REASONS = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
SETTINGS = {environment_variable(name) for name in Config.model_fields}
_ERROR = re.compile(r"([A-Z_]+) \(([A-Z_, ]+)\)")
"""How comments name errors: NOT_FOUND (POST_NOT_FOUND), or several reasons of one code."""


TRACES = {
    "address of a package index": rb"(?i)https?://[^\s\"'<>)]*(pypi|pythonhosted|devpi|artifactory|/simple/)",
    "choice of a package index": rb"--(extra-)?index-url[ =]|--find-links[ =]|[P]IP_INDEX_URL",
    "home folder": rb"(?<![\w.*])/(root|home/\w+|Users/\w+)/",
}


@pytest.mark.parametrize("trace", TRACES)
def test_no_file_contains_local_paths(trace: str) -> None:
    """No package index and no home directory."""
    pattern = re.compile(TRACES[trace])

    found = {
        f"{path.relative_to(ROOT)}: {match[0].decode(errors='replace')}"
        for path in repository_files()
        if (match := pattern.search(path.read_bytes()))
    }

    assert found == set()


@pytest.mark.parametrize(
    ("trace", "text"),
    [
        # ~ is taken out, so that this file is not found itself.
        ("address of a package index", "see https://py~pi.example/project/grpcio"),
        ("address of a package index", "http://mirror.example:3141/sim~ple/"),
        ("choice of a package index", "pip install --index~-url=x"),
        ("home folder", "sqlite:////ho~me/somebody/store.db"),
        ("home folder", "in /ro~ot/.cache"),
    ],
)
def test_local_paths_are_found(trace: str, text: str) -> None:
    assert re.search(TRACES[trace], text.replace("~", "").encode())


# The contract


def contract() -> list[FileDescriptorProto]:
    """The shipped protos with their comments."""
    shipped = FileDescriptorSet.FromString(files("storeapi.v1").joinpath("descriptors.binpb").read_bytes())
    return [file for file in shipped.file if file.package == "storeapi.v1"]


@dataclass(frozen=True)
class Documented:
    """One element of the contract."""

    kind: str
    name: str
    comment: str


def elements() -> list[Documented]:
    """Every service, RPC, message, field, enum and enum value, with its comment."""
    return [element for file in contract() for element in _elements(file)]


def _elements(file: FileDescriptorProto) -> Iterator[Documented]:
    comments = {
        tuple(it.path): (it.leading_comments or it.trailing_comments).strip()
        for it in file.source_code_info.location
    }

    def documented(kind: str, name: str, *path: int) -> Documented:
        return Documented(kind, name, comments.get(path, ""))

    # The numbers are those of the fields in descriptor.proto; a path is made of them and of indexes.
    in_file, in_message = FileDescriptorProto, DescriptorProto

    def of_enum(enum: EnumDescriptorProto, name: str, *path: int) -> Iterator[Documented]:
        yield documented("enum", name, *path)
        for index, value in enumerate(enum.value):
            place = EnumDescriptorProto.VALUE_FIELD_NUMBER
            yield documented("enum value", f"{name}.{value.name}", *path, place, index)

    def of_message(message: DescriptorProto, name: str, *path: int) -> Iterator[Documented]:
        if message.options.map_entry:
            return
        yield documented("message", name, *path)
        for index, field in enumerate(message.field):
            yield documented("field", f"{name}.{field.name}", *path, in_message.FIELD_FIELD_NUMBER, index)
        for index, nested in enumerate(message.nested_type):
            yield from of_message(
                nested, f"{name}.{nested.name}", *path, in_message.NESTED_TYPE_FIELD_NUMBER, index
            )
        for index, enum in enumerate(message.enum_type):
            yield from of_enum(enum, f"{name}.{enum.name}", *path, in_message.ENUM_TYPE_FIELD_NUMBER, index)

    for index, service in enumerate(file.service):
        path = (in_file.SERVICE_FIELD_NUMBER, index)
        yield documented("service", service.name, *path)
        for number, method in enumerate(service.method):
            place = ServiceDescriptorProto.METHOD_FIELD_NUMBER
            yield documented("RPC", f"{service.name}.{method.name}", *path, place, number)
    for index, message in enumerate(file.message_type):
        yield from of_message(message, message.name, in_file.MESSAGE_TYPE_FIELD_NUMBER, index)
    for index, enum in enumerate(file.enum_type):
        yield from of_enum(enum, enum.name, in_file.ENUM_TYPE_FIELD_NUMBER, index)


RPCS = [element for element in elements() if element.kind == "RPC"]
rpcs = pytest.mark.parametrize("rpc", RPCS, ids=lambda rpc: rpc.name)


def errors_of(rpc: Documented) -> list[tuple[str, str]]:
    """Code and reason of each error that the comment of an RPC lists."""
    listed = rpc.comment.partition("\n Errors:")[2]
    lines = re.findall(r"^ - ([A-Z_]+) \(([A-Z_, ]+)\): \S", listed, re.MULTILINE)
    assert len(lines) == listed.count("\n - "), f"{rpc.name} lists an error in another form"
    return [(code, reason) for code, reasons in lines for reason in reasons.split(", ")]


def test_every_contract_element_has_a_comment() -> None:
    """The protos are the manual: a reader of any language finds each element explained."""
    found = elements()

    assert {element.kind for element in found} == {"service", "RPC", "message", "field", "enum", "enum value"}
    assert len(RPCS) == 34
    assert [element.name for element in found if not element.comment] == []


WITHOUT_FIELDS = {"AdminService.RebuildSearchIndex"}
"""RPCs whose requests have no fields."""


@rpcs
def test_every_rpc_lists_its_errors(rpc: Documented) -> None:
    """Every RPC validates its request, so it has some. One has no fields to validate."""
    errors = errors_of(rpc)

    assert (("INVALID_ARGUMENT", "FIELD_INVALID") in errors) != (rpc.name in WITHOUT_FIELDS)
    assert {code for code, _ in errors} <= CODES
    assert {reason for _, reason in errors} <= REASONS


def code_of() -> dict[str, str]:
    """The code of each reason, with which its own comment begins."""
    prefix = "ErrorReason.ERROR_REASON_"
    values = [element for element in elements() if element.name.startswith(prefix)]
    return {value.name.removeprefix(prefix): re.match(r"[A-Z_]*", value.comment)[0] for value in values}


def test_comments_agree_on_the_code_of_a_reason() -> None:
    """Wherever a reason stands beside a code, it is the code with which the reason is explained."""
    wanted = code_of()

    named = [
        (element.name, code, reason)
        for element in elements()
        for code, reasons in _ERROR.findall(element.comment)
        for reason in reasons.split(", ")
        if code in CODES
    ]

    assert len(named) > 50
    assert [it for it in named if wanted.get(it[2]) != it[1]] == []


def test_comments_name_only_existing_reasons() -> None:
    """No comment speaks of a reason, code, enum value or setting that is misspelt or gone."""
    values = {element.name.rpartition(".")[2] for element in elements() if element.kind == "enum value"}
    words = {
        (element.name, word)
        for element in elements()
        for word in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", element.comment)
    }

    assert [
        (name, word)
        for name, word in sorted(words)
        if word not in REASONS | CODES | values | SETTINGS and word != "ERROR_REASON_"
    ] == []


def test_every_reason_is_named_by_a_service_or_rpc() -> None:
    """No reason is explained that no service or RPC gives."""
    given = " ".join(element.comment for element in elements() if element.kind in ("service", "RPC"))

    assert {reason for reason in REASONS if not re.search(rf"\b{reason}\b", given)} == {"UNSPECIFIED"}


# Version and commands


def test_changelog_has_this_version() -> None:
    """Both distributions have the same version."""
    versions = {
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]["version"]
        for folder in (".", "clients/python")
    }

    assert len(versions) == 1
    headings = re.findall(r"^## \[?v?([0-9][^\s\]]*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in versions


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make as a person would, also when `make test` runs this."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )


def test_make_help_lists_existing_commands() -> None:
    """Each target has a description, and the important ones are listed."""
    printed = make("help")
    assert printed.returncode == 0, printed.stderr
    lines = [re.fullmatch(r"([a-z-]+) +(\S.*)", line) for line in printed.stdout.splitlines()]

    assert all(lines), printed.stdout
    targets = {line[1] for line in lines if line}
    assert {"install", "run", "test", "check", "protos"} <= targets
    for target in sorted(targets):
        planned = make("--dry-run", target)
        assert planned.returncode == 0, f"{target}: {planned.stderr}"


def test_links_in_documents_exist() -> None:
    """A link between files of the repository leads somewhere."""
    documents = [path for path in repository_files() if path.suffix == ".md"]

    links = {
        (str(document.relative_to(ROOT)), link)
        for document in documents
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())
        if "://" not in link
    }

    assert len(links) >= 3
    assert [
        (name, link) for name, link in sorted(links) if not (ROOT / name).parent.joinpath(link).exists()
    ] == []
