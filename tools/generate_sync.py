"""Generates the client for threads from the client for asyncio; run by `make protos` and `make check`.

With --check, nothing is written; if files are stale, their names are printed and the exit code is 1.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "clients/python/src/storeapi"
CLIENT = ROOT / PACKAGE
HEADER = "# Made from {source} by tools/generate_sync.py: change that one, then `make protos`.\n"

REPLACEMENTS = {
    # Sentences with another meaning for threads come first, because later patterns match parts of them.
    r"The client for asyncio\. The client for threads, beside it in _sync, is made from these files\.": (
        "The client for threads."
    ),
    r"shared by the tasks of one event loop": "shared by the threads of one process",
    r"\n +RuntimeError: No event loop is running\.": "",
    # Only the original has this: threads are not cancelled.
    r"(?m)^( +)except asyncio\.CancelledError:\n(?:\1 +.*\n)+": "",
    r"# ruff: noqa: ASYNC109.*\n\n": "",
    r" +# Stubs for asyncio are a type of their own.*\n": "",
    # A function of the caller can be a coroutine function only with asyncio.
    r" \| Awaitable\[AnyResource \| str \| None\]": "",
    r" May be a\n +coroutine function\.": "",
    r"(?m)^( +)if isawaitable\(.*\):\n(?:\1 +.*\n)+": "",
    r"from inspect import isawaitable\n": "",
    r"\bAwaitable, ": "",
    r"\bAwaitable\[((?:\w| \| )+)\]": r"\1",
    # Syntax.
    r"\basync (def|for|with)\b": r"\1",
    r"\bawait ": "",
    r"\banext\b": "next",
    r"\b__a(enter|exit|iter|next)__\b": r"__\1__",
    r"\bAsync(Iterator)\b": r"\1",
    r"\bStopAsyncIteration\b": "StopIteration",
    r"import asyncio\n": "",
    # gRPC and the generated stubs.
    r"\nimport grpc\.aio\b": "",
    r"\bgrpc\.aio\.": "grpc.",
    r"\b(Post|Comment|Change|Admin|Transfer)ServiceAsyncStub\b": r"\1ServiceStub",
    # Names of this package.
    r"\bAsync(StoreClient|RawStubs|Calls|Pager|Steps|Stream|Pause|Requests|Reconnecting|Diagnosis)\b": r"\1",
    r"\bAsync(Batches|Collection|Posts|Comments|Changes|Watch|Admin|Erasure|Rebuild|ProgressSteps)\b": r"\1",
    r"\bAsync(Transfer|Export|Import)\b": r"\1",
    r"\bnew_async_channel\b": "new_channel",
    r"\breceived_async\b": "received",
    r"\bstoreapi\._async\b": "storeapi._sync",
}
LEFTOVER = re.compile(r"async|await|aio\b", re.IGNORECASE)


def formatted(text: str, name: str) -> str:
    """Returns the text after formatting: sorted and no unused imports, and line breaks."""
    # Explicit, because ruff would look at the files on disk, which do not exist before the first run.
    first_party = 'lint.isort.known-first-party = ["storeapi"]'
    sort = ["check", "--quiet", "--fix", "--select", "I,F401", "--config", first_party]
    for command in (sort, ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", f"{PACKAGE}/_sync/{name}", "-"]
        text = subprocess.run(
            ruff, input=text, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT
        ).stdout
    return text


def twin(source: str, name: str) -> str:
    """Returns the synchronous file for an asynchronous one."""
    text = source
    for pattern, replacement in REPLACEMENTS.items():
        text = re.sub(pattern, replacement, text)
    for line in text.splitlines():
        if LEFTOVER.search(line):
            raise SystemExit(f"_async/{name}: no replacement makes this synchronous: {line.strip()}")
    return formatted(HEADER.format(source=f"storeapi/_async/{name}") + text, name)


def main(arguments: list[str] | None = None) -> int:
    """Generates or checks, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args(arguments).check

    wanted = {
        path.name: twin(path.read_text(), path.name) for path in sorted((CLIENT / "_async").glob("*.py"))
    }
    present = {path.name: path.read_text() for path in (CLIENT / "_sync").glob("*.py")}
    stale = sorted(name for name in wanted | present if wanted.get(name) != present.get(name))
    if check:
        for name in stale:
            print(f"storeapi/_sync/{name} is stale; run `make protos`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        path = CLIENT / "_sync" / name
        if name in wanted:
            path.write_text(wanted[name])
        else:
            path.unlink()
        print(f"storeapi/_sync/{name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
