"""Generates the stubs in clients/python from the .proto files, and copies these for other languages.

Run by `make protos` and `make check`. With --check, nothing is written; if files are stale, their names are
printed and the exit code is 1.
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
STUBS = ROOT / "clients/python/src"
PACKAGE = "storeapi/v1"
COPIES = "storeapi/protos"
COPIED = (f"{PACKAGE}/*.proto", "buf.gen.*.yaml")
GENERATED = (
    *(
        f"{PACKAGE}/{name}"
        for name in ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py", "*_pb2_grpc.pyi", "descriptors.binpb")
    ),
    # Every file: one that is not a copy is deleted.
    f"{COPIES}/**/*",
)
# Types that appear only inside google.protobuf.Any. Their comments are part of the documentation too.
DETAILS = ("google/rpc/error_details.proto", "google/rpc/status.proto")


def package_directory(name: str) -> Path:
    """Returns the directory of an installed package (namespace packages have no __file__)."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{name} is not installed; run `make protos`")
    return Path(next(iter(spec.submodule_search_locations)))


def protoc(*arguments: str) -> None:
    """Runs the compiler of grpcio-tools with the plugins in .venv."""
    plugins = ROOT / ".venv/bin"
    includes = [
        PROTOS,
        package_directory("grpc_tools") / "_proto",
        package_directory("google.rpc").parents[1],
    ]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in includes)]
    command += [f"--plugin={plugins / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    subprocess.run([*command, *arguments], check=True)


def generate(target: Path) -> None:
    """Writes every generated file below `target`."""
    protos = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    services = [name for name in protos if "\nservice " in (PROTOS / name).read_text()]
    protoc(f"--python_out={target}", f"--mypy_out=quiet:{target}", *protos)
    protoc(f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *services)
    protoc(
        f"--descriptor_set_out={target / PACKAGE / 'descriptors.binpb'}",
        "--include_imports",
        "--include_source_info",
        *protos,
        *DETAILS,
    )
    copy(target / COPIES)


def copy(target: Path) -> None:
    """Copies the files for other languages, as the wheel contains them."""
    for source in (path for pattern in COPIED for path in PROTOS.glob(pattern)):
        place = target / source.relative_to(PROTOS)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, place)


def files_below(directory: Path) -> dict[str, bytes]:
    """Returns the contents of the generated files of a directory, by relative path."""
    found = (path for pattern in GENERATED for path in directory.glob(pattern) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in found}


def main() -> int:
    """Generates or checks, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check

    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / PACKAGE).mkdir(parents=True)
        generate(Path(directory))
        wanted, present = files_below(Path(directory)), files_below(STUBS)

    stale = sorted(name for name in wanted | present if wanted.get(name) != present.get(name))
    if check:
        for name in stale:
            print(f"{name} is stale; run `make protos`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        path = STUBS / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(wanted[name])
        else:
            path.unlink()
        print(name)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
