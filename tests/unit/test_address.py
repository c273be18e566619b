"""Addresses: parsing and formatting."""

import pytest

from store_service.address import Address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:50051", "127.0.0.1", 50051), ("[::1]:0", "::1", 0), ("a.b:1", "a.b", 1)],
)
def test_tcp_address_is_parsed_and_formatted(text: str, host: str, port: int) -> None:
    """The brackets of an IPv6 address belong to the text, not to the host."""
    address = Address.parse(text)

    assert (address.host, address.port, address.path) == (host, port, None)
    assert str(address) == text
    assert str(address.with_port(7)) == text.rpartition(":")[0] + ":7"


@pytest.mark.parametrize("text", ["unix:/run/a.sock", "unix:///run/a.sock"])
def test_both_spellings_of_a_unix_socket_are_one_address(text: str) -> None:
    """gRPC accepts both."""
    assert str(Address.parse(text).with_port(7)) == "unix:/run/a.sock"


@pytest.mark.parametrize(
    "text", ["", "host", ":1", "host:", "host:x", "host:65536", "host:-1", "unix:", "unix://"]
)
def test_invalid_address_is_refused(text: str) -> None:
    """The message continues "STORE_LISTEN: "."""
    with pytest.raises(ValueError, match="must "):
        Address.parse(text)
