"""The probes against listeners that are right, and wrong in one way each."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from port_webhook_stack import verification_handler
from port_webhook_stack.port.handler import UNKNOWN, Context, Kind, ProviderError
from port_webhook_stack.verification_handler import VerificationHandler

SECRET = "port-test-client-secret-0123456789abcdef"
DIGEST = "sha256:" + "ab" * 32


@contextmanager
def listener(fault: str = "", *, until: int = sys.maxsize) -> Iterator[str]:
    """A listener by the book of Port's signature rules, but for one fault, which the first requests meet."""
    executions: dict[str, int] = {}
    requests = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            status, answer = self.judge(body)
            if fault == "elsewhere" and next(requests) < until:
                status, answer = 404, {}
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def judge(self, body: bytes) -> tuple[int, dict[str, Any]]:
            timestamp = self.headers.get("x-port-timestamp", "")
            signature = self.headers.get("x-port-signature", "")
            if len(body) > 256 * 1024 and fault != "oversized":
                return 413, {"error": "too_large"}
            if not signature and fault == "unsigned":
                return 200, {"digest": DIGEST, "executions": 1}
            mac = hmac.digest(SECRET.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
            if signature != "v1," + base64.b64encode(mac).decode() and not (signature and fault == "altered"):
                return 401, {"error": "bad_signature"}
            age = time.time() - int(timestamp)
            if (age > 300 and fault != "stale") or (age < -300 and fault != "future"):
                return 401, {"error": "stale_timestamp"}
            run_id = json.loads(body)["port_context"]["runId"]
            executions[run_id] = executions.get(run_id, 0) + 1
            digest = "sha256:" + "cd" * 32 if fault == "digest" else DIGEST
            return 200, {"digest": digest, "executions": executions[run_id] if fault == "replay" else 1}

        def log_message(self, *args: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def context() -> Context:
    return Context(config=None, port=None, log=None)  # type: ignore[arg-type]


def inputs(address: str, **changed: Any) -> dict[str, Any]:
    return {
        "url": address,
        "digest": DIGEST,
        "secretsVersion": "1",
        "signingSecret": SECRET,
        "scheme": "raw",
        **changed,
    }


def test_a_listener_that_verifies_is_proved() -> None:
    with listener() as url:
        made = VerificationHandler().create(context(), inputs(url), preview=False)
    assert set(made.outputs["checks"]) == {
        *("signed", "digest", "replay", "unsigned", "altered", "stale", "future", "oversized")
    }


@pytest.mark.parametrize("fault", ["unsigned", "altered", "stale", "future", "oversized", "replay"])
def test_one_fault_fails_and_is_named(fault: str) -> None:
    with listener(fault) as url, pytest.raises(ProviderError) as caught:
        VerificationHandler().create(context(), inputs(url), preview=False)
    assert f"the {fault} probe" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_another_bundle_is_named() -> None:
    with listener("digest") as url, pytest.raises(ProviderError, match=r"cdcd.*deployed was.*abab"):
        VerificationHandler().create(context(), inputs(url), preview=False)


def test_a_wrong_secret_fails_at_the_signed_probe() -> None:
    with listener() as url, pytest.raises(ProviderError, match=r"the signed probe.*401 bad_signature"):
        VerificationHandler().create(context(), inputs(url, signingSecret="other"), preview=False)


def test_silence_fails_with_a_remedy() -> None:
    with listener() as url:
        pass
    with pytest.raises(ProviderError, match=r"does not answer.*verify to off"):
        VerificationHandler().create(context(), inputs(url), preview=False)


def test_a_way_that_settles_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification_handler, "_PAUSE_SECONDS", 0.01)
    noted: list[str] = []
    patient = Context(config=None, port=None, log=SimpleNamespace(info=noted.append))  # type: ignore[arg-type]
    with listener("elsewhere", until=2) as url:
        made = VerificationHandler().create(patient, inputs(url, settleSeconds=30), preview=False)
    assert "signed" in made.outputs["checks"]
    assert len(noted) == 2
    assert all("404, expected 200" in line and "trying again" in line for line in noted)
    with listener("elsewhere") as url, pytest.raises(ProviderError, match="expected 200"):
        VerificationHandler().create(patient, inputs(url, settleSeconds=0.05), preview=False)


def test_preview_sends_nothing() -> None:
    made = VerificationHandler().create(context(), inputs("http://127.0.0.1:9"), preview=True)
    assert made.outputs["checks"] is UNKNOWN


@pytest.mark.parametrize("name", ["url", "digest", "secretsVersion", "signingSecret", "scheme"])
def test_it_is_proved_again_when_something_changes(name: str) -> None:
    olds = {**inputs("http://a"), "checks": []}
    diff = VerificationHandler().diff(context(), "id", olds, inputs("http://a", **{name: "new"}))
    assert diff.changes == {name: Kind.UPDATE}
    assert VerificationHandler().diff(context(), "id", olds, inputs("http://a")).changes == {}
