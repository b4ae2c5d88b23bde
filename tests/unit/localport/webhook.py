"""A webhook on loopback that records what it receives."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Webhook:
    """Answers every request with the same status and body, after `gate` is open."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.status = 200
        self.reply = b'{"done":true}'
        self.reply_headers: dict[str, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                length = int(self.headers.get("Content-Length", "0"))
                headers = {name.lower(): value for name, value in self.headers.items()}
                webhook.received.append(Received(self.command, self.path, headers, self.rfile.read(length)))
                webhook.gate.wait(20)
                self.send_response(webhook.status)
                for name, value in webhook.reply_headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(webhook.reply)))
                self.end_headers()
                self.wfile.write(webhook.reply)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_: Any) -> None:
                return

            def handle(self) -> None:
                try:
                    super().handle()
                except (BrokenPipeError, ConnectionResetError):
                    return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
