"""The client works on every Python that it allows, with the oldest and the newest libraries that it allows.

Code that one protobuf generated refuses to load under an older one, and some newer ones warn about it
(docs/decisions/0002), so both ends of the range are tried, each on the oldest and the newest Python.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.repository import ROOT, Wheels
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

OLDEST, NEWEST = ROOT / "requirements/oldest.txt", ROOT / "requirements/dev.txt"
PROJECT = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())["project"]
LIBRARIES = ("protobuf", "grpcio", "googleapis-common-protos")

PROTOBUF_6 = "6.31.1 --hash=sha256:720a6c7e6b77288b85063569baae8536671b39f15cc22037ec7045658d80489e"
"""The last protobuf that warns about code which protobuf 5 generated; the pure Python distribution."""

TRIED = [
    ("3.10", OLDEST, {}),
    ("3.10", NEWEST, {}),
    ("3.11", OLDEST, {}),
    ("3.12", OLDEST, {"protobuf": PROTOBUF_6}),
    ("3.13", OLDEST, {}),
    ("3.13", NEWEST, {}),
]
"""Each Python once, the first and the last with both ends of the range, and a protobuf between."""


def pinned(requirements: Path) -> dict[str, str]:
    """Each distribution of a file of requirements with its version, its hashes and all."""
    blocks = re.findall(r"^([a-z0-9-]+)==((?:.*\\\n)*.*)", requirements.read_text(), re.MULTILINE)
    return dict(blocks)


def version_of(name: str, requirements: Path) -> str:
    """The version that is pinned."""
    return pinned(requirements)[name].split()[0]


def interpreter(version: str) -> Path:
    """A Python of this version, on the PATH or kept by pyenv; without one the test is skipped."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    on_path = shutil.which(name)
    for candidate in [on_path, *sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"))]:
        # pyenv puts names on the PATH that do not run.
        if (
            candidate
            and not subprocess.run([candidate, "-c", ""], capture_output=True, check=False).returncode
        ):
            return Path(candidate)
    pytest.skip(f"{name} is not installed")


def environment(folder: Path, python: Path, pins: dict[str, str], wheel: Path) -> Path:
    """The Python of a new environment with the client's wheel, and what it needs from the pinned versions."""
    needed = folder / "needed.txt"
    # What these libraries need themselves; uv refuses what is missing here, and what the wheel forbids.
    names = [*LIBRARIES, *({"typing-extensions"} & set(pins))]
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    needed.write_text(
        "".join(f"{name}=={pins[name]}\n" for name in names)
        + f"storeapi @ {wheel.as_uri()} --hash=sha256:{digest}\n"
    )

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=scaled_timeout(100), check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    # Without pip, which takes longer than all the rest.
    run(python, "-m", "venv", "--without-pip", folder / "venv")
    installed = folder / "venv/bin/python"
    uv = [sys.executable, ROOT / "tools/uv_pip.py", "install", "--python", installed]
    run(*uv, "--require-hashes", "--only-binary", ":all:", "-r", needed)
    return installed


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("python", "requirements", "others"),
    TRIED,
    ids=[" ".join([python, "oldest" if it == OLDEST else "newest", *others]) for python, it, others in TRIED],
)
def test_client_works_with_the_pinned_versions(
    python: str,
    requirements: Path,
    others: dict[str, str],
    tmp_path: Path,
    wheels: Wheels,
    server_process: ServerProcess,
) -> None:
    """Stubs, sync and asyncio clients call, watch and read errors without warnings."""
    pins = pinned(requirements) | others
    installed = environment(tmp_path, interpreter(python), pins, wheels.storeapi)
    server_process.start()

    # Isolated: PYTHONPATH may lead to the sources.
    program = Path(__file__).with_name("old_client.py")
    command: list[str | Path] = [
        installed,
        "-I",
        "-W",
        "error",
        program,
        server_process.address,
        f"{scaled_timeout()}",
    ]
    # gRPC's core has lines of its own about connections that end.
    quiet = os.environ | {"GRPC_VERBOSITY": "NONE"}
    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=quiet,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )

    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    met, *versions = run.stdout.split()
    assert met.startswith(f"{python}.")
    assert versions == [pins[name].split()[0] for name in LIBRARIES]


def test_oldest_pins_are_the_declared_minimums() -> None:
    declared = dict(re.findall(r"^([a-z0-9-]+)>=([0-9.]+)", "\n".join(PROJECT["dependencies"]), re.MULTILINE))

    assert set(declared) == set(LIBRARIES)
    for name, lowest in declared.items():
        assert re.fullmatch(re.escape(lowest) + r"(\.0)*", version_of(name, OLDEST)), name
    assert not re.search(r"://|--index|--find-links", OLDEST.read_text())


def test_newest_libraries_are_newer_than_the_oldest() -> None:
    """The first and the last major version of protobuf and two minor ones of gRPC are tested."""

    def numbers(name: str, requirements: Path) -> list[int]:
        return [int(part) for part in version_of(name, requirements).split(".")]

    assert [numbers("protobuf", it)[0] for it in (OLDEST, NEWEST)] == [5, 7]
    assert numbers("grpcio", NEWEST)[:2] > numbers("grpcio", OLDEST)[:2]


def test_oldest_python_is_tested() -> None:
    """The one that the client declares is the first that is tried."""
    assert PROJECT["requires-python"] == f">={TRIED[0][0]}"
