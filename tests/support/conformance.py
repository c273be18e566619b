"""The harness of the conformance scenario (clients/conformance/README.md), the same for all languages.

It starts the service and what is between it and the client, runs the program that a language has for the
scenario, and compares its responses with the scenario and with the contents of the service.
"""

import asyncio
import json
import random
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc
import pytest
import storeapi
import trustme

from tests.support.certificates import TlsFiles
from tests.support.conformance_servers import FaultyServer, UndecodableServer
from tests.support.ports import free_port
from tests.support.proxies import proxy
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout
from tests.support.unreliable_proxy import UnreliableProxy

SCENARIO: dict[str, list[dict[str, Any]]] = json.loads(
    (ROOT / "clients/conformance/scenario.json").read_text()
)

PATHS = {
    "direct": ("first", "on_each_path", "directly"),
    "nginx": ("first", "on_each_path"),
    "haproxy": ("first", "on_each_path"),
    "cutting proxy": ("first", "on_each_path"),
    "tls": ("first", "with_credentials"),
}
"""What is between the client and the service, and the parts of the scenario."""

KEY = "storeapi_conformance"
"""The API key with TLS."""

CUTS = 0.02
"""Probability that the cutting proxy truncates what it forwards, and closes the connection."""

ACTIONS = ("server", "network", "fault", "create")


class Conformance:
    """One run of the scenario."""

    def __init__(
        self,
        runner: asyncio.subprocess.Process,
        service: ServerProcess,
        address: str,
        credentials: dict[str, str],
        faults: FaultyServer,
        undecodable: UndecodableServer,
        cut: Callable[[], None],
        client: storeapi.AsyncStoreClient,
    ) -> None:
        self._runner = runner
        self._service = service
        self._faults = faults
        self._undecodable = undecodable
        self._cut = cut
        self._client = client
        self._credentials = credentials
        self._targets = {"service": address, "faults": faults.target, "undecodable": undecodable.target}
        self._connected = ""
        self._saved: dict[str, Any] = {}
        self._stored: dict[str, dict[int, str]] = {"posts": {}, "comments": {}}
        """The bodies of all resources that must exist, by type and id."""
        self._watch: Any = None
        """A watch of the Python client on the service itself, from the same start as that of the runner."""

    async def run(self, scenario: Sequence[dict[str, Any]]) -> None:
        """Executes all steps, and compares the service with what the responses said."""
        for step in scenario:
            try:
                if "do" in step:
                    await self._command(dict(step))
                elif "about" not in step:
                    await self._act(step)
            except AssertionError as error:
                raise AssertionError(f"{step}: {error}") from error
        for name, stored in self._stored.items():
            listed = {it.id: it.body async for it in getattr(self._client, name).list()}
            assert listed == stored

    async def _command(self, step: dict[str, Any]) -> None:
        harness = {
            name: step.pop(name, default)
            for name, default in {
                "save": "",
                "expect": None,
                "error": None,
                "repeat": 0,
                "meanwhile": (),
                "calls": {},
            }.items()
        }
        calls_before = self._calls()
        responses: list[dict[str, Any]] = []
        answered = asyncio.Condition()
        meanwhile = asyncio.create_task(self._meanwhile(harness["meanwhile"], responses, answered))
        command = self._resolved(step)
        self._prepare(command)
        for number in range(harness["repeat"] or 1):
            numbered = {key: it.replace("#", f"{number}") for key, it in command.items() if key == "body"}
            response = await self._ask(command | numbered)
            self._record(command, response)
            async with answered:
                responses.append(response)
                answered.notify_all()
        await meanwhile

        for response in responses:
            await self._check(command, response, self._resolved(harness["expect"]), harness["error"])
        calls = self._calls() - calls_before
        assert {method: calls[method] for method in harness["calls"]} == harness["calls"]
        if harness["save"]:
            self._saved[harness["save"]] = responses if harness["repeat"] else responses[0]

    def _prepare(self, command: dict[str, Any]) -> None:
        """Completes a command with what only the harness knows."""
        if command["do"] == "connect":
            self._connected = command.pop("to")
            credentials = self._credentials if self._connected == "service" else {}
            target = {"target": self._targets[self._connected], "timeout": scaled_timeout()}
            command |= credentials | target | command
        elif command["do"] == "watch":
            start = {name: it for name, it in command.items() if name in ("start", "post_ids")}
            self._watch = self._client.changes.watch(**start)

    async def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Sends a command, and returns the response of the runner."""
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        self._runner.stdin.write(json.dumps(command).encode() + b"\n")
        async with asyncio.timeout(2 * scaled_timeout()):
            line = await self._runner.stdout.readline()
        assert line, f"the runner has ended during {command}"
        response: dict[str, Any] = json.loads(line)
        return response

    def _record(self, command: dict[str, Any], response: dict[str, Any]) -> None:
        """Records which resources must exist after a write."""
        if "error" in response:
            return
        if command["do"] in ("create", "update"):
            self._stored[command["resource"]][response["id"]] = response["body"]
        elif command["do"] == "delete":
            self._stored[command["resource"]].pop(command["id"], None)
        elif command["do"] == "import" and not response["failed"]:
            for record in command["records"]:
                self._stored["comments" if "post_id" in record else "posts"][record["id"]] = record["body"]

    async def _check(
        self, command: dict[str, Any], response: dict[str, Any], expected: Any, error: Any
    ) -> None:
        """Compares a response with the step, or with the change feed or the contents of the service."""
        if error is not None:
            assert "error" in response, response
            self._compare(response["error"], self._resolved(error))
            return
        assert "error" not in response, response
        if expected is not None:
            self._compare(response, expected)
        if command["do"] == "next":
            async with asyncio.timeout(scaled_timeout()):
                changes = [_shown(await anext(self._watch)) for _ in range(command["count"])]
            assert response["changes"] == changes
        elif command["do"] == "export":
            for name, stored in self._stored.items():
                assert [(it["id"], it["body"]) for it in response[name]] == sorted(stored.items())

    def _compare(self, actual: Any, expected: Any) -> None:
        """Every expected member must be there; further members are allowed."""
        if isinstance(expected, dict):
            assert isinstance(actual, dict), actual
            for name, it in expected.items():
                assert name in actual, actual
                self._compare(actual[name], it)
        elif isinstance(expected, list):
            assert isinstance(actual, list), actual
            assert len(actual) == len(expected), actual
            for one, it in zip(actual, expected, strict=True):
                self._compare(one, it)
        else:
            assert actual == expected

    def _resolved(self, value: Any) -> Any:
        """Replaces "$NAME.MEMBER" by parts of saved responses."""
        if isinstance(value, dict):
            return {name: self._resolved(it) for name, it in value.items()}
        if isinstance(value, list):
            return [self._resolved(it) for it in value]
        if not isinstance(value, str) or not value.startswith("$"):
            return value
        found: Any = self._saved
        for name in value.removeprefix("$").split("."):
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found

    async def _meanwhile(
        self, actions: Sequence[dict[str, Any]], responses: list[Any], answered: asyncio.Condition
    ) -> None:
        for action in actions:
            async with answered:
                while len(responses) < action.get("after", 0):
                    await answered.wait()
            await self._act(action)

    async def _act(self, action: dict[str, Any]) -> None:
        (kind,) = (it for it in ACTIONS if it in action)
        if kind == "server":
            await asyncio.to_thread(self._signal, action["server"])
        elif kind == "network":
            self._cut()
        elif kind == "fault":
            self._add_fault(action)
        else:
            fields = {"post_id": self._resolved(action["post_id"])}
            for number in range(action["count"]):
                created = await getattr(self._client, action["create"]).create(
                    body=f"other {number}", **fields
                )
                self._stored[action["create"]][created.id] = created.body

    def _signal(self, what: str) -> None:
        if what == "kill":
            self._service.kill()
        elif what == "restart":
            assert self._service.stop() == 0
        if what in ("start", "restart"):
            self._service.start()

    def _add_fault(self, action: dict[str, Any]) -> None:
        method = action["method"]
        if action["fault"] == "lose_answer":
            self._faults.lose_answer(method)
        elif action["fault"] == "cut":
            self._faults.cut(method, after=action["after"])
        elif action["fault"] == "hang":
            self._faults.hang(method)
        elif "error" in action:
            error = getattr(storeapi, action["error"])
            self._faults.fail(method, error(retry_after=action.get("retry_after")))
        else:
            for name in action["statuses"]:
                self._faults.fail_with(method, grpc.StatusCode[name], action.get("infos", ()))

    def _calls(self) -> Counter[str]:
        """How many calls of each method the server has received that the runner is connected to."""
        if self._connected == "undecodable":
            return Counter(self._undecodable.calls)
        return Counter(call.method for call in self._faults.calls)


def _shown(change: storeapi.Change) -> dict[str, Any]:
    """A change as runners write it."""
    shown = {"action": change.action, "kind": change.kind, "id": change.id}
    return shown if change.resource is None else shown | {"body": change.resource.body}


@asynccontextmanager
async def _path(name: str, service: ServerProcess) -> AsyncIterator[tuple[str, Callable[[], None]]]:
    """The address of the service behind a proxy, and what cuts all connections there."""
    if name in ("direct", "tls"):
        yield service.address, lambda: None
    elif name == "cutting proxy":
        network = UnreliableProxy(random.Random(1), cuts=CUTS)
        network.server_address = service.address
        async with network.running():
            yield network.address, network.cut
    else:
        with proxy(name, service.address, service.folder) as address:
            yield address, lambda: None


def _credentials(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The settings of a service with TLS and API keys, and the members of `connect` for it."""
    files = TlsFiles(folder, trustme.CA())
    keys = folder / "keys"
    keys.write_text(f"conformance {sha256(KEY.encode()).hexdigest()} read,write,watch,admin\n")
    keys.chmod(0o600)
    settings = {
        "STORE_TLS_CERT": str(files.cert),
        "STORE_TLS_KEY": str(files.key),
        "STORE_API_KEYS_FILE": str(keys),
    }
    return settings, {"ca": str(files.client_ca), "key": KEY}


def toolchain(program: str, language: str) -> Path:
    """Returns the path of a program of a language; without it the test is skipped."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"the client in {language}, because {program} is not installed")
    return Path(found)


async def run_scenario(command: Sequence[str | Path], path: str, folder: Path) -> None:
    """Runs the scenario with the runner of a language.

    Args:
        command: The runner and its arguments.
        path: What is between the client and the service: one of PATHS.
        folder: An empty folder for the service.
    """
    settings, credentials = _credentials(folder) if path == "tls" else ({}, {})
    service = ServerProcess(folder, settings={"STORE_LISTEN": f"127.0.0.1:{free_port()}"} | settings)
    async with AsyncExitStack() as stack:
        stack.callback(service.kill)
        await asyncio.to_thread(service.start)
        address, cut = await stack.enter_async_context(_path(path, service))
        faults = stack.enter_context(FaultyServer(upstream=service.address))
        undecodable = stack.enter_context(UndecodableServer())
        client = await stack.enter_async_context(
            storeapi.connect_async(
                service.address,
                timeout=scaled_timeout(),
                tls_ca=credentials.get("ca"),
                api_key=credentials.get("key"),
            )
        )
        log = stack.enter_context((folder / "runner.log").open("wb"))
        runner = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log
        )
        try:
            scenario = [step for part in PATHS[path] for step in SCENARIO[part]]
            await Conformance(runner, service, address, credentials, faults, undecodable, cut, client).run(
                scenario
            )
            assert runner.stdin is not None
            runner.stdin.close()
            async with asyncio.timeout(scaled_timeout()):
                assert await runner.wait() == 0
        except AssertionError as error:
            error.add_note((folder / "runner.log").read_text())
            raise
        finally:
            if runner.returncode is None:
                runner.kill()
                await runner.wait()
