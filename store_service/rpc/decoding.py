"""From bytes to messages; what cannot be read is the caller's error."""

from collections.abc import AsyncIterator, Callable

from google.protobuf.message import DecodeError, Message

from store_service.errors import RequestMalformed


def decoder(message_class: type[Message]) -> Callable[[bytes], Message]:
    """What makes messages of a kind; it raises RequestMalformed."""
    parse = message_class.FromString

    def decode(data: bytes) -> Message:
        try:
            return parse(data)
        except DecodeError:
            # Which of the two it was, the library does not tell.
            why = "it cannot be decoded, or a text in it is not UTF-8"
            raise RequestMalformed.at(
                "", f"the request is no {message_class.DESCRIPTOR.full_name}: {why}"
            ) from None

    return decode


async def decode_each(
    data: AsyncIterator[bytes], decode: Callable[[bytes], Message]
) -> AsyncIterator[Message]:
    """The messages that a stream of requests is made of."""
    async for one in data:
        yield decode(one)
