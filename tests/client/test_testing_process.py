"""storeapi.testing.running_server, and the fixtures on top of it: a real service for the length of a test."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import grpc
import pytest
from storeapi.testing import ServerFailed, ServerNotInstalled, running_server
from storeapi.v1 import posts_pb2, posts_pb2_grpc

from tests.support.timeouts import scaled_timeout


def create(target: str, body: str) -> posts_pb2.Post:
    """Adds a post, without the client."""
    with grpc.insecure_channel(target) as channel:
        request = posts_pb2.CreatePostRequest(post=posts_pb2.Post(body=body))
        return posts_pb2_grpc.PostServiceStub(channel).CreatePost(request)


def code(target: str, body: str) -> grpc.StatusCode:
    """How the service refuses to add a post."""
    with pytest.raises(grpc.RpcError) as raised:
        create(target, body)
    return raised.value.code()


# The server


def test_server_runs_until_the_end_of_its_block(monkeypatch, tmp_path):
    """With its own empty database, which is removed."""
    foreign = tmp_path / "foreign.db"
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("STORE_MAX_BODY_BYTES=1\n")
    monkeypatch.setenv("STORE_MAX_BODY_BYTES", "1")
    monkeypatch.setenv("STORE_LISTEN", "nonsense")
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{foreign}")
    monkeypatch.setenv("DB_FORCE_ROLL_BACK", "true")

    with running_server() as server:
        post = create(server.target, "longer than one byte")
        folder = server.folder
        assert (folder / "store.db").exists()

    assert post.id == 1
    assert not folder.exists()
    assert not foreign.exists()
    with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError):
        posts_pb2_grpc.PostServiceStub(channel).GetPost(posts_pb2.GetPostRequest(id=1))


def test_can_choose_settings():
    """As environment variables of the server."""
    with running_server({"STORE_MAX_BODY_BYTES": "3"}) as server:
        assert create(server.target, "abc").body == "abc"
        assert code(server.target, "abcd") is grpc.StatusCode.INVALID_ARGUMENT


def test_server_that_does_not_start_raises_its_error():
    """With the output of the server, and without a process left."""
    settings = {"STORE_MAX_BODY_BYTES": "many"}

    with pytest.raises(ServerFailed, match=r"(?s)start.*STORE_MAX_BODY_BYTES"), running_server(settings):
        raise AssertionError("it started")


def test_server_crash_fails_the_block():
    """A test that passed although the server died has tested something else."""
    with pytest.raises(ServerFailed, match="ended with exit code -9"), running_server() as server:
        os.kill(server.pid, signal.SIGKILL)


def test_failure_of_a_test_is_not_hidden():
    """The exception of the block is raised, and the server stops."""
    with pytest.raises(ZeroDivisionError), running_server() as server:
        _ = 1 / 0

    assert not server.folder.exists()


def test_missing_service_package_is_explained(monkeypatch):
    """One sentence instead of an exit code of Python."""
    monkeypatch.setitem(sys.modules, "store_service", None)

    with pytest.raises(ServerNotInstalled, match="store-service is not installed"), running_server():
        raise AssertionError("it started")


# The fixtures


def run_pytest(folder: Path, test: str, conftest: str = "") -> subprocess.CompletedProcess[str]:
    """Runs tests in a folder of their own, as a user of the fixtures does."""
    (folder / "conftest.py").write_text(f'pytest_plugins = ["storeapi.testing.fixtures"]\n{conftest}')
    (folder / "test_it.py").write_text(test)
    # Our pytest-asyncio warns of settings that it misses; warnings are errors here, those of ours too.
    options = ["-q", "-W", "error", "-p", "no:cacheprovider", "-p", "no:asyncio"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_it.py"],
        cwd=folder,
        # A client's own settings must not reach the fixtures' clients.
        env=os.environ | {"STOREAPI_TLS": "true", "STOREAPI_TARGET": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=scaled_timeout(),
        check=False,
    )


def test_each_test_has_an_empty_store_on_one_server(tmp_path):
    """Resources of the previous test are deleted; the server is the same."""
    test = """
        import pytest

        targets = set()

        @pytest.mark.parametrize("time", [1, 2])
        def test_alone(store_client, store_server, time):
            targets.add(store_server.target)
            assert list(store_client.posts.list()) == list(store_client.comments.list()) == []
            post = store_client.posts.create(body="a")
            store_client.comments.create(post_id=post.id, body="b")

        def test_one_server(empty_store):
            assert targets == {empty_store.target}
    """

    run = run_pytest(tmp_path, textwrap.dedent(test))

    assert "3 passed" in run.stdout, run.stdout


def test_scripted_server_is_a_fixture(tmp_path):
    """For one test."""
    test = """
        import grpc, pytest, storeapi

        def test_it(scripted_server):
            scripted_server.answer("GetPost", storeapi.Post(id=7, body="a"))
            channel = grpc.insecure_channel(scripted_server.target)
            with storeapi.StoreClient(channel=channel) as client:
                assert client.posts.get(7).body == "a"
            channel.close()
    """

    run = run_pytest(tmp_path, textwrap.dedent(test))

    assert "1 passed" in run.stdout, run.stdout


def test_fixtures_fail_without_the_service_package(tmp_path):
    """Tests that did not run must not pass."""
    conftest = 'import sys\nsys.modules["store_service"] = None\n'

    run = run_pytest(tmp_path, "def test_it(store_client): raise AssertionError", conftest)

    assert run.returncode == 1
    assert "1 error" in run.stdout
    assert "store-service is not installed" in run.stdout
    assert "Traceback" not in run.stdout
