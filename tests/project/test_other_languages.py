"""Clients in other languages: the protos are found, buf can work with them, the page about them is right."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet, FileOptions
from storeapi import files

from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

BIN = Path(sys.executable).parent
PAGE = (ROOT / "clients/README.md").read_text()
TEMPLATES = sorted(path.name for path in files.PROTOS.glob("buf.gen.*.yaml"))
SERVICE_FILES = {f"storeapi/v1/{name}.proto" for name in ("posts", "comments", "changes")}


def run(*command: str | Path, folder: Path, path: str = "") -> str:
    """Runs a command that must succeed, with a folder of programs before all others."""
    environment = os.environ | {"PATH": os.pathsep.join([path, str(BIN), os.environ["PATH"]])}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=scaled_timeout()
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "path"),
    [("protos", files.PROTOS), ("descriptors", files.DESCRIPTORS), ("service-config", files.SERVICE_CONFIG)],
)
def test_package_prints_the_paths_of_its_files(tmp_path: Path, name: str, path: Path) -> None:
    """A script gets each path by name, from whatever folder, and something is there."""
    printed = run(sys.executable, "-m", "storeapi.files", name, folder=tmp_path)

    assert printed == f"{path}\n"
    assert path.is_absolute()
    assert path.exists()


def test_all_paths_are_printed_without_a_name(tmp_path: Path) -> None:
    printed = run(sys.executable, "-m", "storeapi.files", folder=tmp_path)

    assert dict(line.split("\t") for line in printed.splitlines()) == {
        "protos": str(files.PROTOS),
        "descriptors": str(files.DESCRIPTORS),
        "service-config": str(files.SERVICE_CONFIG),
    }


def test_shipped_protos_are_complete(tmp_path: Path) -> None:
    """The directory is enough to build from, and equals the shipped descriptors."""
    run("buf", "build", files.PROTOS, "-o", tmp_path / "built.binpb", folder=tmp_path)

    built = FileDescriptorSet.FromString((tmp_path / "built.binpb").read_bytes())
    shipped = FileDescriptorSet.FromString(files.DESCRIPTORS.read_bytes())
    ours = {file.name for file in shipped.file if file.package == "storeapi.v1"}
    assert {file.name for file in built.file if file.package == "storeapi.v1"} == ours
    assert "google/rpc/error_details.proto" in {file.name for file in shipped.file}


def test_each_proto_names_the_packages_of_all_languages() -> None:
    """Every file has the same options, so that buf's managed mode is not needed."""
    shipped = FileDescriptorSet.FromString(files.DESCRIPTORS.read_bytes())
    options = {file.name: file.options for file in shipped.file if file.package == "storeapi.v1"}

    assert len(options) == len(list(ROOT.glob("protos/storeapi/v1/*.proto")))
    assert options == dict.fromkeys(
        options,
        FileOptions(
            csharp_namespace="Storeapi.V1",
            go_package="store-service.example/storeapi/storeapiv1;storeapiv1",
            java_multiple_files=True,
            java_package="storeapi.v1",
            objc_class_prefix="STA",
            php_namespace="Storeapi\\V1",
            ruby_package="Storeapi::V1",
        ),
    )


def plugins_in(folder: Path) -> Path:
    """Stands in for the plugins of all templates: each writes down the request that it is sent."""
    folder.mkdir()
    for name in ("protoc-gen-go", "protoc-gen-go-grpc", "protoc-gen-grpc-java", "protoc-gen-es"):
        (folder / name).write_text(f'#!/bin/sh\ncat > "{folder / name}.request"\n')
        (folder / name).chmod(0o755)
    # The messages in Java are protoc's own, which buf asks for its version first.
    (folder / "protoc").write_text('#!/bin/sh\ncase "$1" in --version) echo libprotoc 25.9;; esac\n')
    (folder / "protoc").chmod(0o755)
    return folder


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_template_gives_its_plugins_all_protos(tmp_path: Path, template: str) -> None:
    """buf accepts the template, and each plugin generates every service."""
    plugins = plugins_in(tmp_path / "plugins")

    run(
        "buf",
        "generate",
        files.PROTOS,
        "--template",
        files.PROTOS / template,
        folder=tmp_path,
        path=str(plugins),
    )

    named = re.findall(r"- local: (\S+)", (files.PROTOS / template).read_text())
    asked = {path.stem: path.read_bytes() for path in plugins.glob("*.request")}
    assert sorted(asked) == sorted(named)
    for data in asked.values():
        request = plugin_pb2.CodeGeneratorRequest.FromString(data)
        assert set(request.file_to_generate) >= SERVICE_FILES


def test_running_server_provides_its_protos(tmp_path: Path) -> None:
    """The grpcurl command of the page writes a descriptor set for buf."""
    server = ServerProcess(tmp_path)
    try:
        address = server.start().address
        (line,) = re.findall(r"^grpcurl (.*?) localhost:50051 (\w+)", PAGE, re.MULTILINE)
        run("grpcurl", *line[0].split(), address, line[1], folder=tmp_path)
    finally:
        server.kill()

    descriptors = FileDescriptorSet.FromString((tmp_path / "store.binpb").read_bytes())
    assert {file.name for file in descriptors.file} >= SERVICE_FILES


def buf_curl(address: str, command: str) -> subprocess.CompletedProcess[str]:
    """Runs the arguments of a `buf curl` command against a server."""
    arguments = shlex.split(command.replace("localhost:50051", address))
    return subprocess.run(
        [BIN / "buf", *arguments], capture_output=True, text=True, timeout=scaled_timeout(), check=False
    )


def test_buf_calls_the_service_with_the_grpc_protocol(tmp_path: Path) -> None:
    """As docs/proxies.md shows it. With its default protocol, gRPC resets the stream."""
    page = (ROOT / "docs/proxies.md").read_text().replace("\\\n", "")
    (command,) = re.findall(r"^buf (curl .*)$", page, re.MULTILINE)
    server = ServerProcess(tmp_path)
    try:
        address = server.start().address
        called = buf_curl(address, command)
        reset = buf_curl(address, command.replace("--protocol grpc", f"--schema {files.PROTOS}"))
    finally:
        server.kill()

    assert json.loads(called.stdout)["body"] == "Hello", called.stderr
    assert "stream error: stream ID 1; INTERNAL_ERROR; received from peer" in reset.stderr
    assert "`stream error: stream ID 1; INTERNAL_ERROR; received from peer`" in page


def test_page_names_every_template_and_file() -> None:
    languages = {name.split(".")[2] for name in TEMPLATES}

    assert languages == {"go", "java", "typescript"}
    assert set(re.findall(r"buf\.gen\.(\w+)\.yaml", PAGE)) == languages - {"typescript"}
    assert {"descriptors", "service-config"} <= set(re.findall(r"[\w-]+", PAGE))
