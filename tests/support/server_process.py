"""`store-service` as a child process: a server, or a command that runs to its end."""

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.forked_process import start_module
from tests.support.timeouts import scaled_timeout


@dataclass
class ServerProcess:
    """`store-service serve` as a child process with its own working directory."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables. The port is chosen by the system unless it is set here."""
    program: tuple[str, ...] = ("-m", "store_service")
    """The arguments of Python. Another program may change constants before it serves."""
    process: subprocess.Popen[bytes] | None = None
    address: str = ""

    def start(self) -> "ServerProcess":
        """Starts the server, waits until it serves, and sets `address`."""
        self.begin()
        assert self.process is not None
        try:
            line = _first_line(self.process, scaled_timeout())
            prefix = "store-service is serving on "
            assert line.startswith(prefix), f"{line!r}; stderr: {self.stderr()}"
        except BaseException:
            # A fixture stops only a server that it received.
            self.kill()
            raise
        self.address = line.removeprefix(prefix).strip()
        return self

    def begin(self) -> None:
        """Starts the process without waiting until it serves."""
        environment = _without_settings(os.environ)
        environment |= {"STORE_LISTEN": "127.0.0.1:0", **self.settings}
        with (self.folder / "stderr.log").open("ab") as stderr:
            streams = {"stdout": subprocess.PIPE, "stderr": stderr}
            if self.program == ServerProcess.program:
                self.process = start_module(
                    "store_service", "serve", folder=self.folder, environment=environment, **streams
                )
            else:
                command = [sys.executable, *self.program, "serve"]
                self.process = subprocess.Popen(command, cwd=self.folder, env=environment, **streams)

    def stderr(self) -> str:
        """Returns the stderr output of all starts."""
        path = self.folder / "stderr.log"
        return path.read_text() if path.exists() else ""

    def signal(self, number: int = signal.SIGTERM) -> None:
        """Sends a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        """Waits until the process ends and returns its exit code."""
        assert self.process is not None
        code = self.process.wait(scaled_timeout(seconds))
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.signal()
        return self.wait()

    def kill(self) -> None:
        """Sends SIGKILL if the process is running."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
        if self.process is not None:
            self.wait()

    @property
    def rss_bytes(self) -> int:
        """Current resident memory."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    @property
    def peak_rss_bytes(self) -> int:
        """Peak resident memory."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Removes the settings of the service from an environment."""
    ours = ("STORE_", "DATABASE_URL", "DATABASE_DIRECT_URL", "DB_FORCE_ROLL_BACK")
    return {key: value for key, value in environment.items() if not key.startswith(ours)}


def _first_line(process: subprocess.Popen[bytes], seconds: float) -> str:
    assert process.stdout is not None
    stdout = process.stdout
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        return lines.get(timeout=seconds).decode()
    except queue.Empty:
        return ""


def run_command(
    *arguments: str, folder: Path, settings: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a `store-service` command to its end."""
    environment = _without_settings(os.environ)
    if arguments[:1] in {("serve",), ("check",)} and not (folder / ".env").exists():
        # Another program may use the default port.
        environment["STORE_LISTEN"] = "127.0.0.1:0"
    with start_module(
        "store_service",
        *arguments,
        folder=folder,
        environment=environment | (settings or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=scaled_timeout())
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


@contextmanager
def serve_with_stderr(folder: Path, *, stderr: int, **environment: str) -> Iterator[str]:
    """Runs a server with a given stderr until the end of the block, and yields its address."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STORE_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "store_service", "serve", "--listen", "127.0.0.1:0"],
        cwd=folder,
        env=inherited | environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate()
    assert process.returncode == 0


WITHOUT_CAPABILITIES = """
import ctypes, os, sys
# Without CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, file permissions apply to root too.
for capability in (1, 2):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "store_service", *sys.argv[1:]])
"""


def run_without_privileges(
    *arguments: str, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `store-service` without the capabilities that let root ignore file permissions."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_CAPABILITIES, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )
