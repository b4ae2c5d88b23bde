"""The few routes of Port's API that the provider uses, as a real HTTP server on the loopback.

Independent of the local Port on purpose: a fault can be scripted for each call, and calls are counted.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

CLIENT_ID = "client"
CLIENT_SECRET = "the-client-secret"


@dataclass
class Call:
    method: str
    path: str
    body: Any = None
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass
class Reply:
    status: int
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Close the connection instead of replying."""


def error(status: int, code: str, message: str = "", **details: Any) -> Reply:
    body: dict[str, Any] = {"ok": False, "error": code, "message": message or code}
    return Reply(status, {**body, "details": details} if details else body)


class FakePort:
    """`objects` is what Port holds, by path; `script` answers before the routes do, once for each entry."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.objects: dict[str, dict[str, Any]] = {}
        self.script: list[tuple[str, Reply | Callable[[Call], Reply | None]]] = []
        self.organization = "org_1"
        self.lifetime = 3600.0
        self.tokens = 0
        self.valid_token = ""
        self.in_flight = 0
        self.most_in_flight = 0
        self._lock = threading.Lock()
        self._clock = 0
        port = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                port._answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer  # noqa: N815 - names of the standard library

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def on(self, call: str, *replies: Reply | Callable[[Call], Reply | None]) -> None:
        """Answer the next calls `METHOD /path` with `replies`; None from a function lets the route answer."""
        self.script += [(call, reply) for reply in replies]

    def calls_of(self, *methods: str) -> list[str]:
        """The calls beside logins, `METHOD /path`."""
        return [
            str(call)
            for call in self.calls
            if "auth" not in call.path and (not methods or call.method in methods)
        ]

    def body_of(self, call: str) -> Any:
        """The body of the last such call."""
        return [seen.body for seen in self.calls if str(seen) == call][-1]

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        raw = request.rfile.read(length)
        url = urlsplit(request.path)
        call = Call(
            request.command,
            url.path,
            json.loads(raw) if raw else None,
            {key: values[0] for key, values in parse_qs(url.query).items()},
            dict(request.headers.items()),
        )
        with self._lock:
            self.calls.append(call)
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            scripted = next((entry for entry in self.script if entry[0] == str(call)), None)
            if scripted:
                self.script.remove(scripted)
        reply: Reply | None = None
        if scripted:
            reply = scripted[1] if isinstance(scripted[1], Reply) else scripted[1](call)
        if reply is None:
            with self._lock:
                reply = self._route(call)
        with self._lock:
            self.in_flight -= 1
        if reply.drop:
            request.close_connection = True
            request.connection.close()
            return
        payload = json.dumps({"ok": True} if reply.body is None else reply.body).encode()
        request.send_response(reply.status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(payload)))
        request.send_header("X-Trace-Id", "trace-1")
        for name, value in reply.headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(payload)

    def _route(self, call: Call) -> Reply:
        if call.path == "/v1/auth/access_token":
            if call.body != {"clientId": CLIENT_ID, "clientSecret": CLIENT_SECRET}:
                return error(401, "unauthorized", "wrong credentials")
            self.tokens += 1
            self.valid_token = f"token-{self.tokens}"
            return Reply(200, {"ok": True, "accessToken": self.valid_token, "expiresIn": self.lifetime})
        if call.headers.get("Authorization") != f"Bearer {self.valid_token}":
            return error(401, "invalid_token", "token expired")
        if call.path == "/v1/organization":
            return Reply(200, {"ok": True, "organization": {"id": self.organization, "name": "Test"}})
        if call.path.startswith("/v1/migrations/"):
            return Reply(200, {"ok": True, "migration": {"status": "COMPLETED"}})
        return self._object(call)

    def _object(self, call: Call) -> Reply:
        if call.path.endswith("/permissions"):
            return self._permissions(call)
        parts = [unquote(part) for part in call.path.split("/")[2:]]
        member, name_key, depth = _KINDS[
            parts[0] if len(parts) < 3 or parts[0] == "organization" else parts[2]
        ]
        collection, name = parts[:depth], parts[depth] if len(parts) > depth else None
        key = "/".join(parts)
        if name == "all-entities" or (parts[-1] == "all-entities"):
            blueprint = f"blueprints/{parts[1]}"
            for known in [known for known in self.objects if known.startswith(blueprint)]:
                del self.objects[known]
            return Reply(200, {"ok": True, "migrationId": "m_1"})
        if name is None and call.method == "GET":
            found = [value for known, value in self.objects.items() if known.startswith(key + "/")]
            return Reply(200, {"ok": True, member + "s" if member != "entity" else "entities": found})
        if name is None:
            identifier = call.body.get(name_key)
            if not identifier:
                return error(422, "invalid_request", f"body must have required property '{name_key}'")
            key = f"{key}/{identifier}"
            if key in self.objects:
                return error(409, "identifier_taken", f"{identifier} exists")
            self.objects[key] = self._stamped(call.body)
            return Reply(201, {"ok": True, member: self._shown(key)})
        if key not in self.objects:
            return error(404, "not_found", f"{name} does not exist", resource=member)
        if call.method == "PUT":
            renamed = "/".join([*collection, call.body[name_key]])
            if renamed != key and renamed in self.objects:
                return error(409, "identifier_taken")
            del self.objects[key]
            key = renamed
            self.objects[key] = self._stamped(call.body)
        elif call.method == "PATCH":
            self.objects[key] = self._stamped(_merged(self.objects[key], call.body))
        elif call.method == "DELETE":
            if member == "blueprint" and any(known.startswith(f"{key}/entities/") for known in self.objects):
                return error(422, "has_dependents", "the blueprint has entities")
            del self.objects[key]
            return Reply(200)
        return Reply(200, {"ok": True, member: self._shown(key)})

    def _permissions(self, call: Call) -> Reply:
        key = call.path.removeprefix("/v1/")
        if key.removesuffix("/permissions") not in self.objects:
            return error(404, "not_found")
        if call.method == "PATCH":
            self.objects[key] = _merged(self.objects.get(key, {}), call.body)
        return Reply(200, {"ok": True, "permissions": self.objects.get(key, {})})

    def _stamped(self, body: dict[str, Any]) -> dict[str, Any]:
        self._clock += 1
        stamp = f"2026-01-01T00:00:{self._clock:02d}.000Z"
        return {
            **body,
            "updatedAt": stamp,
            "createdAt": stamp,
            "createdBy": "u",
            "updatedBy": "u",
            "id": "x_1",
        }

    def _shown(self, key: str) -> dict[str, Any]:
        return {name: value for name, value in self.objects[key].items() if name != "secretValue"}


_KINDS = {
    "actions": ("action", "identifier", 1),
    "blueprints": ("blueprint", "identifier", 1),
    "entities": ("entity", "identifier", 3),
    "all-entities": ("blueprint", "identifier", 1),
    "organization": ("secret", "secretName", 2),
}


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result


@contextmanager
def running() -> Iterator[FakePort]:
    port = FakePort()
    try:
        yield port
    finally:
        port.close()
