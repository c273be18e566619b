"""What takes several transactions or steps is, for callers, as if it had taken one."""

from functools import partial
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.test_model import PostsAndComments
from tests.support.property_server import LiveServer
from tests.support.reference_model import MAX_BODY_BYTES

PROGRAM = Path(__file__).parent / "small_transactions.py"


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """A limit that the model knows."""
    return {"STORE_MAX_BODY_BYTES": str(MAX_BODY_BYTES)}


@pytest.fixture(scope="module")
def server_program() -> tuple[str, ...]:
    """A server that deletes nearly every post with comments in steps."""
    return (str(PROGRAM),)


def test_server_agrees_with_the_model_during_stepwise_removal(live: LiveServer) -> None:
    """Callers cannot observe whether rows of deleted posts are still stored."""
    run_state_machine_as_test(partial(PostsAndComments, live))
