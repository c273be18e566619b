"""Which connections are closed for the sake of others."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from store_service.rpc.connection_limits import ConnectionLimits
from store_service.rpc.connections import Connections


def limits(**changed: Any) -> ConnectionLimits:
    """Ten connections, six of an address, 1000 bytes."""
    settings: dict[str, Any] = {
        "max_connections": 10,
        "max_per_address": 6,
        "max_pending_bytes": 1000,
        "silent_seconds": 5,
        "busy": set,
    }
    return ConnectionLimits(Connections(), **settings | changed)


def peers(*ports: int, host: str = "ipv4:10.0.0.1") -> list[str]:
    """Connections of one machine."""
    return [f"{host}:{port}" for port in ports]


def silent(*names: str) -> dict[str, int]:
    """Connections that have received nothing."""
    return dict.fromkeys(names, 0)


def test_connections_above_the_address_limit_are_closed() -> None:
    """The newest, and those without calls first."""
    checked = limits(max_connections=100)
    checked.connections_to_close(silent(*peers(1, 2, 3)), 0)
    checked.delivered[peers(8)[0]] += 1
    others = peers(*range(6), host="ipv4:10.0.0.2")
    found = silent(*peers(*range(1, 9)), *others)

    closed = checked.connections_to_close(found, 1)

    assert len(closed) == 2
    assert closed < set(peers(4, 5, 6, 7))


def test_ipv6_network_counts_as_one_address() -> None:
    """One host has all addresses of its network."""
    hosts = [f"ipv6:%5B2001:db8::{n}%5D" for n in range(4)]
    found = silent(*[peer for host in hosts for peer in peers(1, 2, host=host)])

    assert len(limits(max_connections=100).connections_to_close(found, 0)) == 2
    assert not limits(max_connections=100).connections_to_close(
        silent(*peers(*range(6), host="ipv6:%5Bfe80::1%25eth0%5D")), 0
    )


def test_unix_socket_connections_have_no_address_limit() -> None:
    """They are neither counted by address nor closed for having made no call."""
    found = silent(*[f"unix:{n}" for n in range(10)])
    checked = limits()

    assert not checked.connections_to_close(found, 0)
    assert not checked.connections_to_close(found, 100)


def test_connections_without_a_call_are_closed_when_crowded() -> None:
    """After a while."""
    called, running, old, new = peers(1, host="ipv4:10.0.0.2") + peers(2, 3, 4)
    others = peers(*range(5, 10), host="ipv4:10.0.0.3")
    checked = limits(busy=lambda: {running})
    checked.delivered[called] += 100
    for peer in others:
        checked.delivered[peer] += 100

    assert not checked.connections_to_close(silent(called, running, old, *others), 0)
    assert not checked.connections_to_close(silent(called, running, old, new, *others), 4)
    assert checked.connections_to_close(silent(called, running, old, new, *others), 5) == {old}
    assert not checked.connections_to_close(silent(called, running, new, *others), 100)


def test_connections_with_incomplete_requests_are_closed() -> None:
    """The largest first, until half of the memory is free."""
    one, two, three, honest = peers(1, 2, 3, 4)
    checked = limits()
    checked.delivered[honest] += 10_000
    found = {one: 200, two: 400, three: 450, honest: 10_000}

    # Whole requests may wait for a moment.
    assert not checked.connections_to_close(found, 0)
    assert checked.connections_to_close(found, 1) == {two, three}


def test_connections_whose_requests_complete_later_stay() -> None:
    (peer,) = peers(1)
    checked = limits()

    assert not checked.connections_to_close({peer: 2000}, 0)
    checked.delivered[peer] += 2000
    assert not checked.connections_to_close({peer: 2000}, 1)
    assert not checked.connections_to_close({peer: 2900}, 2)
    assert not checked.connections_to_close({peer: 2900}, 3)


def test_incomplete_requests_are_forgotten() -> None:
    """Calls are cancelled while they are sent, and nothing of them stays in memory."""
    (peer,) = peers(1)
    checked = limits()

    assert not any(checked.connections_to_close({peer: 10 * n}, n) for n in range(1000))


def test_ended_connections_are_forgotten() -> None:
    """At the second check."""
    checked = limits()
    checked.delivered["ipv4:10.0.0.1:1"] += 1
    checked.connections_to_close({}, 0)
    assert checked.delivered
    checked.connections_to_close({}, 1)

    assert not checked.delivered
    assert not checked._known


@pytest.mark.parametrize(("count", "is_full"), [(9, False), (10, True)])
def test_refused_connections_are_logged_once(count: int, is_full: bool) -> None:
    """At the start and at the end."""
    checked = limits(max_per_address=100)
    with capture_logs() as logged:
        for now in range(4):
            checked.connections_to_close(silent(*peers(*range(count))), now)
        checked.connections_to_close({}, 4)

    events = [it["event"] for it in logged]
    assert events == (["refusing connections", "accepting connections again"] if is_full else [])
