"""`store-service health`, the health check of a container."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from store_service.cli import health_client
from tests.support.server_process import ServerProcess, run_command


@contextmanager
def answering(status: int, credentials: grpc.ServerCredentials | None = None) -> Iterator[str]:
    """A server whose health is what the test says; gives its address."""
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        servicer = HealthServicer()
        servicer.set("", status)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def test_health_command_succeeds_while_the_server_serves(server_process: ServerProcess) -> None:
    """Exit code 0 while it serves and 1 afterwards, with one line each."""
    address = server_process.start().address
    well = run_command("health", address, folder=server_process.folder)
    by_listen = run_command("health", folder=server_process.folder, settings={"STORE_LISTEN": address})
    server_process.stop()
    gone = run_command("health", address, folder=server_process.folder)

    assert (well.returncode, well.stdout, well.stderr) == (0, f"{address} is serving\n", "")
    assert (by_listen.returncode, by_listen.stdout) == (0, well.stdout)
    assert (gone.returncode, gone.stdout) == (1, "")
    (line,) = gone.stderr.splitlines()
    assert line.startswith(f"store-service: {address} does not respond: ")


def test_health_of_one_service_is_checked(server_process: ServerProcess) -> None:
    """A service, LIVE, and an unknown name."""
    address = server_process.start().address
    there = run_command(
        "health", address, "--service", "storeapi.v1.PostService", folder=server_process.folder
    )
    live = run_command("health", address, "--service", "live", folder=server_process.folder)
    not_there = run_command("health", address, "--service", "no.such", folder=server_process.folder)

    assert (there.returncode, live.returncode) == (0, 0)
    assert (not_there.returncode, not_there.stdout) == (1, "")


def test_not_serving_is_unhealthy(tmp_path: Path) -> None:
    """An answer alone is not enough."""
    with answering(health_pb2.HealthCheckResponse.NOT_SERVING) as address:
        done = run_command("health", address, folder=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"store-service: {address} has status NOT_SERVING\n"


def test_health_command_times_out(tmp_path: Path) -> None:
    """A server that hangs accepts connections and does not respond."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = run_command("health", address, "--timeout", "0.2", folder=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"store-service: {address} does not respond within 0.2 s\n"


def test_health_command_uses_tls(tmp_path: Path) -> None:
    """By options or by the variables of clients, with a client certificate if required."""
    authority = trustme.CA()
    server, caller = authority.issue_cert("store.internal"), authority.issue_cert("probe.internal")
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    caller.cert_chain_pems[0].write_to_path(cert)
    caller.private_key_pem.write_to_path(key)
    credentials = grpc.ssl_server_credentials(
        [(server.private_key_pem.bytes(), server.cert_chain_pems[0].bytes())],
        authority.cert_pem.bytes(),
        require_client_auth=True,
    )
    with answering(health_pb2.HealthCheckResponse.SERVING, credentials) as address:

        def exit_code(*options: str | Path, **variables: Path) -> int:
            settings = {name: str(value) for name, value in variables.items()}
            arguments = ["health", address, "--timeout", "2", "--tls-name", "store.internal"]
            return run_command(*arguments, *map(str, options), folder=tmp_path, settings=settings).returncode

        assert exit_code("--tls-ca", ca, "--tls-cert", cert, "--tls-key", key) == 0
        assert exit_code(STOREAPI_TLS_CA=ca, STOREAPI_TLS_CERT=cert, STOREAPI_TLS_KEY=key) == 0
        assert exit_code("--tls-ca", ca) == 1
        assert exit_code("--tls") == 1
        assert exit_code("--tls-cert", cert) == 2


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("0.0.0.0:50051", "127.0.0.1:50051"),
        ("[::]:50051", "[::1]:50051"),
        ("10.1.2.3:1", "10.1.2.3:1"),
        ("unix:/run/store.sock", "unix:/run/store.sock"),
    ],
)
def test_wildcard_address_is_checked_on_loopback(listen: str, address: str) -> None:
    """0.0.0.0 is not a destination."""
    assert health_client.connectable_address(listen) == address


def test_port_0_cannot_be_checked(tmp_path: Path) -> None:
    """Exit code 2: the command needs the address."""
    done = run_command("health", folder=tmp_path, settings={"STORE_LISTEN": "127.0.0.1:0"})

    assert (done.returncode, done.stdout) == (2, "")
    assert "ADDRESS" in done.stderr.splitlines()[-1]
