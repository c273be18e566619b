"""`make clients` needs none of the toolchains of other languages."""

import shutil
import subprocess
from pathlib import Path

from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout


def test_clients_without_their_tools_are_named(tmp_path: Path) -> None:
    for name in ("make", "sh", "find"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)

    done = subprocess.run(
        ["make", "--silent", "clients"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "clients/go was not built, because go is not installed.",
        "clients/typescript was not built, because npm is not installed.",
        "clients/java was not built, because mvn is not installed.",
        "clients/rust was not built, because cargo is not installed.",
    ]
