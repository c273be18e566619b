"""Which reads of a client include its own writes, and the metadata for it; used by both clients.

The service has read replicas if its answers have a token. A token stands for everything that the answer
includes. Of two tokens, the greater text includes the other one.
"""

import os
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, Literal, TypeAlias, get_args

from storeapi.errors import ConsistencyTokenForeign, ConsistencyTokenInvalid

Consistency: TypeAlias = Literal["own_writes", "strong", "eventual"]
"""What reads include: see `consistency` of a client."""

VARIABLE: Final = "STOREAPI_CONSISTENCY"

ASK_SECONDS: Final = 60.0
"""Pause before a client asks again whether the service has replicas."""

TOKEN_KEY: Final = "consistency-token"  # noqa: S105 - a name
"""Trailing metadata with the token of an answer."""

REFUSED_TOKENS: Final = (ConsistencyTokenForeign, ConsistencyTokenInvalid)
"""The errors of tokens."""

AT_LEAST_KEY: Final = "at-least"
_STRONG: Final = (("consistency", "strong"),)
_EVENTUAL: Final = (("consistency", "eventual"),)

Metadata: TypeAlias = tuple[tuple[str, str], ...]
Trailers: TypeAlias = "Iterable[tuple[str, str | bytes]] | None"


def checked(consistency: str | None) -> Consistency:
    """The consistency of a client, from its argument or the environment.

    Raises:
        ValueError: It is unknown; the message names the argument or the variable.
    """
    name, value = "consistency", consistency
    if value is None:
        name, value = VARIABLE, os.environ.get(VARIABLE) or "own_writes"
    for known in get_args(Consistency):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise ValueError(f"{name} must be own_writes, strong or eventual")


class Reads:
    """What the reads of one client have to include. Threads may share it."""

    def __init__(self, consistency: Consistency) -> None:
        self._consistency = consistency
        self._lock = threading.Lock()
        self._token = ""
        """What the client has written and read; empty if the service has sent no token."""
        self._required = ""
        """A token from outside that no answer includes yet."""
        self._watched = ""
        """The token of a watch that no answer includes yet."""
        self._ask_at = 0.0

    @property
    def has_tokens(self) -> bool:
        """Whether the tokens of answers are needed."""
        return self._consistency == "own_writes"

    @property
    def token(self) -> str:
        """What the client has written and read."""
        return self._token

    def require(self, token: str) -> None:
        """Makes later reads include what a token stands for."""
        self._required = token

    def watched(self, resume_token: str) -> None:
        """Makes later reads include what a watch has received."""
        # Without a token, the next read includes everything.
        if self._token:
            self._watched = resume_token

    def metadata(self, request: Any) -> Metadata:
        """The metadata of a call."""
        # Requests of writes have a request_id.
        if self._consistency == "strong" or hasattr(request, "request_id"):
            return ()
        tokens = [it for it in (self._token, self._required, self._watched) if it]
        at_least = tuple((AT_LEAST_KEY, it) for it in tokens)
        if self._consistency == "eventual":
            return (*_EVENTUAL, *at_least)
        if self._token or time.monotonic() < self._ask_at:
            return at_least
        # The answer includes everything, and later reads what it includes.
        return (*_STRONG, *at_least)

    def answered(self, request: Any, sent: Metadata, trailers: Trailers, *, has_failed: bool = False) -> None:
        """Takes the token of a response or error."""
        token = next((value for key, value in trailers or () if key == TOKEN_KEY), None)
        if not isinstance(token, str):
            if sent[:1] == _STRONG:
                self._ask_at = time.monotonic() + ASK_SECONDS
            elif not has_failed and hasattr(request, "request_id"):
                # A server without replicas has executed this write. The next read has to include it.
                self._token = ""
            return
        tokens = [value for key, value in sent if key == AT_LEAST_KEY]
        with self._lock:
            # An older token can only mean that the service has lost the newer changes.
            self._token = token if self._token in tokens else max(self._token, token)
            if self._required in tokens:
                self._required = ""
            if self._watched in tokens:
                self._watched = ""

    def forget(self, sent: Metadata) -> bool:
        """Removes the tokens of a call that the service has refused. Returns whether the call can be repeated
        without them, because none of them is from outside."""
        tokens = [value for key, value in sent if key == AT_LEAST_KEY]
        with self._lock:
            has_required = self._required in tokens
            self._token, self._required, self._watched = [
                "" if it in tokens else it for it in (self._token, self._required, self._watched)
            ]
        return bool(tokens) and not has_required


async def received_async(
    method: Any, request: Any, seconds: float | None, sent: Metadata
) -> tuple[Any, Trailers]:
    """The response of a call, and its trailing metadata. An interceptor may return an object without it."""
    call = method(request, timeout=seconds, **({"metadata": sent} if sent else {}))
    response = await call
    return response, (await call.trailing_metadata() if hasattr(call, "trailing_metadata") else None)


def received(method: Any, request: Any, seconds: float | None, sent: Metadata) -> tuple[Any, Trailers]:
    """The same for threads. An interceptor may return a method without `with_call`."""
    options = {"metadata": sent} if sent else {}
    with_call = getattr(method, "with_call", None)
    if with_call is None:
        return method(request, timeout=seconds, **options), None
    response, call = with_call(request, timeout=seconds, **options)
    return response, call.trailing_metadata()
