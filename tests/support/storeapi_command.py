"""The command `storeapi`: in this process, and as a process."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from storeapi.cli.program import program

from tests.support.forked_process import start_module
from tests.support.timeouts import scaled_timeout

INSTALLED_COMMAND = Path(sys.executable).with_name("storeapi")


@dataclass
class StoreapiCommand:
    """`storeapi`, pointed at a server."""

    target: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, *arguments: str, stdin: str | bytes | None = None) -> Result:
        """Calls it in this process."""
        runner = CliRunner(env=dict.fromkeys(self._own_settings()) | self._settings())
        return runner.invoke(program, arguments, input=stdin, prog_name="storeapi")

    def json(self, *arguments: str, stdin: str | bytes | None = None) -> list[dict[str, Any]]:
        """Calls it with --json, which must succeed, and reads what it prints."""
        done = self("--json", *arguments, stdin=stdin)
        assert (done.exit_code, done.stderr) == (0, ""), done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def start(self, *arguments: str, **keywords: Any) -> subprocess.Popen[bytes]:
        """Starts it as users do; to be ended by the test."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        environment = {key: value for key, value in os.environ.items() if key not in self._own_settings()}
        return start_module(
            "storeapi",
            *arguments,
            folder=self.folder,
            environment=environment | self._settings(),
            **pipes | keywords,
        )

    def process(self, *arguments: str) -> tuple[int, str, str]:
        """Runs it as users do and returns its exit code, stdout and stderr."""
        process = self.start(*arguments)
        stdout, stderr = process.communicate(timeout=scaled_timeout())
        return process.returncode, stdout.decode(errors="backslashreplace"), stderr.decode()

    def _settings(self) -> dict[str, str]:
        return {"STOREAPI_TARGET": self.target, **self.environment}

    def _own_settings(self) -> list[str]:
        return [name for name in os.environ if name.startswith("STOREAPI_")]
