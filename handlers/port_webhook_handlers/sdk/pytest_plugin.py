"""Fixtures for authors of handlers; `pytest_plugins = ["port_webhook_handlers.sdk.pytest_plugin"]` in conftest.py.

`port_webhook` starts a real listener with your handlers and a Port that records what it is told:

def test_deploy(port_webhook):
    client = port_webhook("deploy.py", secrets={"REGISTRY_TOKEN": "t0ken"})
    run = client.run("deploy", inputs={"version": "1.4.2"}, entity={"identifier": "cart", "blueprint": "service"})
    assert run.status == "SUCCESS"

For tests of the function alone, without processes, `port_webhook_handlers.sdk.testing.invoke` is quicker.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from port_webhook_handlers.bundle import build
from port_webhook_handlers.port.payload import ENVELOPE, Payload
from port_webhook_handlers.port.signature import sign
from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.config import Limits, ListenerConfig
from port_webhook_handlers.runtime.secret_file import ApiCredentials, SecretFile, SigningSecret, StoredSecrets

_SIGNING_SECRET = "signing-secret-of-a-test-0123456789"  # noqa: S105


@dataclass
class RecordedRun:
    """What Port was told about a run.

    Attributes:
        action: what was run; "" if the request was none of `Client.run` and `Client.invoke`.
        status: `SUCCESS`, `FAILURE`, or `IN_PROGRESS` while it is open.
        summary, link: of the result.
        logs: lines of the run's log.
        labels: labels beside the status, in order.
        entities: bodies of the entities that were written.
    """

    id: str
    action: str = ""
    status: str = "IN_PROGRESS"
    summary: str | None = None
    link: Any = None
    logs: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    entities: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Reply:
    """What the listener answered: HTTP status and JSON body."""

    status: int
    body: Any


class _Port:
    """Takes reports and keeps them."""

    def __init__(self) -> None:
        self.runs: dict[str, RecordedRun] = {}
        self.changed = threading.Condition()

    def take(self, method: str, path: str, query: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/auth/access_token":
            return {"ok": True, "accessToken": "token", "expiresIn": 3600, "tokenType": "Bearer"}
        shown: dict[str, Any] = {}
        with self.changed:
            if path.startswith("/v1/actions/runs/"):
                run = self.run(path.split("/")[4])
                if path.endswith("/logs"):
                    run.logs += str(body.get("message", "")).split("\n")
                elif method == "GET":
                    shown = {"id": run.id, "status": run.status, "action": {"identifier": run.action}}
                elif method == "PATCH":
                    if "statusLabel" in body:
                        run.labels.append(body["statusLabel"])
                    for name in ("summary", "link", "status"):
                        setattr(run, name, body.get(name, getattr(run, name)))
            elif method == "POST":
                run_id = dict(item.partition("=")[::2] for item in query.split("&")).get("run_id", "")
                self.run(run_id).entities.append(body)
            self.changed.notify_all()
        return {"ok": True, "run": shown, "entity": body, "runLog": {}}

    def run(self, run_id: str) -> RecordedRun:
        return self.runs.setdefault(run_id, RecordedRun(run_id))


class Client:
    """Speaks to the listener as Port does, to each route in the form that its handler declares."""

    def __init__(self, url: str, port: _Port, routes: Mapping[str, Mapping[str, Any]]) -> None:
        self.url = url
        self._port = port
        self._routes = routes
        self._numbers = itertools.count(1)

    def run(
        self,
        action: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        entity: Mapping[str, Any] | None = None,
        trigger: Mapping[str, Any] | None = None,
        seconds: float = 30,
    ) -> RecordedRun:
        """Runs an asynchronous action and waits for its end.

        Raises:
            TimeoutError: it has not ended in time.
        """
        run_id = f"r_test{next(self._numbers)}"
        reply = self.invoke(action, run_id=run_id, inputs=inputs, entity=entity, trigger=trigger)
        until = time.monotonic() + seconds
        with self._port.changed:
            run = self._port.run(run_id)
            while run.status == "IN_PROGRESS":
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError(
                        f"run of {action} has not ended in {seconds:g} s; it was answered {reply}"
                    )
                self._port.changed.wait(left)
            return run

    def invoke(
        self,
        action: str,
        *,
        run_id: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        entity: Mapping[str, Any] | None = None,
        trigger: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Sends the request of an action and returns the answer; that of a synchronous one is its result."""
        run_id = run_id or f"r_test{next(self._numbers)}"
        with self._port.changed:
            self._port.run(run_id).action = action
        payload = Payload(**self._routes[action]["payload"]) if action in self._routes else ENVELOPE
        content = payload.body_of(
            {
                "run_id": run_id,
                "action": action,
                "inputs": dict(inputs or {}),
                "entity": dict(entity or {}),
                "trigger": dict(trigger or {}),
            }
        )
        body = b"" if payload.empty_body and not content else json.dumps(content).encode()
        return self.send(action, body, further={} if payload.header is None else {payload.header: run_id})

    def send(
        self,
        action: str,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        *,
        further: Mapping[str, str] | None = None,
    ) -> Reply:
        """Sends recorded bytes to a route.

        Args:
            action: name of the route.
            body: the bytes; they are signed as they are.
            headers: replace those of the signature, for example to test that a request is refused.
            further: headers beside those of the signature.
        """
        stamp = str(int(time.time()))
        signed = {"x-port-timestamp": stamp, "x-port-signature": sign(_SIGNING_SECRET, stamp, body)}
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/webhooks/{action}",
            body,
            {
                "content-type": "application/json",
                **(signed if headers is None else headers),
                **(further or {}),
            },
            method=self._routes.get(action, {}).get("method", "POST"),
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                return Reply(answer.status, json.loads(answer.read()))
        except urllib.error.HTTPError as refusal:
            with refusal:
                return Reply(refusal.code, json.loads(refusal.read()))


Start = Callable[..., Client]


@pytest.fixture
def port_webhook(tmp_path: Path) -> Iterator[Start]:
    """Starts listeners: `port_webhook(*handlers, secrets={…}, settings={…}) -> Client`.

    Handlers are modules or paths, as in the stack's settings. A listener ends with the test.
    """
    homes: list[Path] = []
    with _recording_port() as (port, url):

        def start(
            *handlers: str | Path,
            secrets: Mapping[str, str] | None = None,
            settings: Mapping[str, Mapping[str, Any]] | None = None,
        ) -> Client:
            folder = tmp_path / f"listener-{len(homes)}"
            store = SecretFile(folder / "secrets" / "store", folder / "key" / "key")
            store.write(
                StoredSecrets(
                    signing=(SigningSecret(_SIGNING_SECRET),),
                    api=ApiCredentials("test", "api-secret-of-a-test"),
                    decryption=(_SIGNING_SECRET,),
                    secrets=dict(secrets or {}),
                )
            )
            bundle = build(handlers, folder / "bundles")
            config = ListenerConfig(
                bundle=bundle.path,
                secrets_file=store.path,
                secrets_key_file=store.key_path,
                port_base_url=url,
                state_dir=folder,
                limits=Limits(drain_seconds=1),
                settings=dict(settings or {}),
            )
            homes.append(folder / "listener")
            return Client(control.start(homes[-1], config).url, port, bundle.routes)

        try:
            yield start
        finally:
            for home in homes:
                control.stop(home)


class _Server(ThreadingHTTPServer):
    daemon_threads = True


class _recording_port:  # noqa: N801
    """Serves a `_Port` on loopback."""

    def __enter__(self) -> tuple[_Port, str]:
        port = _Port()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("content-length", "0"))
                path, _, query = self.path.partition("?")
                body = json.loads(self.rfile.read(length) or b"{}")
                data = json.dumps(port.take(self.command, path, query, body)).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                return

        for method in ("GET", "POST", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.answer)
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return port, f"http://127.0.0.1:{self._server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
