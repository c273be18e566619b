"""The files of the repository, and what is built from them."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.timeouts import scaled_timeout

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Wheels:
    """The files that a release consists of."""

    storeapi: Path
    store_service: Path


# Traces of a machine


def repository_files() -> list[Path]:
    """Every file that is in git, or would be with the next `git add`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, timeout=scaled_timeout(), check=True
    ).stdout
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


def pins(lock: Path) -> dict[str, str]:
    """The packages of a lock, each with its version and hashes."""
    text = lock.read_text().replace("\\\n", " ")
    return {line.partition("==")[0]: line for line in text.splitlines() if "==" in line}


def pinned_version(pinned: str) -> str:
    """The version of a line."""
    return re.split(r"[ ;]", pinned.partition("==")[2], maxsplit=1)[0]
