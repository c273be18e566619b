"""Runs `uv pip` with the configuration of pip: `.venv/bin/python tools/uv_pip.py install ...`.

uv does not read the configuration of pip (indexes, links, proxy and certificates, from files or environment).
This program passes it on. Variables of uv take precedence.
"""

import ast
import os
import subprocess
import sys
from collections.abc import MutableMapping

from uv import find_uv_bin

OPTIONS = {
    "index-url": ("--default-index", ("UV_DEFAULT_INDEX", "UV_INDEX_URL")),
    "extra-index-url": ("--index", ("UV_INDEX", "UV_EXTRA_INDEX_URL")),
    "find-links": ("--find-links", ("UV_FIND_LINKS",)),
    "trusted-host": ("--allow-insecure-host", ("UV_INSECURE_HOST",)),
}
"""Options of pip, with the option and the variables of uv that have the same meaning."""

VARIABLES = {
    "cert": ("SSL_CERT_FILE",),
    "client-cert": ("SSL_CLIENT_CERT",),
    "proxy": ("HTTP_PROXY", "HTTPS_PROXY"),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "default-timeout": ("UV_HTTP_TIMEOUT",),
}
"""Options of pip for which uv has only variables."""


def pip_options() -> dict[str, str]:
    """Returns all options of `pip install`, from configuration files and the environment."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in found:
            found[section][option] = str(ast.literal_eval(value))
    return found["global"] | found["install"] | found[":env:"]


def arguments(options: dict[str, str], environment: MutableMapping[str, str]) -> list[str]:
    """Returns the arguments of uv for these options of pip. Adds variables for options that uv lacks."""
    # pip also reads these two variables.
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if name in environment:
            options = {"cert": environment[name]} | options
    for option, names in VARIABLES.items():
        if option in options:
            for name in names:
                environment.setdefault(name, options[option])
    # Hashes identify the files, so any index may provide them.
    found = ["--index-strategy", "unsafe-best-match"]
    if options.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        found.append("--no-index")
    for option, (flag, names) in OPTIONS.items():
        if option in options and not any(name in environment for name in names):
            found += [part for value in options[option].split() for part in (flag, value)]
    return found


if __name__ == "__main__":
    environment = dict(os.environ)
    command, *rest = sys.argv[1:]
    own = arguments(pip_options(), environment)
    if "--python" not in rest:
        own += ["--python", sys.prefix]
    uv = find_uv_bin()
    done = subprocess.run([uv, "pip", command, "--quiet", *own, *rest], env=environment, check=False)
    sys.exit(done.returncode)
