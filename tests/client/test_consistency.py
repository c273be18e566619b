"""What a client sends so that its reads include what it knows, and what it learns from answers."""

import pytest
import storeapi
from storeapi import _consistency
from storeapi._consistency import Reads
from storeapi.v1 import posts_pb2

READ = posts_pb2.GetPostRequest(id=1)
WRITE = posts_pb2.CreatePostRequest()
ASK = (("consistency", "strong"),)


def at_least(*tokens):
    """The metadata that requires tokens."""
    return tuple(("at-least", it) for it in tokens)


def answer(reads, request, token, *, sent=None):
    """The client receives an answer with this token; None for one without."""
    trailers = [("x-call-id", "1"), *([("consistency-token", token)] if token else [])]
    reads.answered(request, reads.metadata(request) if sent is None else sent, trailers)


@pytest.fixture
def reads():
    """Those of a client that has received the token "b"."""
    reads = Reads("own_writes")
    answer(reads, WRITE, "b")
    return reads


def test_first_read_asks_for_everything_and_for_a_token():
    reads = Reads("own_writes")
    assert reads.metadata(READ) == ASK

    answer(reads, READ, "a")

    assert reads.metadata(READ) == at_least("a")
    assert reads.token == "a"


def test_service_without_replicas_is_asked_once_a_minute(monkeypatch):
    """Its answers have no token."""
    now = 100.0
    monkeypatch.setattr(_consistency.time, "monotonic", lambda: now)
    reads = Reads("own_writes")
    answer(reads, READ, None)
    assert reads.metadata(READ) == ()

    now += _consistency.ASK_SECONDS

    assert reads.metadata(READ) == ASK


def test_newest_token_is_kept(reads):
    """Answers can arrive in any order."""
    answer(reads, WRITE, "a")
    assert reads.token == "b"

    answer(reads, WRITE, "c")

    assert reads.metadata(READ) == at_least("c")
    assert reads.metadata(WRITE) == ()


def test_older_token_of_an_answer_to_the_newest_replaces_it(reads):
    """The service has lost the newer changes in a failover."""
    answer(reads, READ, "a")

    assert reads.token == "a"


def test_token_that_arrives_during_a_read_is_not_replaced(reads):
    sent = reads.metadata(READ)
    answer(reads, WRITE, "c")

    answer(reads, READ, "b", sent=sent)

    assert reads.token == "c"


def test_write_on_a_server_without_replicas_is_read_from_the_primary(reads):
    """While replicas are introduced, servers with and without them answer."""
    answer(reads, WRITE, None)

    assert reads.metadata(READ) == ASK


def test_failed_write_without_token_changes_nothing(reads):
    reads.answered(WRITE, (), (), has_failed=True)

    assert reads.metadata(READ) == at_least("b")


def test_tokens_of_watches_and_other_clients_are_sent_until_an_answer_includes_them(reads):
    reads.watched("watch 1")
    reads.watched("watch 2")
    reads.require("other")
    assert reads.metadata(READ) == at_least("b", "other", "watch 2")
    sent = reads.metadata(READ)
    reads.watched("watch 3")

    answer(reads, READ, "c", sent=sent)

    assert reads.metadata(READ) == at_least("c", "watch 3")


def test_watch_is_not_required_before_the_first_token():
    """The next read includes everything."""
    reads = Reads("own_writes")

    reads.watched("watch")

    assert reads.metadata(READ) == ASK


def test_refused_token_is_forgotten(reads):
    """A call is repeated without it, unless the caller has set it."""
    assert reads.forget(reads.metadata(READ))
    assert reads.metadata(READ) == ASK
    assert not reads.forget(reads.metadata(READ))

    reads.require("other")

    assert not reads.forget(reads.metadata(READ))
    assert reads.metadata(READ) == ASK


def test_strong_sends_nothing():
    """The primary answers callers without metadata."""
    reads = Reads("strong")
    reads.require("other")

    assert not reads.has_tokens
    assert reads.metadata(READ) == ()


def test_eventual_sends_only_what_is_required():
    reads = Reads("eventual")
    reads.watched("watch")
    assert reads.metadata(READ) == (("consistency", "eventual"),)

    reads.require("other")

    assert reads.metadata(READ) == (("consistency", "eventual"), *at_least("other"))


def test_environment_has_the_default(monkeypatch):
    assert _consistency.checked(None) == "own_writes"
    monkeypatch.setenv("STOREAPI_CONSISTENCY", "eventual")

    assert _consistency.checked(None) == "eventual"
    assert _consistency.checked("strong") == "strong"


def test_unknown_consistency_is_explained(monkeypatch):
    with pytest.raises(ValueError, match=r"^consistency must be own_writes, strong or eventual$"):
        storeapi.connect("localhost:1", consistency="weak")

    monkeypatch.setenv("STOREAPI_CONSISTENCY", "weak")
    with pytest.raises(ValueError, match=r"^STOREAPI_CONSISTENCY must be"):
        storeapi.connect("localhost:1")
