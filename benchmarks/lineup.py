"""The contenders that are measured, and how each is started."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks import golang, seed
from benchmarks.postgresql import MissingError, Postgresql, empty_database
from benchmarks.processes import Server, cpu_seconds, memory_mib, python, serving

OURS = ("store_service", "serve")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One implementation of the calls."""

    name: str
    title: str
    module: Sequence[str] = ()
    """The arguments of `python -m`; empty if `command` is set."""
    command: Callable[[], Sequence[str]] | None = None
    """Returns the command of a contender in another language. Raises MissingError if it cannot run here."""
    methods: frozenset[str] | None = None
    """The methods that it has; None: all."""
    database: Literal["sqlite", "postgresql"] = "sqlite"
    http1: bool = False
    """Whether it uses JSON over HTTP/1.1."""


CEILING = Contender(
    name="ceiling", title="bare grpc.aio (ceiling)", module=("benchmarks.contenders.ceiling",)
)
SQLITE = Contender(name="sqlite", title="this service, SQLite", module=OURS)
POSTGRESQL = Contender(
    name="postgresql", title="this service, PostgreSQL", module=OURS, database="postgresql"
)
PLAIN = Contender(name="plain", title="grpc.aio + databases", module=("benchmarks.contenders.plain",))
OLD_STACK = Contender(
    name="old-stack",
    title="FastAPI + databases",
    module=("benchmarks.contenders.old_stack",),
    http1=True,
)
THREADS = Contender(
    name="threads", title="grpcio threads + sessions", module=("benchmarks.contenders.threads",)
)

_GO_METHODS = frozenset({"GetPost", "CreatePost"})
GO_GROUPS = Contender(
    name="go-groups",
    title="grpc-go, group commit",
    command=partial(golang.command, "group"),
    methods=_GO_METHODS,
)
GO_SINGLE = Contender(
    name="go-single",
    title="grpc-go, a transaction per call",
    command=partial(golang.command, "each"),
    methods=_GO_METHODS,
)

LINEUP = (CEILING, SQLITE, POSTGRESQL, PLAIN, OLD_STACK, THREADS, GO_SINGLE, GO_GROUPS)
QUICK = (CEILING, SQLITE, PLAIN)


@dataclass(frozen=True, slots=True)
class Running:
    """A contender that accepts calls."""

    contender: Contender
    server: Server
    postgresql: Postgresql | None = None

    def cpu_seconds(self) -> float:
        """CPU time of the server until now, without PostgreSQL."""
        return cpu_seconds(self.server.pid)

    def database_cpu_seconds(self) -> float | None:
        """CPU time of PostgreSQL until now; None without PostgreSQL, or if it was not started here."""
        if self.postgresql is None or self.postgresql.pid is None:
            return None
        return cpu_seconds(self.postgresql.pid)

    def memory_mib(self) -> float:
        """Resident memory of the server."""
        return memory_mib(self.server.pid)


@contextmanager
def running(
    contenders: Sequence[Contender], folder: Path, seeded: Path, left_out: list[str]
) -> Iterator[list[Running]]:
    """Runs all contenders at once, each with its own database, until the end of the block.

    Args:
        contenders: The contenders to start.
        folder: For their files.
        seeded: The SQLite file; each contender gets a copy.
        left_out: Gets a sentence for each contender that cannot run on this machine.
    """
    with ExitStack() as stack:
        started = []
        for contender in contenders:
            try:
                started.append(stack.enter_context(_running(contender, folder / contender.name, seeded)))
            except MissingError as error:
                left_out.append(f"{contender.title} was left out: {error}.")
        yield started


@contextmanager
def _running(contender: Contender, folder: Path, seeded: Path) -> Iterator[Running]:
    with ExitStack() as stack:
        found: Postgresql | None = None
        if contender.database == "postgresql":
            folder.mkdir()
            server_folder = folder.with_name(f"{folder.name}-server")
            server_folder.mkdir()
            found = stack.enter_context(empty_database(server_folder))
            url = found.url
            seed.seed(url, folder)
        else:
            url = seed.copied(seeded, folder)
        yield Running(contender, stack.enter_context(started(contender, folder, url)), found)


@contextmanager
def started(contender: Contender, folder: Path, database_url: str, **more: str) -> Iterator[Server]:
    """Runs a contender on an existing database, with additional settings, until the end of the block."""
    command = python(*contender.module) if contender.command is None else contender.command()
    settings = {"DATABASE_URL": database_url, "STORE_LISTEN": "127.0.0.1:0", **more}
    with serving(command, folder=folder, settings=settings) as server:
        yield server
