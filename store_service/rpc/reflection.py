"""Server reflection with the comments of the .proto files.

The descriptors in the generated stubs have no comments. The stubs' package also has a descriptor set with
comments, which this service returns, so that `grpcurl describe` prints the documentation.
"""

from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cache, cached_property
from importlib.resources import files

import grpc
from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_reflection.v1alpha import reflection_pb2 as pb

from store_service.rpc.call import Context

V1ALPHA = pb.DESCRIPTOR.services_by_name["ServerReflection"]
"""The service as grpcio-reflection defines it. Version 1 has the same methods and messages."""

V1_NAME = "grpc.reflection.v1.ServerReflection"

MAX_REQUEST_BYTES = 1024
"""Maximum size of a request. A response repeats its request, and no name is longer."""


@cache
def shipped_descriptors() -> list[FileDescriptorProto]:
    """Returns the files of the descriptor set in the stubs' package, with their comments."""
    data = files("storeapi.v1").joinpath("descriptors.binpb").read_bytes()
    return list(FileDescriptorSet.FromString(data).file)


class ReflectionService:
    """The method of grpc.reflection.v1.ServerReflection and of v1alpha."""

    def __init__(self, service_names: Iterable[str], more_files: Iterable[FileDescriptor]) -> None:
        """Takes the names of the services to list, and the files that are not in the descriptor set."""
        self._services = sorted(service_names)
        self._files: dict[str, FileDescriptorProto] = {}
        for file in more_files:
            self._files[file.name] = FileDescriptorProto()
            file.CopyToProto(self._files[file.name])
        version_1 = _version_1()
        self._files[version_1.name] = version_1
        self._files |= {file.name: file for file in shipped_descriptors()}

    @cached_property
    def _file_of(self) -> dict[str, str]:
        """The name of the file of each symbol. Most servers get no request that needs it."""
        return {symbol: file.name for file in self._files.values() for symbol in _symbols(file)}

    async def ServerReflectionInfo(
        self, requests: AsyncIterator[pb.ServerReflectionRequest], _: Context
    ) -> AsyncIterator[pb.ServerReflectionResponse]:
        async for request in requests:
            # This includes the host and unknown fields.
            if request.ByteSize() > MAX_REQUEST_BYTES:
                yield _error(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"a request must not be longer than {MAX_REQUEST_BYTES} bytes",
                )
                continue
            response = self._respond(request)
            response.valid_host = request.host
            response.original_request.CopyFrom(request)
            yield response

    def _respond(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            services = [pb.ServiceResponse(name=name) for name in self._services]
            return pb.ServerReflectionResponse(
                list_services_response=pb.ListServiceResponse(service=services)
            )
        if kind == "file_by_filename":
            return self._with_imports(request.file_by_filename)
        if kind == "file_containing_symbol":
            return self._with_imports(self._file_of.get(request.file_containing_symbol.lstrip("."), ""))
        if kind == "all_extension_numbers_of_type" and request.all_extension_numbers_of_type in self._file_of:
            # The files are proto3, which has no extensions.
            numbers = pb.ExtensionNumberResponse(base_type_name=request.all_extension_numbers_of_type)
            return pb.ServerReflectionResponse(all_extension_numbers_response=numbers)
        if kind is None:
            return _error(grpc.StatusCode.INVALID_ARGUMENT, "message_request is required")
        return _error(grpc.StatusCode.NOT_FOUND, "there is no such symbol, file or extension")

    def _with_imports(self, name: str) -> pb.ServerReflectionResponse:
        if name not in self._files:
            return _error(grpc.StatusCode.NOT_FOUND, "there is no such symbol, file or extension")
        names = [name]
        for one in names:
            # The loop also visits the names that are added here.
            names += [it for it in self._files[one].dependency if it not in names]
        serialized = [self._files[one].SerializeToString() for one in names]
        return pb.ServerReflectionResponse(
            file_descriptor_response=pb.FileDescriptorResponse(file_descriptor_proto=serialized)
        )


@cache
def _version_1() -> FileDescriptorProto:
    """Returns the file of version 1, which grpcio-reflection does not have: v1alpha with another name."""
    v1alpha = FileDescriptorProto()
    V1ALPHA.file.CopyToProto(v1alpha)
    return text_format.Parse(str(v1alpha).replace("v1alpha", "v1"), FileDescriptorProto())


def _error(code: grpc.StatusCode, message: str) -> pb.ServerReflectionResponse:
    return pb.ServerReflectionResponse(
        error_response=pb.ErrorResponse(error_code=code.value[0], error_message=message)
    )


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Yields the full names of all definitions in a file."""
    prefix = f"{file.package}." if file.package else ""
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)
    for enum in file.enum_type:
        yield prefix + enum.name
        yield from (prefix + value.name for value in enum.value)
    for message in file.message_type:
        yield from _symbols_of_message(message, prefix)


def _symbols_of_message(message: DescriptorProto, prefix: str) -> Iterator[str]:
    name = prefix + message.name
    yield name
    yield from (f"{name}.{field.name}" for field in message.field)
    yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
    for enum in message.enum_type:
        yield f"{name}.{enum.name}"
        yield from (f"{name}.{value.name}" for value in enum.value)
    for nested in message.nested_type:
        yield from _symbols_of_message(nested, f"{name}.")
