"""A cluster of PostgreSQL with automatic failover: Patroni, etcd, and HAProxy in front of the leader."""

import http.client
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from tests.support.polling import wait_until
from tests.support.ports import free_port, listens
from tests.support.postgresql import binaries, cluster_folder
from tests.support.proxies import binary
from tests.support.timeouts import scaled_timeout

TTL_SECONDS = 10
"""How long a leader that is gone keeps its key. Patroni's default is 30; with less, tests wait less."""

POLL_SECONDS = 0.2
"""Pause between two requests to the REST API of Patroni, which takes milliseconds of CPU time for each."""

HAPROXY = """
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
listen leader
    bind 127.0.0.1:{port}
    option httpchk GET /primary
    http-check expect status 200
    default-server inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions
{servers}
"""
"""Follows Patroni's template for HAProxy, with shorter intervals."""


class Node:
    """One PostgreSQL and the Patroni that manages it."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str]) -> None:
        self.name = name
        self.port = free_port()
        self.api_port = free_port()
        self._folder = folder
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The database of this node."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Starts Patroni, which starts PostgreSQL."""
        command = [*as_other_user(), binary("patroni"), str(self._folder / f"{self.name}.json")]
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )

    def kill(self) -> None:
        """Kills Patroni and all processes of PostgreSQL, if they are running, as a power cut does."""
        if self._process is None:
            return
        self._process.kill()
        for pid in self._server_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(scaled_timeout())

    def suspend(self) -> None:
        """Stops all of its processes without ending them: they hold their connections and do not respond."""
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    def suspend_replication(self) -> None:
        """Stops the processes that send the log to standbys, without ending them."""
        for pid in self._server_pids():
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"walsender" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGSTOP)

    def _pids(self) -> list[int]:
        assert self._process is not None
        return [self._process.pid, *self._server_pids()]

    def _server_pids(self) -> list[int]:
        """The postmaster, which comes first so that it replaces no killed process, and its children."""
        with suppress(FileNotFoundError):
            postmaster = int((self._folder / self.name / "postmaster.pid").read_text().split("\n")[0])
            children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
            return [postmaster, *map(int, children)]
        return []

    def stop(self) -> None:
        """Stops Patroni and PostgreSQL."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(scaled_timeout())

    def is_in_role(self, role: str) -> bool:
        """Whether Patroni reports a role: "primary", or "replica" for a standby that streams."""
        return self._status(f"/{role}") == 200

    def _status(self, path: str) -> int:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=2)
            try:
                connection.request("GET", path)
                return connection.getresponse().status
            finally:
                connection.close()
        return 0

    def switch_over(self, candidate: str) -> None:
        """Makes another node the leader, as an operator does for maintenance."""
        body = json.dumps({"leader": self.name, "candidate": candidate})
        connection = http.client.HTTPConnection("127.0.0.1", self.api_port, timeout=scaled_timeout())
        try:
            connection.request("POST", "/switchover", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read().decode()
        finally:
            connection.close()


class PatroniCluster:
    """Three nodes, etcd, and HAProxy, whose port leads to the leader."""

    def __init__(self, nodes: Sequence[Node], port: int) -> None:
        self.nodes = nodes
        self._port = port

    @property
    def url(self) -> str:
        """The database of the leader, through HAProxy."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    @property
    def hosts_url(self) -> str:
        """The same with all nodes as hosts, without HAProxy."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"postgresql://postgres@{hosts}/postgres"

    def leader(self) -> Node:
        """The node that is the leader now. Waits for one."""
        found: list[Node] = []

        def find() -> bool:
            found[:] = [node for node in self.nodes if node.is_in_role("primary")]
            return len(found) == 1

        wait_until(find, pause=POLL_SECONDS)
        return found[0]

    def wait_for_leader_after(self, former: Node) -> None:
        """Waits until another node is the leader."""
        wait_until(
            lambda: any(node.is_in_role("primary") for node in self.nodes if node is not former),
            seconds=120,
            pause=POLL_SECONDS,
        )

    def replicas(self) -> list[Node]:
        """The nodes that Patroni reports as replicas."""
        return [node for node in self.nodes if node.is_in_role("replica") and not node.is_in_role("primary")]

    def wait_for_replicas(self, *, is_synchronous: bool) -> None:
        """Waits until all other nodes stream from the leader, and one of them is synchronous if required."""

        def is_complete() -> bool:
            replicas = self.replicas()
            if is_synchronous and not any(node.is_in_role("synchronous") for node in replicas):
                return False
            # Patroni also reports a replica that does not stream yet.
            with suppress(psycopg.OperationalError), psycopg.connect(self.leader().url) as connection:
                streaming = connection.execute(
                    "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
                )
                return len(replicas) == len(self.nodes) - 1 and streaming.fetchall() == [(len(replicas),)]
            return False

        wait_until(is_complete, seconds=120, pause=POLL_SECONDS)


def as_other_user() -> list[str]:
    """The beginning of a command that PostgreSQL's programs need if root runs it."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@contextmanager
def patroni_cluster(*, is_synchronous: bool) -> Iterator[PatroniCluster]:
    """A running cluster with three nodes. With `is_synchronous`, a commit waits for one standby."""
    for program in ("patroni", "etcd", "haproxy"):
        binary(program)
    if as_other_user() and not binaries().is_relative_to("/usr"):
        pytest.skip("root needs a packaged PostgreSQL here: Patroni cannot run that of the wheel")
    with cluster_folder() as folder:
        folder.chmod(0o755)
        environment = {**os.environ, "HOME": str(folder), "LC_ALL": "C.UTF-8"}
        etcd_port = free_port()
        nodes = [Node(f"node{n}", folder, environment) for n in range(3)]
        for node in nodes:
            (folder / f"{node.name}.json").write_text(
                json.dumps(_node_configuration(node, folder, etcd_port, is_synchronous=is_synchronous))
            )
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
        port = free_port()
        servers = "\n".join(
            f"    server {node.name} 127.0.0.1:{node.port} maxconn 500 check port {node.api_port}"
            for node in nodes
        )
        (folder / "haproxy.conf").write_text(HAPROXY.format(port=port, servers=servers))
        with (
            _running(_etcd_command(folder, etcd_port), folder / "etcd.log", environment, port=etcd_port),
            _running(
                [binary("haproxy"), "-db", "-f", str(folder / "haproxy.conf")],
                folder / "haproxy.log",
                environment,
                port=port,
            ),
        ):
            try:
                nodes[0].start()
                cluster = PatroniCluster(nodes, port)
                cluster.leader()
                for node in nodes[1:]:
                    node.start()
                cluster.wait_for_replicas(is_synchronous=is_synchronous)
                yield cluster
            except Exception as error:
                for log in folder.glob("*.log"):
                    error.add_note(f"{log.name}:\n{log.read_text()[-2000:]}")
                raise
            finally:
                for node in nodes:
                    node.kill()


def _etcd_command(folder: Path, port: int) -> list[str]:
    url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{free_port()}"
    return [
        *as_other_user(),
        binary("etcd"),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
        "--log-level=error",
        "--unsafe-no-fsync",
    ]


def _node_configuration(
    node: Node, folder: Path, etcd_port: int, *, is_synchronous: bool
) -> dict[str, object]:
    local = f"127.0.0.1:{node.port}"
    return {
        "scope": "store",
        "name": node.name,
        "restapi": {"listen": f"127.0.0.1:{node.api_port}", "connect_address": f"127.0.0.1:{node.api_port}"},
        "etcd3": {"host": f"127.0.0.1:{etcd_port}"},
        "bootstrap": {
            "dcs": {
                "ttl": TTL_SECONDS,
                "loop_wait": 2,
                "retry_timeout": 3,
                "maximum_lag_on_failover": 100_000_000,
                "synchronous_mode": is_synchronous,
                "postgresql": {
                    "use_pg_rewind": True,
                    "parameters": {"wal_log_hints": "on", "fsync": "off", "wal_keep_size": "512MB"},
                },
            },
            "initdb": [{"encoding": "UTF8"}, {"auth": "trust"}, "no-sync"],
        },
        "postgresql": {
            "listen": local,
            "connect_address": local,
            "data_dir": str(folder / node.name),
            "bin_dir": str(binaries()),
            "authentication": {
                "superuser": {"username": "postgres"},
                "replication": {"username": "postgres"},
            },
            "parameters": {"unix_socket_directories": str(folder)},
            "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            "remove_data_directory_on_rewind_failure": True,
            "remove_data_directory_on_diverged_timelines": True,
        },
    }


@contextmanager
def _running(
    command: Sequence[str], log_path: Path, environment: dict[str, str], *, port: int
) -> Iterator[None]:
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, log_path.read_text()
        yield
    finally:
        process.terminate()
        process.wait(scaled_timeout())
