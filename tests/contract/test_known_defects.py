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
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import fuzz
from tests.component.provider.fake_port import CLIENT_ID, CLIENT_SECRET, FakePort, running
from tests.component.provider.test_objects import CASES, Lines
from tests.fuzz import NOW, SECRETS, STAMP, Case, Fuzzer, _signature
from tests.kubernetes.stack import manifests, plan, store

import port_webhook_handlers
from port_webhook_handlers.agent.config import AgentLimits
from port_webhook_handlers.agent.core import Agent, RetryLaterError
from port_webhook_handlers.agent.messages import Invocation, Message
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.agent.reports import Outcome
from port_webhook_handlers.agent.watermark import Watermark
from port_webhook_handlers.port import signature as module
from port_webhook_handlers.port.client import PortClient, PortUnreachableError, requested_delay
from port_webhook_handlers.port.signature import VerificationError, sign, verify, verify_official_agent
from port_webhook_handlers.runtime.logs import Log
from port_webhook_stack.port.configuration import Configuration
from port_webhook_stack.port.handler import Context

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


# What is not done yet, or failed, is acknowledged and lost with the process (an agent).


class Steps:
    """A sink and a reporter in one, which fail as told and keep the order of what happens."""

    def __init__(self, *attempts: Outcome | Exception, port_is_away: bool = False) -> None:
        self.order: list[str] = []
        self._attempts = list(attempts)
        self._port = asyncio.Event()
        if not port_is_away:
            self._port.set()

    async def deliver(self, message: Message) -> Outcome:
        self.order.append(f"deliver {message.name}")
        attempt = self._attempts.pop(0)
        if isinstance(attempt, Exception):
            raise attempt
        return attempt

    async def report(self, message: Message, outcome: Outcome) -> None:
        await self._port.wait()
        self.order.append(f"report {message.name} {outcome.status}")


def work(steps: Steps, seconds: float = 5, **limits: float) -> list[int | None]:
    """Lets an agent work on two messages of one partition; returns how far it could be committed, step by step."""
    watermark = Watermark()
    positions: list[int | None] = []

    async def main() -> None:
        bounds = AgentLimits(retry_seconds=0.01, max_retry_seconds=0.01, **limits)  # type: ignore[arg-type]
        agent = Agent(steps, steps, bounds, Log(), AgentMetrics())  # type: ignore[arg-type]
        for offset in (0, 1):
            watermark.begin(offset)

            def acknowledge(offset: int = offset) -> None:
                steps.order.append(f"acknowledge {offset}")
                watermark.settle(offset)
                positions.append(watermark.position)

            invocation = Invocation({"url": "https://hooks.example.com"})
            agent.submit(
                Message(
                    str(offset), f"r_{offset}", "work", "key", invocation, {}, {}, acknowledge=acknowledge
                )
            )
        until = time.monotonic() + seconds
        while agent.in_flight and time.monotonic() < until:
            await asyncio.sleep(0.005)
        await agent.drain(0)

    asyncio.run(main())
    return [*positions, watermark.position]


def test_a_message_is_acknowledged_after_its_outcome_and_not_before() -> None:
    steps = Steps(RetryLaterError("away"), Outcome("delivered"), Outcome("failed", "FAILURE", "refused"))
    assert work(steps) == [1, 2, 2]
    assert steps.order == [
        *("deliver 0", "deliver 0", "report 0 None", "acknowledge 0"),
        *("deliver 1", "report 1 FAILURE", "acknowledge 1"),
    ]


def test_a_failure_is_acknowledged_only_once_port_has_taken_it() -> None:
    steps = Steps(Outcome("failed", "FAILURE", "refused"), port_is_away=True)
    assert work(steps, 0.1) == [0]
    assert steps.order == ["deliver 0"]


def test_a_process_that_ends_leaves_what_it_did_not_finish() -> None:
    again: Sequence[Exception] = [RetryLaterError("away", lasting=True) for _ in range(1000)]
    steps = Steps(*again)
    assert work(steps, 0.1) == [0]
    assert not [step for step in steps.order if "acknowledge" in step]


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


# Workloads without probes, limits or a security context, and that a new secret does not restart (a chart).


def test_workloads_are_probed_restricted_and_restarted_by_a_new_secret(tmp_path: Path) -> None:
    stack = plan(tmp_path)
    before, after = (
        {
            manifest["metadata"]["name"]: manifest["spec"]["template"]
            for manifest in manifests(stack, store(client_secret=secret))
            if manifest["kind"] == "Deployment"
        }
        for secret in ("one-signing-secret-0123456789", "another-signing-secret-012345")
    )
    assert {"listener", "dispatcher", "agent"} <= set(before)
    for name, template in before.items():
        assert template["metadata"]["annotations"] != after[name]["metadata"]["annotations"], name
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["livenessProbe"] != container["readinessProbe"], name
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_secrets_have_a_type_that_kubernetes_knows(tmp_path: Path) -> None:
    kinds = {manifest["type"] for manifest in manifests(plan(tmp_path)) if manifest["kind"] == "Secret"}
    assert kinds == {"Opaque"}


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


# `x-ratelimit-reset` is epoch seconds in some replies and seconds from now in others (a provider takes one for the other).


def test_the_reset_of_the_rate_limit_is_a_delay_either_way_and_has_a_bound() -> None:
    def delay(reset: object) -> Any:
        return requested_delay({"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(reset)})

    assert delay(7) == 7
    assert 5 < delay(time.time() + 7) <= 7
    assert delay(time.time() - 60) == 0
    assert delay(10**6) == delay(time.time() + 10**6) == delay(10**13) == 120
    assert delay("nonsense") is None
    assert requested_delay({"x-ratelimit-remaining": "12", "x-ratelimit-reset": "7"}) is None


# Reading a resource that has vanished raises an error (a provider's base class).


@pytest.mark.parametrize("kind", CASES)
def test_a_resource_that_vanished_is_gone_and_no_error(kind: str, tmp_path: Path) -> None:
    handler, body, key = CASES[kind]
    with running() as port, PortClient(port.url, CLIENT_ID, CLIENT_SECRET) as client:

        def context() -> Context:
            return Context(
                Configuration("eu", CLIENT_ID, CLIENT_SECRET, tmp_path, port.url, False), client, Lines()
            )

        created = handler.create(context(), body, False)
        assert handler.read(context(), created.id, created.outputs, body) is not None
        forget(port, key)
        assert handler.read(context(), created.id, created.outputs, body) is None


def forget(port: FakePort, key: str) -> None:
    """Somebody removes an object in Port."""
    del port.objects[key]


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
