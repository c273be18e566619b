"""How the command ends when it fails: one line on stderr, and an exit code with a meaning."""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from concurrent import futures

import grpc
import pytest
from storeapi import StoreClient, errors
from storeapi._status import BY_REASON
from storeapi.cli import failures
from storeapi.cli.failures import BY_ERROR, MEANINGS, ExitCode, exit_code
from storeapi.cli.words import with_option_names

from tests.support.storeapi_command import StoreapiCommand
from tests.support.timeouts import scaled_timeout

Keep = Callable[[subprocess.Popen[bytes]], subprocess.Popen[bytes]]


def test_help_lists_every_exit_code(storeapi: StoreapiCommand) -> None:
    """Each exit code appears with its meaning."""
    help = storeapi("--help").stdout

    assert set(MEANINGS) == set(ExitCode)
    for code, meaning in MEANINGS.items():
        assert f"{int(code)}  {meaning}" in help


def test_every_service_error_has_an_exit_code() -> None:
    """Each row of the table is used; an error without a row is a general failure."""
    codes = {error: exit_code(error()) for error in BY_REASON.values()}

    assert codes[errors.CommentNotFound] == ExitCode.NOT_FOUND
    assert codes[errors.EtagMismatch] == codes[errors.PostHasComments] == ExitCode.CONFLICT
    assert codes[errors.NotDeleted] == ExitCode.CONFLICT
    assert codes[errors.DatabaseBusy] == codes[errors.WatchLimit] == ExitCode.UNAVAILABLE
    assert codes[errors.FieldInvalid] == codes[errors.StorageFull] == ExitCode.FAILED
    assert set(codes.values()) == {code for _, code in BY_ERROR}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["posts", "list", "--limit", "0"], 0, ""),
        (["posts", "create", ""], 1, "FIELD_INVALID: BODY: must not be empty"),
        (["posts", "update", "1", ""], 1, "FIELD_INVALID: BODY: must not be empty"),
        (["posts", "delete", "1", "2", "1"], 1, "BATCH_DUPLICATE: ID argument 3: duplicate id 1"),
        (["posts", "create", "a", "--request-id", "0" * 32], 1, "FIELD_INVALID: --request-id: must be"),
        (["watch", "--resume-token", "x"], 1, "RESUME_TOKEN_INVALID: --resume-token: is not a token"),
        (["export", "missing/all.jsonl"], 1, "missing/all.jsonl: No such file or directory"),
        (["export", "/dev/null/file"], 1, "error: /dev/null/file: Not a directory"),
        (["--api-key-file", "missing", "posts", "list"], 2, "from missing: No such file or directory"),
        (["--tls-cert", "a.pem", "posts", "list"], 2, "--tls-cert and --tls-key belong together"),
        (["posts", "list", "--order-by", "body"], 2, "'body' is not one of 'id', 'id-desc'"),
        (["posts", "list", "--limit", "1", "--all"], 2, "--all and --limit"),
        (["posts", "get"], 2, "Missing argument"),
        (["posts", "get", "0"], 2, "ID"),
        (["posts", "get", str(2**63)], 2, "ID"),
        (["--no-such-option"], 2, "--no-such-option"),
        (["--timeout", "0", "posts", "list"], 2, "--timeout"),
        (["--timeout", "1e10", "posts", "list"], 2, "--timeout must be a number of seconds"),
        (["--tls-ca", "missing.pem", "posts", "list"], 2, "--tls-ca: missing.pem cannot be read"),
        (["--target", "localhost", "posts", "list"], 2, "--target must be HOST:PORT"),
        (["--target", "http://localhost:1", "posts", "list"], 2, "--target must be HOST:PORT"),
        (["--no-tls", "--tls-ca", "ca.pem", "posts", "list"], 2, "--tls-key need TLS, and --no-tls says no"),
        (["--target", "", "posts", "list"], 2, "target"),
        (["comments", "create", "987654321", "a"], 3, "POST_NOT_FOUND"),
    ],
)
def test_failure_prints_one_line_and_sets_exit_code(
    storeapi: StoreapiCommand, arguments: list[str], code: int, words: str
) -> None:
    """In text and in JSON."""
    found, stdout, stderr = storeapi.process(*arguments)

    assert (found, stdout) == (code, "")
    assert stderr.count("\n") == (code != 0)
    assert stderr.startswith("error: " if code else "")
    assert words in stderr
    assert not re.search(r"Errno|[a-z]_[a-z]|set force", stderr)


def test_full_disk_error_names_the_file(storeapi: StoreapiCommand, store: StoreClient) -> None:
    """With the message of the operating system, without its errno."""
    store.posts.create(body="a")

    assert storeapi.process("export", "/dev/full")[2] == "error: /dev/full: No space left on device\n"


def test_post_has_comments_message_names_the_force_option(
    storeapi: StoreapiCommand, store: StoreClient
) -> None:
    """As typed on the command line; JSON output has the message of the API."""
    post = store.posts.create(body="a")
    store.comments.create(post_id=post.id, body="b")

    assert "add --force to delete them too" in storeapi("posts", "delete", str(post.id)).stderr
    in_json = json.loads(storeapi("--json", "posts", "delete", str(post.id)).stderr)
    assert "set force" in in_json["error"]["message"]


def test_missing_credentials_message_names_the_options(storeapi: StoreapiCommand) -> None:
    """The service mentions metadata, which the command line does not have."""
    error = errors.CredentialsMissing("the call needs credentials")

    assert "STOREAPI_API_KEY, or a file with it after --api-key-file" in failures._sentence(error)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("comment.post_id: is required", "POST_ID: is required"),
        ("changes after this resume_token are gone", "changes after this token are gone"),
        (
            "start again with initial_state, or with earliest if",
            "start again with --from initial-state, or with --from earliest if",
        ),
        ("set tls=True, or tls=False where", "add --tls, or --no-tls where"),
        ("order_by: must be", "--order-by: must be"),
        ("post.labels: the key 'A' must have", "--label: the key 'A' must have"),
        ("comment.reply_to_id: must be", "--reply-to: must be"),
        (
            "comment_filter.create_time_before: must be after create_time_from",
            "--created-before: must be after --created-from",
        ),
        ("filter.author: must be", "--author: must be"),
        (
            "post 1 has this external_id; set return_existing to get it instead",
            "post 1 has this --external-id; add --return-existing to get it instead",
        ),
    ],
)
def test_api_field_names_become_option_names(said: str, told: str) -> None:
    """Those that the messages of the service and the client contain."""
    assert with_option_names(said) == told


def test_json_error_has_all_machine_readable_fields(storeapi: StoreapiCommand) -> None:
    """Reason, status, violations, data and the exit code, on stderr, because stdout has results only."""
    refused = storeapi("--json", "posts", "create", "\n" * 70_000)
    wrong = storeapi("--json", "posts", "get", "x")
    missing = storeapi("--json", "posts", "get", "987654321")
    error = json.loads(refused.stderr)["error"]

    assert (refused.stdout, refused.exit_code, error["exit_code"]) == ("", 1, 1)
    assert (error["reason"], error["code"]) == ("FIELD_INVALID", "INVALID_ARGUMENT")
    assert [it["field"] for it in error["violations"]] == ["post.body"]
    assert json.loads(wrong.stderr)["error"]["exit_code"] == 2
    assert json.loads(missing.stderr)["error"]["metadata"]["missing_ids"] == "987654321"


def test_unreachable_service_is_unavailable(storeapi: StoreapiCommand, refused_address: str) -> None:
    """After the timeout, or at once without retries. A write prints how to repeat it."""
    storeapi.target = refused_address
    with_retries = storeapi.process("--timeout", "0.3", "posts", "list")
    write = storeapi.process("--no-retries", "posts", "create", "a")

    assert (with_retries[0], write[0]) == (5, 5)
    assert with_retries[2].count("\n") == write[2].count("\n") == 1
    assert "--request-id" not in with_retries[2]
    assert "--request-id" in write[2]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_closed_stdout_is_not_an_error(
    storeapi: StoreapiCommand, store: StoreClient, started: Keep, options: list[str]
) -> None:
    """`storeapi posts list | head -1` prints one line and nothing else."""
    store.posts.create_many(["x" * 1000] * 300)
    process = started(storeapi.start(*options, "posts", "list"))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(scaled_timeout()) == 141
    assert process.stderr.read() == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_export_leaves_no_file(
    storeapi: StoreapiCommand, started: Keep, silent_server: socket.socket, number: int, code: int
) -> None:
    """The command ends at once without output and removes the partial file."""
    storeapi.target = f"127.0.0.1:{silent_server.getsockname()[1]}"
    process = started(storeapi.start("export", "all.jsonl"))
    with silent_server.accept()[0]:
        assert [path.suffix for path in storeapi.folder.iterdir()] == [".tmp"]
        process.send_signal(number)
        _, stderr = process.communicate(timeout=scaled_timeout())

    assert (process.returncode, stderr) == (code, b"")
    assert list(storeapi.folder.iterdir()) == []


class Recorder(grpc.GenericRpcHandler):
    """A server that knows no method, and keeps what calls carry."""

    def __init__(self) -> None:
        self.carried: dict[str, str] = {}

    def service(self, details: grpc.HandlerCallDetails) -> None:
        self.carried = {key: str(value) for key, value in details.invocation_metadata or ()}


@pytest.mark.parametrize("end", ["", "\n"])
def test_api_key_is_read_from_file_or_environment(storeapi: StoreapiCommand, end: str) -> None:
    """Never from the command line, which other users can read. The file has precedence."""
    recorder = Recorder()
    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[recorder])
    storeapi.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    file = storeapi.folder / "key"
    file.write_text(f"from-file{end}")
    storeapi.environment["STOREAPI_API_KEY"] = "from-environment"
    try:
        storeapi("posts", "list")
        from_environment = recorder.carried["authorization"]
        storeapi("--api-key-file", str(file), "posts", "list")
        from_file = recorder.carried["authorization"]
    finally:
        server.stop(None).wait()

    assert (from_environment, from_file) == ("Bearer from-environment", "Bearer from-file")
    assert storeapi("--api-key", "secret", "posts", "list").exit_code == 2


@pytest.mark.parametrize("content", ["", "two\nlines", None])
def test_file_without_api_key_is_a_usage_error(storeapi: StoreapiCommand, content: str | None) -> None:
    """The content of the file is not printed."""
    file = storeapi.folder / "key"
    if content is not None:
        file.write_text(content)
    done = storeapi("--api-key-file", str(file), "posts", "list")

    assert done.exit_code == 2
    assert str(file) in done.stderr
    assert "two" not in done.stderr
