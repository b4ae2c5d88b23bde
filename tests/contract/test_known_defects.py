"""Defects that libraries, samples and agents for webhooks have, each of which ours must not have."""

import ast
import asyncio
import base64
import hashlib
import hmac
import inspect
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import fuzz
from tests.fuzz import NOW, SECRETS, STAMP, Case, Fuzzer, _signature

import port_webhook_handlers
from port_webhook_handlers.port import signature as module
from port_webhook_handlers.port.client import PortClient, PortUnreachableError
from port_webhook_handlers.port.signature import VerificationError, sign, verify, verify_official_agent

SECRET = SECRETS[0].decode()
PACKAGE = Path(port_webhook_handlers.__file__).parent
BODY = b'{"port_context":{"action":"work","runId":"r_1"},"inputs":{"text":"a"}}'

GARBAGE = [
    "", "v1", "v1,", "v1,,", "v1,a,b", ",", "v1,%%%", "v1,é", "v1,\udcff", "v1," + "A" * 43, "v1," + "A" * 44, "v1,A=",
    "v1 " + "A" * 43 + "=", "\x00", "v1,\x00", "v2," + "A" * 43 + "=",
]  # fmt: skip


def post(headers: list[tuple[bytes, bytes]], body: bytes = BODY) -> str:
    """Status and reason."""

    async def send(fuzzer: Fuzzer) -> str:
        await fuzzer._request(Case("POST", "/webhooks/work", headers, body))
        return next(iter(fuzzer.report.outcomes))

    fuzzer = Fuzzer(1)
    try:
        return asyncio.run(send(fuzzer))
    finally:
        fuzzer.close()


# Signatures are compared with == and never get old (an execution agent, several samples).


def test_signatures_are_compared_in_constant_time() -> None:
    tree = ast.parse(inspect.getsource(module._check_signature))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Eq | ast.NotEq)]
    calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert "hmac.compare_digest" in calls


def test_every_secret_is_tried() -> None:
    tree = ast.parse(inspect.getsource(module._check_signature))
    loop = next(node for node in ast.walk(tree) if isinstance(node, ast.For))
    assert not [node for node in ast.walk(loop) if isinstance(node, ast.Break | ast.Return | ast.Raise)]


def test_an_old_request_is_refused() -> None:
    for scheme in (verify, verify_official_agent):
        with pytest.raises(VerificationError, match="stale_timestamp"):
            scheme([SECRET], sign(SECRET, STAMP.decode(), b"{}"), STAMP.decode(), b"{}", now=NOW + 301)


# The agent's bytes are not those that it signed.


def test_what_the_official_agent_sends_is_verified_and_nothing_else() -> None:
    content = {"name": "Zoë ✓", "list": [1, 2.5, None], "nested": {"a": {}}}
    signed = json.dumps(content, separators=(",", ":")).encode()
    sent = json.dumps(content).encode()
    header = sign(SECRET, STAMP.decode(), signed)
    assert verify_official_agent([SECRET], header, STAMP.decode(), sent, now=NOW) == content
    with pytest.raises(VerificationError, match="bad_signature"):
        verify([SECRET], header, STAMP.decode(), sent, now=NOW)
    for other in (signed, sent + b" ", json.dumps(content, ensure_ascii=False).encode()):
        with pytest.raises(VerificationError):
            verify_official_agent([SECRET], header, STAMP.decode(), other, now=NOW)


# A token for every call, no time limit on any (an agent, samples).


def test_one_token_serves_many_calls_and_every_call_has_a_time_limit() -> None:
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.answer({"ok": True, "accessToken": "t", "expiresIn": 3600, "tokenType": "Bearer"})

        def do_GET(self) -> None:
            self.answer({"ok": True})

        def answer(self, content: dict[str, object]) -> None:
            paths.append(self.path)
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            client = PortClient(f"http://127.0.0.1:{server.server_address[1]}", "id", "secret")
            for _ in range(5):
                client.request("GET", "/v1/blueprints")
            client.close()
        finally:
            server.shutdown()
            thread.join()
    assert sum("access_token" in path for path in paths) == 1


def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = PortClient(
            f"http://127.0.0.1:{silent.getsockname()[1]}", "id", "secret", timeout=(0.2, 0.2), attempts=1
        )
        with pytest.raises(PortUnreachableError):
            client.request("GET", "/v1/blueprints")
        client.close()


# The environment, secrets included, goes into the log; a report raises and is lost (samples).


def test_no_code_writes_the_environment_out() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                arguments = {
                    ast.unparse(item) for item in [*node.args, *(item.value for item in node.keywords)]
                }
                name = ast.unparse(node.func)
                shows = name == "print" or name.endswith(("_log", ".info", ".debug", ".warning", ".write"))
                assert not (shows and {"os.environ", "dict(os.environ)"} & arguments), f"{path}:{node.lineno}"


# Checks by `assert` vanish under -O; milliseconds are taken for seconds (samples).


def test_verification_holds_under_optimisation() -> None:
    program = (
        "from port_webhook_handlers.port.signature import VerificationError, verify\n"
        "import sys\n"
        "try:\n    verify(['secret'], 'v1,' + 'A' * 43 + '=', '1700000000', b'{}', now=1700000000)\n"
        "except VerificationError as error:\n    print(error.reason)\n"
        "else:\n    print('accepted')\n"
        "try:\n    verify(['secret'], None, None, b'{}')\n"
        "except VerificationError as error:\n    print(error.reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == ["bad_signature", "missing_signature"]


@pytest.mark.parametrize("stamp", [b"1700000000", b"1700000000000", b"1699999701000"])
def test_seconds_and_milliseconds_are_told_apart(stamp: bytes) -> None:
    headers = [(b"x-port-timestamp", stamp), (b"x-port-signature", _signature(SECRETS[0], stamp, BODY))]
    assert post(headers) == "200"


# Without a signature, or without a secret, everything is let in; unequal lengths raise (samples).


def test_a_missing_signature_or_secret_lets_nothing_in() -> None:
    assert post([]) == "401 missing_signature"
    assert post([(b"x-port-timestamp", STAMP)]) == "401 missing_signature"
    assert post([(b"x-port-signature", _signature(SECRETS[0], STAMP, BODY))]) == "401 missing_timestamp"
    header = sign(SECRET, STAMP.decode(), BODY)
    with pytest.raises(VerificationError, match="bad_signature"):
        verify([], header, STAMP.decode(), BODY, now=NOW)
    for empty in ("", b""):
        with pytest.raises(ValueError, match="empty"):
            verify([empty], header, STAMP.decode(), BODY, now=NOW)
        with pytest.raises(ValueError, match="empty"):
            sign(empty, STAMP.decode(), BODY)


# Garbage raises errors that nobody catches, so that it is answered 500 (a library).


@pytest.mark.parametrize("value", GARBAGE)
def test_garbage_is_one_kind_of_error(value: str) -> None:
    with pytest.raises(VerificationError):
        verify([SECRET], value, STAMP.decode(), BODY, now=NOW)
    with pytest.raises(VerificationError):
        verify_official_agent([SECRET], value, STAMP.decode(), b"\xff\xfe", now=NOW)


@pytest.mark.parametrize("value", GARBAGE)
def test_garbage_is_answered_with_a_4xx(value: str) -> None:
    encoded = value.encode("utf-8", "surrogateescape")
    assert post([(b"x-port-timestamp", STAMP), (b"x-port-signature", encoded)])[0] == "4"


@given(st.text(), st.text(), st.binary(max_size=200))
def test_any_text_is_one_kind_of_error(signature: str, stamp: str, body: bytes) -> None:
    with pytest.raises(VerificationError):
        verify([SECRET], signature, stamp, body, now=NOW)


# A run that a second, different request takes over; a batch that is dropped at the first failure (samples).


def test_each_request_of_a_batch_is_judged_by_itself() -> None:
    report = fuzz.fuzz(500, 9)
    assert sum(count for name, count in report.outcomes.items() if name.startswith("4")) > 100
    assert report.outcomes["200"] > 10


# Agreement with the published libraries, where schemes are the same.


def _whsec() -> str:
    return base64.b64encode(SECRETS[0]).decode()


@given(st.binary(min_size=1, max_size=300).map(lambda data: json.dumps(data.decode("latin-1")).encode()))
def test_signatures_equal_those_of_standardwebhooks(body: bytes) -> None:
    library = pytest.importorskip("standardwebhooks", reason="installed by `make bench`")
    from datetime import UTC, datetime

    # Standard Webhooks signs `id.timestamp.body`; what stands for Port's timestamp is all before the last dot.
    theirs = library.Webhook(_whsec()).sign("msg_1", datetime.fromtimestamp(NOW, UTC), body.decode())
    ours = sign(SECRETS[0], f"msg_1.{int(NOW)}", body)
    assert ours == theirs
    plain = hmac.new(SECRETS[0], b"msg_1." + STAMP + b"." + body, hashlib.sha256).digest()
    assert ours == "v1," + base64.b64encode(plain).decode()


def test_signatures_equal_those_of_svix() -> None:
    library = pytest.importorskip("svix.webhooks", reason="installed by `make bench`")
    from datetime import UTC, datetime

    theirs = library.Webhook(_whsec()).sign("msg_1", datetime.fromtimestamp(NOW, UTC), BODY.decode())
    assert sign(SECRETS[0], f"msg_1.{int(NOW)}", BODY) == theirs


def test_the_published_vector_of_standard_webhooks() -> None:
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    stamp = "msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330"
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign(secret, stamp, b'{"test": 2432232314}') == expected


def test_the_optimised_build_has_no_other_checks() -> None:
    """Nothing that guards the way in is an `assert`."""
    for name in ("port/signature.py", "port/strict_json.py", "runtime/receiver.py", "runtime/http.py"):
        tree = ast.parse((PACKAGE / name).read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)], name
