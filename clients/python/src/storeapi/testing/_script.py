"""The steps of a scripted server."""

from dataclasses import dataclass

from google.protobuf.message import Message

from storeapi.testing._failures import CONNECTION_LOST, Failure


@dataclass(frozen=True, kw_only=True)
class Step:
    """The responses to one call, and its end."""

    title: str
    """The name of the step, for people."""
    messages: tuple[Message, ...] = ()
    """The first responses."""
    forwarded: int = 0
    """Number of responses of upstream after these."""
    is_carried_out: bool = False
    """Whether upstream executes the call, and its response is dropped."""
    end: Failure | None = None
    """The error at the end; None for none."""
    is_silent: bool = False
    """Whether the call stays open without further responses."""


def answer(messages: tuple[Message, ...]) -> Step:
    """Sends messages, and ends with OK."""
    return Step(title="answer", messages=messages)


def fail(failure: Failure, name: str) -> Step:
    """Ends with an error."""
    return Step(title=f"fail with {name}", end=failure)


def lose_answer() -> Step:
    """Executes the call, and closes the connection before the response."""
    return Step(title="lose the answer", is_carried_out=True, end=CONNECTION_LOST)


def cut(messages: tuple[Message, ...], forwarded: int) -> Step:
    """Closes the connection during a stream."""
    title = f"cut after {len(messages) + forwarded}"
    return Step(title=title, messages=messages, forwarded=forwarded, end=CONNECTION_LOST)


def stall(messages: tuple[Message, ...], forwarded: int) -> Step:
    """Sends no more responses on a stream."""
    title = f"stall after {len(messages) + forwarded}"
    return Step(title=title, messages=messages, forwarded=forwarded, is_silent=True)


def hang() -> Step:
    """Never responds."""
    return Step(title="hang", is_silent=True)
