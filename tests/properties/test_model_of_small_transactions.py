"""What takes several transactions or steps is, for callers, as if it had taken one."""

from functools import partial
from pathlib import Path

import pytest
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.live import Live
from tests.properties.model import MAX_BODY_BYTES
from tests.properties.test_model import PostsAndComments

PROGRAM = Path(__file__).parent / "small_transactions.py"


@pytest.fixture(scope="module")
def server_settings() -> dict[str, str]:
    """A limit that the model knows."""
    return {"STORE_MAX_BODY_BYTES": str(MAX_BODY_BYTES)}


@pytest.fixture(scope="module")
def server_program() -> tuple[str, ...]:
    """A server that deletes nearly every post with comments in steps."""
    return (str(PROGRAM),)


def test_server_agrees_with_the_model_when_deletions_take_steps(live: Live) -> None:
    """Callers cannot tell whether rows of deleted posts are still stored."""
    run_state_machine_as_test(partial(PostsAndComments, live))
