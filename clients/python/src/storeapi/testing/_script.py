"""What a scripted server does with one call."""

from dataclasses import dataclass

from google.protobuf.message import Message

from storeapi.testing._failures import CONNECTION_LOST, Failure


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call: what is sent, and how it ends."""

    title: str
    """What it does, for people."""
    messages: tuple[Message, ...] = ()
    """Sent first."""
    forwarded: int = 0
    """How many messages of upstream are handed on then."""
    is_carried_out: bool = False
    """Whether upstream does the call to its end, and nobody gets its answer."""
    end: Failure | None = None
    """The error at the end; None for none."""
    is_silent: bool = False
    """Whether nothing more comes, and no end either, until the caller gives up."""


def answer(messages: tuple[Message, ...]) -> Step:
    """Sends messages, and ends well."""
    return Step(title="answer", messages=messages)


def fail(failure: Failure, name: str) -> Step:
    """Ends at once with an error."""
    return Step(title=f"fail with {name}", end=failure)


def lose_answer() -> Step:
    """Does the call, and loses the connection before the answer."""
    return Step(title="lose the answer", is_carried_out=True, end=CONNECTION_LOST)


def cut(messages: tuple[Message, ...], forwarded: int) -> Step:
    """Loses the connection in the midst of a stream."""
    title = f"cut after {len(messages) + forwarded}"
    return Step(title=title, messages=messages, forwarded=forwarded, end=CONNECTION_LOST)


def stall(messages: tuple[Message, ...], forwarded: int) -> Step:
    """Falls silent in the midst of a stream."""
    title = f"stall after {len(messages) + forwarded}"
    return Step(title=title, messages=messages, forwarded=forwarded, is_silent=True)


def hang() -> Step:
    """Never answers."""
    return Step(title="hang", is_silent=True)
