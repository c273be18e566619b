"""Generates the API reference, in Markdown, from the descriptors of the client and their comments.

docs/conf.py adds it to docs/api.md.
"""

import re
from collections.abc import Iterator
from importlib.resources import files

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

PACKAGE = "storeapi.v1"
_SCALARS = {number: name.removeprefix("TYPE_").lower() for name, number in FieldDescriptorProto.Type.items()}


class _File:
    """A file with its comments, by the path of the element that they describe."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self.file = file
        self._comments = {tuple(it.path): it.leading_comments for it in file.source_code_info.location}

    def comment(self, *path: int) -> str:
        """Returns the comment of an element as Markdown, with escaped markup."""
        lines = [line.removeprefix(" ") for line in self._comments.get(path, "").strip("\n").splitlines()]
        text = "\n".join(lines).replace("Errors:\n- ", "Errors:\n\n- ")
        return re.sub(r"([*<>\[\]])", r"\\\1", text)


def markdown() -> str:
    """Returns all services, messages and enums, each with a heading."""
    shipped = FileDescriptorSet.FromString(files(PACKAGE).joinpath("descriptors.binpb").read_bytes())
    ours = [_File(file) for file in shipped.file if file.package == PACKAGE]
    parts = ["## Services", *(line for file in ours for line in _services(file))]
    parts += ["## Messages", *(line for file in ours for line in _messages(file))]
    parts += ["## Enums", *(line for file in ours for line in _enums(file))]
    return "\n\n".join(parts) + "\n"


def _services(file: _File) -> Iterator[str]:
    place = FileDescriptorProto.SERVICE_FIELD_NUMBER
    for index, service in enumerate(file.file.service):
        yield f"### {service.name}"
        yield file.comment(place, index)
        for number, method in enumerate(service.method):
            stream = "stream " if method.server_streaming else ""
            yield f"#### {service.name}.{method.name}"
            yield f"{_link(method.input_type)} returns {stream}{_link(method.output_type)}"
            yield file.comment(place, index, ServiceDescriptorProto.METHOD_FIELD_NUMBER, number)


def _messages(file: _File) -> Iterator[str]:
    place = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
    for index, message in enumerate(file.file.message_type):
        yield f"### {message.name}"
        yield file.comment(place, index)
        rows = ["| field | type | description |", "|---|---|---|"]
        for number, field in enumerate(message.field):
            text = file.comment(place, index, DescriptorProto.FIELD_FIELD_NUMBER, number)
            oneof = (
                f" (one of `{message.oneof_decl[field.oneof_index].name}`)"
                if field.HasField("oneof_index")
                else ""
            )
            rows.append(f"| `{field.name}` | {_type(message, field)}{oneof} | {_cell(text)} |")
        yield "\n".join(rows)


def _enums(file: _File) -> Iterator[str]:
    place = FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER
    for index, enum in enumerate(file.file.enum_type):
        yield f"### {enum.name}"
        yield file.comment(place, index)
        rows = ["| value | number | description |", "|---|---:|---|"]
        for number, value in enumerate(enum.value):
            text = file.comment(place, index, EnumDescriptorProto.VALUE_FIELD_NUMBER, number)
            rows.append(f"| `{value.name}` | {value.number} | {_cell(text)} |")
        yield "\n".join(rows)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    entry = next(
        (it for it in message.nested_type if field.type_name.endswith(f".{message.name}.{it.name}")), None
    )
    if entry is not None and entry.options.map_entry:
        key, value = entry.field
        return f"map of {_type(message, key)} to {_type(message, value)}"
    name = _link(field.type_name) if field.type_name else f"`{_SCALARS[field.type]}`"
    return f"repeated {name}" if field.label == FieldDescriptorProto.LABEL_REPEATED else name


def _link(type_name: str) -> str:
    name = type_name.removeprefix(f".{PACKAGE}.")
    return f"`{name.removeprefix('.')}`" if "." in name else f"[{name}](#{name.lower()})"
