"""AWS in small: a moto server, and a gate before it that can end a function between two of its writes."""

from __future__ import annotations

import http.client
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MOTO = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def moto() -> Iterator[str]:
    """URL of a moto server."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _MOTO],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


class Gate:
    """Passes calls on to moto, unless told otherwise.

    Attributes:
        url: what functions call.
        calls: operations so far, such as `DynamoDB_20120810.UpdateItem`.
        before, after: called with the access key and the operation of a call; True: the caller gets no answer.
            `before` keeps the call from moto.
    """

    def __init__(self, target: str) -> None:
        self.calls: list[str] = []
        self.before: Callable[[str, str], bool] = lambda caller, operation: False
        self.after: Callable[[str, str], bool] = lambda caller, operation: False
        self.away = False
        self._target = target.removeprefix("http://")
        self._lock = threading.Lock()
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gate.pass_on(self, body)

            def log_message(self, format: str, *args: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                return

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()

    def reset(self) -> None:
        """Passes everything on from here, and counts anew."""
        self.before = self.after = lambda caller, operation: False
        self.away = False
        self.calls.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def pass_on(self, request: BaseHTTPRequestHandler, body: bytes) -> None:
        operation = request.headers.get("X-Amz-Target") or request.path
        caller = (request.headers.get("Authorization") or "").partition("Credential=")[2].partition("/")[0]
        with self._lock:
            self.calls.append(operation)
        if self.away or self.before(caller, operation):
            request.close_connection = True
            return
        connection = http.client.HTTPConnection(self._target, timeout=20)
        try:
            headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
            # moto tells services apart by the scope of the signature.
            connection.request("POST", request.path, body, headers)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if self.after(caller, operation):
            request.close_connection = True
            return
        request.send_response(response.status)
        for name in ("Content-Type", "x-amz-function-error"):
            if value := response.headers.get(name):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)
