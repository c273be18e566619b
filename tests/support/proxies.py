"""Reverse proxies as child processes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from storeapi import files

from tests.support.certificates import TlsFiles
from tests.support.polling import wait_until
from tests.support.ports import free_port, listens
from tests.support.repository import ROOT
from tests.support.timeouts import scaled_timeout

TIMEOUT_SECONDS = 1
"""The read timeout of each proxy."""

NGINX = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""

NGINX_SERVER = """
    server {{
        listen 127.0.0.1:{port} http2;
        location / {{
            grpc_pass grpc://{upstream};
            grpc_read_timeout {timeout}s;
        }}
    }}
"""

HAPROXY = """
defaults
    mode http
    timeout connect {timeout}s
    timeout client 60s
    timeout server {timeout}s
frontend all
    bind 127.0.0.1:{port} proto h2
    default_backend service
backend service
    server only {upstream} proto h2
"""

CADDY_OPTIONS = """
{{
    admin off
    auto_https off
    persist_config off
    servers {{
        protocols {protocols}
    }}
}}
"""

CADDY_SERVER = """
http://127.0.0.1:{port} {{
    reverse_proxy h2c://{upstream} {{
        flush_interval -1
        stream_timeout {timeout}s
        transport http {{
            versions h2c
            response_header_timeout {timeout}s
            read_timeout {timeout}s
        }}
    }}
}}
"""

PROXIES = {
    "nginx": (NGINX.replace("{server}", NGINX_SERVER), ["-e", "{folder}/nginx.log", "-c"]),
    "haproxy": (HAPROXY, ["-db", "-f"]),
    "caddy": (
        CADDY_OPTIONS.replace("{protocols}", "h1 h2c") + CADDY_SERVER,
        ["run", "--adapter", "caddyfile", "--config"],
    ),
}
"""The configuration of each proxy, and its arguments before the path of the configuration file."""

DELIVERED = {
    "nginx": ["-e", "{folder}/nginx.log", "-c", "{folder}/nginx.main"],
    "haproxy": ["-db", "-f", "{folder}/haproxy.cfg"],
    "envoy": ["--config-path", "{folder}/envoy.yaml", "--use-dynamic-base-id"],
    "caddy": ["run", "--adapter", "caddyfile", "--config", "{folder}/caddy.main"],
    "traefik": ["--configfile={folder}/traefik.yaml"],
}
"""The arguments of each proxy with the files in deploy/proxies."""


def binary(name: str) -> str:
    """Returns the path of a program. If it is missing, the test is skipped, and fails on CI."""
    found = shutil.which(
        name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
    )
    if found is not None:
        return found
    missing = f"{name} is not installed; `make test-packages` installs it"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def proxy(name: str, upstream: str, folder: Path) -> Iterator[str]:
    """Runs a proxy in front of `upstream`, with short timeouts, and yields the address of the proxy."""
    configuration, arguments = PROXIES[name]
    port = free_port()
    path = folder / f"{name}.conf"
    path.write_text(
        configuration.format(folder=folder, port=port, upstream=upstream, timeout=TIMEOUT_SECONDS)
    )
    with _running([binary(name), *(it.format(folder=folder) for it in arguments), path], port, folder):
        yield f"127.0.0.1:{port}"


@contextmanager
def delivered_proxy(name: str, upstream: str, folder: Path, tls: TlsFiles) -> Iterator[str]:
    """Runs a proxy as the files in deploy/proxies describe it, and yields its address, which needs TLS.

    Only ports, paths and the name of the host are replaced. nginx and Caddy get what surrounds their file.
    """
    port = free_port()
    (folder / "both.pem").write_bytes(tls.cert.read_bytes() + tls.key.read_bytes())
    for source in (ROOT / "deploy/proxies").iterdir():
        text = source.read_text()
        for delivered, here in {
            ":443": f"127.0.0.1:{port}",
            "address: 0.0.0.0": "address: 127.0.0.1",
            "127.0.0.1:50051": upstream,
            "port_value: 50051": f"port_value: {upstream.rpartition(':')[2]}",
            "port_value: 443": f"port_value: {port}",
            "listen 443": f"listen 127.0.0.1:{port}",
            "store.example": f"https://127.0.0.1:{port}",
            "/etc/store/descriptors.binpb": str(files.DESCRIPTORS),
            "/etc/store/cert.pem": str(tls.cert),
            "/etc/store/key.pem": str(tls.key),
            "/etc/store": str(folder),
            "/etc/traefik": str(folder),
        }.items():
            text = text.replace(delivered, here)
        (folder / source.name).write_text(text)
    (folder / "nginx.main").write_text(NGINX.format(folder=folder, server=f"include {folder}/nginx.conf;"))
    (folder / "caddy.main").write_text(
        CADDY_OPTIONS.format(protocols="h1 h2") + f"import {folder}/Caddyfile\n"
    )
    with _running([binary(name), *(it.format(folder=folder) for it in DELIVERED[name])], port, folder):
        yield f"127.0.0.1:{port}"


@contextmanager
def _running(command: list[str | Path], port: int, folder: Path) -> Iterator[None]:
    """Runs a program that listens on a port until the end of the block."""
    environment = os.environ | {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    log = folder / f"{Path(command[0]).name}.out"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(scaled_timeout())
