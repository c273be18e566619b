"""Reverse proxies as child processes: nginx, HAProxy and Caddy."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.polling import wait_until
from tests.support.ports import free_port, listens
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
    server {{
        listen 127.0.0.1:{port} http2;
        location / {{
            grpc_pass grpc://{upstream};
            grpc_read_timeout {timeout}s;
        }}
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

CADDY = """
{{
    admin off
    auto_https off
    persist_config off
    servers {{
        protocols h1 h2c
    }}
}}
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
    "nginx": (NGINX, ["-e", "{folder}/nginx.log", "-c"]),
    "haproxy": (HAPROXY, ["-db", "-f"]),
    "caddy": (CADDY, ["run", "--adapter", "caddyfile", "--config"]),
}
"""The configuration of each proxy, and its arguments before the path of the configuration file."""


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
    """Runs a proxy in front of `upstream` and yields the address of the proxy."""
    configuration, arguments = PROXIES[name]
    program = binary(name)
    port = free_port()
    path = folder / f"{name}.conf"
    path.write_text(
        configuration.format(folder=folder, port=port, upstream=upstream, timeout=TIMEOUT_SECONDS)
    )
    command = [program, *(it.format(folder=folder) for it in arguments), str(path)]
    environment = os.environ | {
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder),
    }
    log = folder / f"{name}.out"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: process.poll() is not None or listens(port))
        assert process.poll() is None, log.read_text()
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(scaled_timeout())
