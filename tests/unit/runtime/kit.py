"""What the listener's tests need: a bundle, signed requests and a small Port that can be told to fail."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime.config import Limits, ListenerConfig
from port_webhook_handlers.runtime.manifest import FILE_NAME, Manifest, Route, hash_file
from port_webhook_handlers.runtime.secret_file import ApiCredentials, SecretFile, SigningSecret, StoredSecrets

SECRET = "signing-secret-0123456789-0123456789"
API_SECRET = "api-secret-0123456789"
TOKEN = "handler-token-value"

HANDLERS = """
import os, subprocess, sys, time
from pathlib import Path
from typing import Annotated
from port_webhook_handlers.sdk import Failure, Inputs, RetryableError, Run, Success, action

class Form(Inputs):
    text: str = ""

def mark(run: Run, line: str) -> None:
    with open(Path(run.settings["state_dir"]) / "marks", "a") as stream:
        stream.write(f"{run.id} {line}\\n")

@action("greet", title="Greet", operation="CREATE", secrets=["TOKEN"])
def greet(inputs: Form, run: Run) -> Success:
    mark(run, f"start {run.attempt}")
    run.log(f"hello {inputs.text} {run.secret('TOKEN')}")
    print("printed", run.secret("TOKEN"), flush=True)
    run.progress("half way")
    run.upsert_entity("thing", "t1", properties={"text": inputs.text})
    return Success(summary=f"greeted {inputs.text}", link="https://example.com/x")

@action("ask", title="Ask", operation="CREATE", mode="sync")
def ask(inputs: Form, run: Run) -> Success | Failure:
    mark(run, "start")
    if inputs.text == "slow":
        time.sleep(0.5)
    if inputs.text == "hang":
        time.sleep(60)
    if inputs.text == "fail":
        return Failure("no way")
    if inputs.text == "raise":
        raise RuntimeError("broken " + "x" * 10)
    if inputs.text == "die":
        os._exit(3)
    return Success(response={"text": inputs.text, "pid": os.getpid(), "environment": sorted(os.environ)})

@action("work", title="Work", operation="CREATE")
def work(inputs: Form, run: Run) -> Success:
    mark(run, f"start {run.attempt} {os.getpid()}")
    if inputs.text.startswith("until "):
        while not Path(inputs.text[6:]).exists():
            time.sleep(0.02)
    if inputs.text == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        mark(run, f"grandchild {child.pid}")
        time.sleep(60)
    if inputs.text == "retry" and run.attempt < 3:
        raise RetryableError("not yet")
    if inputs.text == "die" and run.attempt < 2:
        os._exit(9)
    mark(run, f"end {run.attempt}")
    return Success(summary="worked")

@action("rework", title="Rework", operation="CREATE", on_interrupt="retry")
def rework(inputs: Form, run: Run) -> Success:
    return work.function(inputs, run) if hasattr(work, "function") else work(inputs, run)
"""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"text": {"type": "string", "maxLength": 200}, "count": {"type": "integer", "minimum": 1}},
    "required": ["text"],
    "additionalProperties": False,
}


def route(name: str, **changes: Any) -> Route:
    values: dict[str, Any] = {
        "name": name,
        "kind": "action",
        "action": name,
        "handler": f"app:{name}",
        "inputs_schema": SCHEMA,
        "timeout_seconds": 20,
        "source": "app.py:1",
        **changes,
    }
    return Route(**values)


ROUTES = (
    route("greet", secrets=("TOKEN",)),
    route("ask", mode="sync"),
    route("work", max_attempts=3),
    route("rework", on_interrupt="retry"),
)


def write_bundle(folder: Path, routes: tuple[Route, ...] = ROUTES, source: str = HANDLERS) -> Manifest:
    folder.mkdir(parents=True)
    (folder / "app.py").write_text(source)
    manifest = Manifest({"app.py": hash_file(folder / "app.py")}, {item.name: item for item in routes})
    (folder / FILE_NAME).write_bytes(manifest.dumps())
    return manifest


def write_secrets(folder: Path, **changes: Any) -> SecretFile:
    store = SecretFile(folder / "secrets" / "store", folder / "keys" / "key")
    content: dict[str, Any] = {
        "signing": (SigningSecret(SECRET),),
        "api": ApiCredentials("client-id", API_SECRET),
        "secrets": {"TOKEN": TOKEN},
        **changes,
    }
    store.write(StoredSecrets(**content))
    return store


def listener_config(folder: Path, port_url: str, **changes: Any) -> ListenerConfig:
    values: dict[str, Any] = {
        "bundle": folder / "bundle",
        "secrets_file": folder / "secrets" / "store",
        "secrets_key_file": folder / "keys" / "key",
        "port_base_url": port_url,
        "state_dir": folder,
        "limits": Limits(drain_seconds=2, max_children=4),
        **changes,
    }
    return ListenerConfig(**values)


def envelope(action: str, run_id: str, **inputs: Any) -> bytes:
    body = {
        "port_context": {"action": action, "runId": run_id},
        "inputs": inputs,
        "entity": {},
        "trigger": {},
    }
    return json.dumps(body, separators=(",", ":")).encode()


def signature(body: bytes, timestamp: str, secret: str = SECRET) -> str:
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def signed(body: bytes, secret: str = SECRET, at: float | None = None) -> dict[str, str]:
    timestamp = str(int(time.time() if at is None else at))
    return {
        "content-type": "application/json",
        "x-port-timestamp": timestamp,
        "x-port-signature": signature(body, timestamp, secret),
    }


def poll(condition: Callable[[], Any], seconds: float = 15) -> Any:
    """The first true value of the condition."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > until:
            raise AssertionError("what was waited for did not happen")
        time.sleep(0.02)
    return value


class FakePort:
    """Records what it is told about runs, with the rules of Port that reports run into."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, dict[str, Any]]] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[str]] = {}
        self.entities: list[dict[str, Any]] = []
        self.queries: list[str] = []
        self.fault: Callable[[str, str], tuple[int, Mapping[str, str], dict[str, Any]] | None] = lambda m, p: (
            None
        )
        self.lock = threading.Lock()
        self.url = ""

    def ended(self, run_id: str) -> dict[str, Any] | None:
        """The run, once it has a terminal status."""
        with self.lock:
            run = self.runs.get(run_id, {})
            return dict(run) if run.get("status") in ("SUCCESS", "FAILURE") else None

    def statuses(self, run_id: str) -> int:
        """How often a status was sent for the run."""
        with self.lock:
            return sum(1 for m, p, b in self.calls if m == "PATCH" and f"/{run_id}" in p and "status" in b)

    def answer(
        self, method: str, target: str, body: dict[str, Any]
    ) -> tuple[int, Mapping[str, str], dict[str, Any]]:
        path, _, query = target.partition("?")
        with self.lock:
            if path == "/v1/auth/access_token":
                return 200, {}, {"ok": True, "accessToken": "token", "expiresIn": 3600, "tokenType": "Bearer"}
            self.calls.append((method, path, body))
            self.queries.append(query)
            if (fault := self.fault(method, path)) is not None:
                return fault
            parts = path.split("/")
            if path.startswith("/v1/actions/runs/"):
                run_id = parts[4]
                run = self.runs.setdefault(run_id, {"id": run_id, "status": "IN_PROGRESS"})
                over = run["status"] != "IN_PROGRESS"
                if method == "GET":
                    return 200, {}, {"ok": True, "run": run}
                if over:
                    return 422, {}, {"ok": False, "error": "run_exhausted", "message": "the run has ended"}
                if parts[-1] == "logs":
                    self.logs.setdefault(run_id, []).extend(body["message"].split("\n"))
                    return 201, {}, {"ok": True, "runLog": {}}
                run.update(body)
                return 200, {}, {"ok": True, "run": run}
            if path.startswith("/v1/blueprints/"):
                self.entities.append({"method": method, "path": path, "query": query, "body": body})
                return 201, {}, {"ok": True, "entity": body}
            return 404, {}, {"ok": False, "error": "not_found", "message": path}


@contextmanager
def fake_port(port: int = 0) -> Iterator[FakePort]:
    fake = FakePort()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536

        def handle_any(self) -> None:
            length = int(self.headers.get("content-length", "0"))
            body = json.loads(self.rfile.read(length) or b"{}")
            status, headers, answer = fake.answer(self.command, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            return

    for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.handle_any)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            # A caller that was killed.
            return

    server = Server(("127.0.0.1", port), Handler)
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
