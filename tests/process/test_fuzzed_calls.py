"""Nonsense from callers with and without rights: whatever it is, the answer gives nothing away."""

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from store_service.auth import api_keys
from store_service.auth.principal import ALL_PERMISSIONS, Permission
from store_service.server import service_descriptors
from tests.support.server_process import ServerProcess
from tests.support.timeouts import IS_LONG_RUN, scaled_timeout

CALLS = 50_000 if IS_LONG_RUN else 5_000
"""On each engine."""

AT_ONCE = 50

METHODS: list[tuple[str, MethodDescriptor]] = [
    (service.full_name, method)
    for service in (
        *service_descriptors(),
        health_pb2.DESCRIPTOR.services_by_name["Health"],
        reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
        channelz_pb2.DESCRIPTOR.services_by_name["Channelz"],
    )
    for method in service.methods
]
METHODS += [
    ("grpc.reflection.v1.ServerReflection", method) for name, method in METHODS if "reflection" in name
]

OPEN = "grpc.health.v1.Health"
"""The service that needs no authentication."""

RIGHTS = {
    "reader": frozenset([Permission.READ]),
    "writer": frozenset([Permission.WRITE]),
    "watcher": frozenset([Permission.WATCH]),
    "all": ALL_PERMISSIONS,
}

FORBIDDEN = re.compile(
    rb"traceback|<class|sqlite|asyncpg|psycopg|sqlalchemy|postgresql|select |insert into|\.py\b|store\.db"
    # Paths of the file system; those of methods and protos have no place to begin with.
    rb"|(?<![\w./])/(?:[\w.-]+/)+[\w.-]+|object at 0x",
    re.IGNORECASE,
)


WORDS = [
    *("", "id", "id desc", "body", "*", "v1", "%", "$1", "{}", "%s%n"),
    *("\0", "\x1b[2J", "\U0010ffff", "' OR 1=1; --"),
    *("storeapi.v1.PostService", "018f6b5e-6a1c-7c3e-9d2b-3f4a5b6c7d8e"),
]
"""Texts that have a meaning for some parser."""

NEEDED = {"id", "ids", "post_id", "post_ids", "post", "comment", "requests", "body", "name", "names"}
"""Fields without which hardly a request is honoured."""


class Nonsense:
    """Requests and credentials by chance, the same on every run with a seed."""

    def __init__(self, seed: int, credentials: dict[str, str]) -> None:
        self._random = random.Random(seed)
        self._headers = [f"Bearer {key}" for key in credentials.values()]

    def request(self, method: MethodDescriptor) -> bytes:
        """A message of the right type, the same with some bytes changed, or just bytes."""
        kind = self._random.random()
        if kind < 0.1:
            return self._random.randbytes(self._random.randrange(64))
        data = self.message(method.input_type).SerializeToString()
        if kind < 0.3 and data:
            place = self._random.randrange(len(data))
            data = data[:place] + self._random.randbytes(2) + data[place + self._random.randrange(3) :]
        return data

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """A message with some of its fields set, mostly those that it needs."""
        values = {}
        for field in descriptor.fields:
            if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1 and values:
                continue
            if depth > 3 or self._random.random() > (0.9 if field.name in NEEDED else 0.15):
                continue
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                values[field.name] = {
                    self._random.choice(WORDS): self._random.choice(WORDS)
                    for _ in range(self._random.choice([0, 1, 2, 30]))
                }
            elif field.is_repeated:
                values[field.name] = [
                    self.value(field, depth) for _ in range(self._random.choice([0, 1, 2, 3, 30]))
                ]
            else:
                values[field.name] = self.value(field, depth)
        return GetMessageClass(descriptor)(**values)

    def value(self, field: FieldDescriptor, depth: int) -> Any:
        """A value that may be of use, or hurt."""
        if field.message_type is not None:
            return self.message(field.message_type, depth + 1)
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return self._random.random() < 0.5
            case FieldDescriptor.CPPTYPE_STRING:
                return self._random.choice(WORDS) * self._random.choice([1, 1, 1, 50])
            case FieldDescriptor.CPPTYPE_ENUM:
                return self._random.randrange(-1, 5)
            case _:
                top = 2**31 - 1 if field.cpp_type == FieldDescriptor.CPPTYPE_INT32 else 2**63 - 1
                return self._random.choice([0, 1, 2, 3, 4, 5, 1000, -1, top, -top - 1])

    def metadata(self) -> tuple[bool, Sequence[tuple[str, str | bytes]]]:
        """Whether the caller is known, and the headers that say so, or that try to."""
        if self._random.random() < 0.5:
            return True, [("authorization", self._random.choice(self._headers))]
        valid = self._random.choice(self._headers)
        headers: list[tuple[str, str | bytes]] = [
            ("authorization", value)
            for value in (
                "",
                "Bearer",
                "Bearer ",
                "Basic " + valid.removeprefix("Bearer "),
                valid[:-1],
                valid + "A",
                valid.swapcase(),
                f"{valid},{valid}",
                "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhbGwifQ.",
                "Bearer " + "x" * 4000,
            )
        ]
        return False, self._random.choice([[], [self._random.choice(headers)], [("x-api-key", valid)]])


@pytest.fixture
def credentials(tmp_path: Path) -> dict[str, str]:
    """A key for each right, and one for all, in a file."""
    made = {name: api_keys.new_key() for name in RIGHTS}
    for name, key in made.items():
        api_keys.append(tmp_path / "keys", name=name, key=key, permissions=RIGHTS[name])
    return made


@pytest.fixture
async def server(
    tmp_path: Path, database_url: str, credentials: dict[str, str]
) -> AsyncIterator[ServerProcess]:
    """A server that serves everything it can, to those it knows."""
    process = ServerProcess(
        tmp_path,
        {
            "DATABASE_URL": database_url,
            "STORE_API_KEYS_FILE": str(tmp_path / "keys"),
            "STORE_REFLECTION": "callers",
            "STORE_CHANNELZ": "true",
            "STORE_LOG_FORMAT": "json",
        },
    )
    await asyncio.to_thread(process.start)
    yield process
    process.kill()


async def answers_of(
    channel: grpc.aio.Channel,
    path: str,
    method: MethodDescriptor,
    request: bytes,
    metadata: Sequence[tuple[str, str | bytes]],
) -> tuple[str, list[bytes]]:
    """The code of a call, and everything that was said in it."""
    said: list[bytes] = []
    call: Any
    if method.client_streaming:
        call = channel.stream_stream(path)(iter([request]), metadata=metadata, timeout=scaled_timeout())
    elif method.server_streaming:
        call = channel.unary_stream(path)(request, metadata=metadata, timeout=scaled_timeout())
    else:
        call = channel.unary_unary(path)(request, metadata=metadata, timeout=scaled_timeout())
    try:
        if not method.server_streaming:
            said.append(await call)
        elif method.client_streaming:
            said += [answer async for answer in call]
        else:
            # It would go on for ever.
            said.append(await anext(aiter(call)))
            call.cancel()
            with suppress(asyncio.CancelledError):
                return "OK", said
        code = "OK"
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        said.append((error.details() or "").encode())
        for metadata_seen in (error.initial_metadata(), error.trailing_metadata()):
            for key, value in metadata_seen or ():
                said += [key.encode(), value if isinstance(value, bytes) else value.encode()]
    return code, said


@pytest.mark.timeout(900 if IS_LONG_RUN else 180)
async def test_responses_disclose_no_internals(server: ServerProcess, credentials: dict[str, str]) -> None:
    """No internal name, path, statement or key; unauthenticated callers get no other details."""
    nonsense = Nonsense(20261123, credentials)
    seen: Counter[tuple[str, bool, str]] = Counter()
    left = iter(range(CALLS))

    async def call_on(channel: grpc.aio.Channel) -> None:
        for number in left:
            name, method = METHODS[number % len(METHODS)]
            is_known, metadata = nonsense.metadata()
            path = f"/{name}/{method.name}"
            request = nonsense.request(method)
            code, said = await answers_of(channel, path, method, request, metadata)
            while b"Internal error from Core" in said:
                # What the client of grpc.aio says when a call has ended while it was still sending.
                code, said = await answers_of(channel, path, method, request, metadata)
            seen[path, is_known, code] += 1
            if not is_known and name != OPEN:
                is_malformed = any(b"REQUEST_MALFORMED" in words for words in said)
                assert code == "UNAUTHENTICATED" or is_malformed, (path, metadata, code, said)
            for words in said:
                assert not FORBIDDEN.search(words), (path, words)
                assert not any(key.encode() in words for key in credentials.values()), path

    async with grpc.aio.insecure_channel(server.address) as channel, asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(call_on(channel))
    assert await asyncio.to_thread(server.stop) == 0

    # Every method has accepted a request and refused a request.
    for name, method in METHODS:
        path = f"/{name}/{method.name}"
        codes = {code for at, is_known, code in seen if (at, is_known) == (path, True)}
        assert codes - {"PERMISSION_DENIED"}, path
        assert seen[path, False, "OK" if name == OPEN else "UNAUTHENTICATED"], path
    assert {code for _, _, code in seen} >= {
        *("OK", "UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "NOT_FOUND"),
    }
    assert sum(count for (_, _, code), count in seen.items() if code == "OK") > CALLS / 20
    assert {code for _, _, code in seen} <= {
        *("OK", "UNAUTHENTICATED", "PERMISSION_DENIED", "INVALID_ARGUMENT", "NOT_FOUND"),
        *("FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "RESOURCE_EXHAUSTED"),
    }
    log = server.stderr()
    assert '"event": "unhandled exception"' not in log
    assert "Traceback" not in log
    assert not any(key in log for key in credentials.values())
