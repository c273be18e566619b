"""The metadata by which callers say how new an answer has to be, and what an answer includes.

`consistency: strong` or `eventual`, and `at-least` with one or more tokens, are metadata of requests.
`consistency-token` is trailing metadata of answers and errors.
"""

from collections.abc import Iterable
from contextlib import suppress

from store_service.database.consistency import CallConsistency, current, set_current
from store_service.errors import ConsistencyTokenForeign, FieldInvalid
from store_service.model import NOTHING_SEEN, Position, Seen
from store_service.rpc.call import Context
from store_service.service import consistency_tokens
from store_service.service.changes import Changes

MODE_KEY = "consistency"
ANSWER_KEY = "consistency-token"

_REQUEST_KEYS = (MODE_KEY, consistency_tokens.KEY)
_STRONG = "strong"
_EVENTUAL = "eventual"


class Consistency:
    """Reads the requirements of calls, and writes the tokens of answers."""

    def __init__(self, changes: Changes, store_id: str, *, has_replicas: bool) -> None:
        """Takes the change feed, the id of the store, and whether reads can be answered by replicas."""
        self._changes = changes
        self._store_id = store_id
        self._has_replicas = has_replicas
        self._last: tuple[Seen, str] | None = None

    def requirements(self, context: Context, *, is_read: bool) -> Iterable[tuple[str, str | bytes]] | None:
        """Returns the metadata of a call that `begin` needs; None if the call needs no `begin`."""
        found = [it for it in context.invocation_metadata() or () if it[0] in _REQUEST_KEYS]
        if found:
            return found
        # The token of a read costs a statement, so a caller has to ask for it.
        return () if self._has_replicas and not is_read else None

    async def begin(self, requirements: Iterable[tuple[str, str | bytes]], *, is_read: bool) -> None:
        """Sets the requirements of the call of this task.

        Raises:
            FieldInvalid: `consistency` has an unknown value.
            ConsistencyTokenInvalid, ConsistencyTokenForeign: See `consistency_tokens.read`.
        """
        call = CallConsistency()
        modes = [value for key, value in requirements if key == MODE_KEY]
        if not set(modes) <= {_STRONG, _EVENTUAL} or len(modes) > 1:
            raise FieldInvalid.at(MODE_KEY, "this metadata must be strong or eventual")
        tokens = [str(value) for key, value in requirements if key != MODE_KEY]
        for token in tokens:
            call.require(await self._read(token))
        call.may_lag = is_read and _STRONG not in modes and bool(modes or tokens)
        set_current(call)

    async def _read(self, token: str) -> Seen | Position:
        try:
            return consistency_tokens.read(token, self._store_id)
        except ConsistencyTokenForeign:
            # Another process may have restarted the change feed.
            self._store_id = (await self._changes.state()).store_id
            self._last = None
            for former_id in await self._changes.former_store_ids():
                with suppress(ConsistencyTokenForeign):
                    consistency_tokens.read(token, former_id)
                    # Every server of this store has all that was copied from the former one.
                    return NOTHING_SEEN
            return consistency_tokens.read(token, self._store_id)

    def trailer(self) -> tuple[tuple[str, str], ...]:
        """Returns the trailing metadata for what the call of this task has seen."""
        call = current()
        if call is None or call.seen == NOTHING_SEEN:
            return ()
        last = self._last
        if last is None or last[0] != call.seen:
            last = self._last = (call.seen, consistency_tokens.make(self._store_id, call.seen))
        return ((ANSWER_KEY, last[1]),)
