"""For tests of your own code: a server that fails on demand, and a real one for the length of a test.

    import storeapi
    from storeapi.testing import ScriptedServer

    def test_a_post_is_kept_although_the_server_is_busy():
        with ScriptedServer() as server:
            server.fail("CreatePost", storeapi.DatabaseBusy(retry_after=0.01), times=2)
            server.answer("CreatePost", storeapi.Post(id=1, body="Hello"))

            keep("Hello", target=server.target)

            first, second, third = server.calls
            assert first.request == second.request == third.request

`running_server` starts store-service on a database of its own. `storeapi.testing.fixtures` has both as
fixtures for pytest; nothing else here needs pytest.
"""

from storeapi.testing._calls import Call
from storeapi.testing._process import RunningServer, ServerFailed, ServerNotInstalled, running_server
from storeapi.testing._scripted import ScriptedServer

__all__ = [
    "ScriptedServer",
    "Call",
    "running_server",
    "RunningServer",
    "ServerNotInstalled",
    "ServerFailed",
]
