"""Limits of pending responses per connection and per process."""

import time
from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from store_service.errors import Overloaded
from store_service.rpc import pending
from store_service.rpc.pending import Pending


class Closed:
    """Remembers which connections were closed."""

    def __init__(self) -> None:
        self.peers: list[set[str]] = []

    def __call__(self, peers: Collection[str]) -> None:
        self.peers.append(set(peers))


@pytest.fixture
def closed() -> Closed:
    return Closed()


def limits(closed: Closed, *, connection: int = 30, process: int = 100) -> Pending:
    """Limits in bytes."""
    return Pending(max_connection_bytes=connection, max_bytes=process, max_seconds=60, cut=closed)


def test_connection_has_its_own_limit_of_pending_bytes(closed: Closed) -> None:
    unread = limits(closed)
    first = unread.reserve("a", 20)
    with pytest.raises(Overloaded):
        unread.reserve("a", 11)
    unread.reserve("b", 30)
    first.release()

    unread.reserve("a", 30)


def test_single_response_may_exceed_the_connection_limit(closed: Closed) -> None:
    """Otherwise it could never be read."""
    limits(closed).reserve("a", 90)


def test_connection_leaves_room_for_others(closed: Closed) -> None:
    unread = limits(closed, connection=100)
    for peer in "abc":
        while unread.has_room(peer, 1):
            unread.reserve(peer, 1)

    assert [unread.connections[peer].size for peer in "abc"] == [50, 25, 13]
    assert unread.has_room("d", 12)
    assert not unread.has_room("d", 13)


def test_required_response_is_counted_and_never_refused(closed: Closed) -> None:
    unread = limits(closed)
    unread.reserve("a", 300, always=True)

    assert unread.is_full
    with pytest.raises(Overloaded):
        unread.reserve("b", 1)
    with pytest.raises(Overloaded):
        unread.check("a")
    unread.check("b")


def test_unix_socket_connections_share_the_process_limit(closed: Closed) -> None:
    unread = limits(closed)
    unread.reserve("unix:", 90)
    unread.check("unix:")

    with pytest.raises(Overloaded):
        unread.reserve("unix:", 11)


def test_largest_unread_connections_are_closed_first(closed: Closed, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as make half of the room free; not before they have read nothing for a while."""
    unread = limits(closed, connection=100)
    responses = [unread.reserve(peer, size) for peer, size in [("a", 10), ("b", 45), ("c", 20), ("d", 15)]]
    for response in responses:
        response.send()

    assert not unread.has_room("e", 20)
    assert closed.peers == []
    monkeypatch.setattr(pending, "STALLED_SECONDS", 0.0)
    unread.inspected(dict.fromkeys("abcd", 0), time.perf_counter())
    with capture_logs() as logged:
        assert not unread.has_room("e", 20)
        for response in responses:
            response.release()
    assert closed.peers == [{"b"}]
    assert [it["event"] for it in logged] == [
        "closed connections that do not read",
        "every response has been read",
    ]
    for peer in "ab":
        unread.reserve(peer, 50)
    # One look at all sockets at a time.
    assert not unread.has_room("e", 20)
    assert len(closed.peers) == 1


def test_connection_that_reads_is_not_closed(closed: Closed) -> None:
    unread = limits(closed, connection=100)
    old = unread.reserve("a", 1)
    unread.reserve("a", 44, always=True).send()
    old.send()
    unread.connections["a"].since -= 2 * pending.STALLED_SECONDS
    old.release()
    unread.inspected({"a": 0}, time.perf_counter())

    assert not unread.has_room("b", 60)
    assert closed.peers == []


@pytest.mark.parametrize(("taken", "is_closed"), [(pending.PROGRESS_BYTES, False), (100, True)])
def test_slow_reader_of_a_large_response_is_not_closed(closed: Closed, taken: int, is_closed: bool) -> None:
    unread = limits(closed, connection=100)
    unread.reserve("a", 90).send()
    start = unread.connections["a"].since
    unread.inspected({"a": 1_000_000}, start)
    unread.inspected({"a": 1_000_000 + taken}, start + pending.STALLED_SECONDS)

    assert not unread.has_room("b", 60)
    assert closed.peers == ([{"a"}] if is_closed else [])


def test_connection_is_closed_only_after_a_second_check(closed: Closed) -> None:
    unread = limits(closed, connection=100)
    unread.reserve("a", 90).send()
    unread.inspected({"a": 0}, unread.connections["a"].since)
    unread.connections["a"].since -= pending.STALLED_SECONDS / 2

    assert not unread.has_room("b", 60)
    assert closed.peers == []


def test_read_responses_leave_no_state(closed: Closed) -> None:
    unread = limits(closed)
    responses = [unread.reserve(f"{n}", n) for n in range(10)]
    for response in responses:
        response.send()
        response.release()

    assert (unread.size, unread.connections) == (0, {})
