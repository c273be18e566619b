"""Reflection: a running server describes itself, comments included, to every generation of tools."""

from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2 as pb

from store_service.server import service_descriptors
from tests.support.engines import SQLITE_ONLY

pytestmark = SQLITE_ONLY

NAMES = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]


class Reflection:
    """Asks under one of the names."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self._call = channel.stream_stream(
            f"/{name}/ServerReflectionInfo",
            request_serializer=pb.ServerReflectionRequest.SerializeToString,
            response_deserializer=pb.ServerReflectionResponse.FromString,
        )

    async def ask_all(
        self, questions: Iterable[pb.ServerReflectionRequest]
    ) -> list[pb.ServerReflectionResponse]:
        async def send() -> AsyncIterator[pb.ServerReflectionRequest]:
            for question in questions:
                yield question

        return [answer async for answer in self._call(send())]

    async def ask(self, **question: Any) -> pb.ServerReflectionResponse:
        (answer,) = await self.ask_all([pb.ServerReflectionRequest(**question)])
        return answer

    async def files(self, **question: Any) -> list[FileDescriptorProto]:
        answer = await self.ask(**question)
        assert answer.WhichOneof("message_response") == "file_descriptor_response", answer.error_response
        serialized = answer.file_descriptor_response.file_descriptor_proto
        return [FileDescriptorProto.FromString(data) for data in serialized]


def pool_of(files: list[FileDescriptorProto]) -> DescriptorPool:
    """The files as a program loads them, which needs every import, before the file that imports it."""
    pool, by_name, added = DescriptorPool(), {it.name: it for it in files}, set()

    def add(file: FileDescriptorProto) -> None:
        for name in file.dependency:
            add(by_name[name])
        if file.name not in added:
            added.add(file.name)
            pool.Add(file)

    for file in files:
        add(file)
    return pool


@pytest.fixture(params=NAMES)
def reflection(channel: grpc.aio.Channel, request: pytest.FixtureRequest) -> Reflection:
    """Under each name in turn."""
    return Reflection(channel, request.param)


async def test_reflection_lists_every_service(reflection: Reflection) -> None:
    """Including reflection in both versions, and health."""
    answer = await reflection.ask(list_services="")

    assert [it.name for it in answer.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "storeapi.v1.AdminService",
        "storeapi.v1.ChangeService",
        "storeapi.v1.CommentService",
        "storeapi.v1.PostService",
        "storeapi.v1.TransferService",
    ]


async def test_every_listed_service_has_a_descriptor(reflection: Reflection) -> None:
    listed = (await reflection.ask(list_services="")).list_services_response.service

    for service in listed:
        file, *_ = await reflection.files(file_containing_symbol=service.name)
        assert service.name in [f"{file.package}.{it.name}" for it in file.service]


async def test_file_is_found_by_name(reflection: Reflection) -> None:
    """Followed by its imports."""
    for name in (
        "storeapi/v1/posts.proto",
        "storeapi/v1/comments.proto",
        "storeapi/v1/errors.proto",
        "google/protobuf/timestamp.proto",
        "google/rpc/error_details.proto",
        "grpc_health/v1/health.proto",
    ):
        file, *imports = await reflection.files(file_by_filename=name)

        assert file.name == name
        assert set(file.dependency) <= {it.name for it in imports}


async def test_file_is_found_by_symbol(reflection: Reflection) -> None:
    """Services, methods, messages, fields, oneofs, enums and values."""
    for symbol, name in {
        "storeapi.v1.PostService": "storeapi/v1/posts.proto",
        "storeapi.v1.PostService.GetPost": "storeapi/v1/posts.proto",
        "storeapi.v1.CommentService.CountComments": "storeapi/v1/comments.proto",
        "storeapi.v1.Comment": "storeapi/v1/comments.proto",
        ".storeapi.v1.Comment": "storeapi/v1/comments.proto",
        "storeapi.v1.Comment.post_id": "storeapi/v1/comments.proto",
        "storeapi.v1.CountCommentsResponse.CountsEntry": "storeapi/v1/comments.proto",
        "storeapi.v1.ErrorReason": "storeapi/v1/errors.proto",
        "storeapi.v1.ERROR_REASON_POST_NOT_FOUND": "storeapi/v1/errors.proto",
        "google.rpc.ErrorInfo": "google/rpc/error_details.proto",
        "google.rpc.BadRequest.FieldViolation": "google/rpc/error_details.proto",
        "google.protobuf.Timestamp": "google/protobuf/timestamp.proto",
        "grpc.health.v1.Health.Watch": "grpc_health/v1/health.proto",
        "grpc.health.v1.HealthCheckResponse.ServingStatus": "grpc_health/v1/health.proto",
        "grpc.health.v1.HealthCheckResponse.SERVING": "grpc_health/v1/health.proto",
        "grpc.reflection.v1.ServerReflectionRequest.message_request": "grpc_reflection/v1/reflection.proto",
        "grpc.reflection.v1alpha.ServerReflectionRequest": "grpc_reflection/v1alpha/reflection.proto",
    }.items():
        file, *_ = await reflection.files(file_containing_symbol=symbol)

        assert file.name == name


async def test_reflection_response_is_complete(reflection: Reflection) -> None:
    """One response contains every import."""
    listed = (await reflection.ask(list_services="")).list_services_response.service

    for service in listed:
        pool = pool_of(await reflection.files(file_containing_symbol=service.name))
        described = pool.FindServiceByName(service.name)
        assert all(method.input_type and method.output_type for method in described.methods)


async def test_reflected_contract_equals_the_stubs(reflection: Reflection) -> None:
    """The contract that tools see is the one in the stubs, to the last field."""
    for service in service_descriptors():
        expected = FileDescriptorProto()
        service.file.CopyToProto(expected)

        described, *_ = await reflection.files(file_containing_symbol=service.full_name)

        # Tools need the comments and the names in JSON, which stubs do without.
        described.ClearField("source_code_info")
        for message in described.message_type:
            for each in (message, *message.nested_type):
                for field in each.field:
                    field.ClearField("json_name")
        assert described == expected


async def test_reflection_contains_the_comments(reflection: Reflection) -> None:
    """Describing a running server prints its manual: every method, message and field has its comment."""
    for service in service_descriptors():
        file, *_ = await reflection.files(file_containing_symbol=service.full_name)
        comments = {tuple(it.path): it.leading_comments for it in file.source_code_info.location}

        assert [comments[6, 0, 2, n] for n in range(len(file.service[0].method))]
        for n, message in enumerate(file.message_type):
            assert comments[4, n], message.name
            for m, field in enumerate(message.field):
                assert comments[4, n, 2, m], f"{message.name}.{field.name}"
        assert comments[6, 0]
        assert "Errors:" in comments[6, 0, 2, 0]


async def test_unknown_symbol_is_not_found(reflection: Reflection) -> None:
    """The stream continues."""
    known = pb.ServerReflectionRequest(list_services="")
    unknown = [
        pb.ServerReflectionRequest(file_by_filename="no/such.proto"),
        pb.ServerReflectionRequest(file_by_filename=""),
        pb.ServerReflectionRequest(file_containing_symbol="no.such.Symbol"),
        pb.ServerReflectionRequest(file_containing_symbol="storeapi.v1"),
        pb.ServerReflectionRequest(file_containing_symbol=""),
        pb.ServerReflectionRequest(all_extension_numbers_of_type="no.such.Message"),
        pb.ServerReflectionRequest(
            file_containing_extension={"containing_type": "storeapi.v1.Post", "extension_number": 100}
        ),
    ]

    *refused, answered = await reflection.ask_all([*unknown, known])

    assert [it.error_response.error_code for it in refused] == [grpc.StatusCode.NOT_FOUND.value[0]] * len(
        unknown
    )
    assert answered.list_services_response.service


async def test_long_reflection_request_is_not_echoed(reflection: Reflection) -> None:
    """The response is short, and the stream continues."""
    long = "x" * 1025
    unknown = pb.ServerReflectionRequest(list_services="")
    unknown.MergeFromString(b"\xf2\x07\x81\x08" + long.encode())  # field 126
    questions = [
        pb.ServerReflectionRequest(host=long, list_services=""),
        pb.ServerReflectionRequest(file_by_filename=long),
        pb.ServerReflectionRequest(file_containing_symbol=long),
        pb.ServerReflectionRequest(file_containing_symbol="." * 4_000_000 + "storeapi.v1.Post"),
        pb.ServerReflectionRequest(file_containing_extension={"containing_type": long}),
        pb.ServerReflectionRequest(all_extension_numbers_of_type=long),
        pb.ServerReflectionRequest(list_services=long),
        pb.ServerReflectionRequest(host=long),
        unknown,
    ]

    *refused, answered = await reflection.ask_all([*questions, pb.ServerReflectionRequest(list_services="")])

    assert len(refused) == len(questions)
    for answer in refused:
        assert answer.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert answer.error_response.error_message == "a request must not be longer than 1024 bytes"
        assert answer.ByteSize() < 100
    assert answered.list_services_response.service


async def test_reflection_request_of_one_kilobyte_is_answered(reflection: Reflection) -> None:
    question = pb.ServerReflectionRequest(file_containing_symbol="x" * 1021)
    assert question.ByteSize() == 1024

    (answer,) = await reflection.ask_all([question])

    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert answer.original_request == question


async def test_empty_reflection_request_is_invalid(reflection: Reflection) -> None:
    """The empty request asks for nothing."""
    answer = await reflection.ask(host="localhost")

    assert answer.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]


async def test_messages_have_no_extensions(reflection: Reflection) -> None:
    """The question about extensions is answered for every message: there are none."""
    answer = await reflection.ask(all_extension_numbers_of_type="storeapi.v1.Post")

    assert answer.all_extension_numbers_response.base_type_name == "storeapi.v1.Post"
    assert list(answer.all_extension_numbers_response.extension_number) == []


async def test_reflection_response_echoes_its_request(reflection: Reflection) -> None:
    """In order."""
    questions = [
        pb.ServerReflectionRequest(host="localhost", list_services="*"),
        pb.ServerReflectionRequest(host="localhost", file_containing_symbol="storeapi.v1.Post"),
        pb.ServerReflectionRequest(host="localhost", file_by_filename="storeapi/v1/posts.proto"),
    ]

    answers = await reflection.ask_all(questions)

    assert [it.original_request for it in answers] == questions
    assert {it.valid_host for it in answers} == {"localhost"}
    assert answers[1].file_descriptor_response == answers[2].file_descriptor_response
