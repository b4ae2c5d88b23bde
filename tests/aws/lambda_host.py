"""Lambda in small: the Runtime API for one function, whose code runs under the real runtime client."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PREFIX = "/2018-06-01/runtime"
START_SECONDS = 30


@dataclass
class Invocation:
    """One event and what became of it."""

    id: str
    event: Any
    deadline_ms: int
    ended: threading.Event
    payload: Any = None
    error: str = ""


class Function:
    """A function: one process, one invocation at a time, started again when it has died.

    Attributes:
        log: what the process wrote so far.
    """

    def __init__(
        self,
        name: str,
        root: Path,
        handler: str,
        environment: Mapping[str, str],
        logs: Path,
        seconds: float = 60,
    ) -> None:
        self.name = name
        self.seconds = seconds
        self.environment = dict(environment)
        self._root = root
        self._handler = handler
        self._log = logs / f"{name}.log"
        self._waiting: queue.Queue[Invocation] = queue.Queue()
        self._open: dict[str, Invocation] = {}
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._server = _serve(self)

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def invoke(self, event: Any) -> Invocation:
        """Runs one event to its end; a process that dies is an error `crashed`."""
        with self._lock:
            deadline = int((time.time() + self.seconds) * 1000)
            # Lambda hands over JSON, so nothing else survives.
            made = Invocation(str(uuid.uuid4()), json.loads(json.dumps(event)), deadline, threading.Event())
            self._open[made.id] = made
            self._waiting.put(made)
            process = self._start()
            until = time.monotonic() + self.seconds + START_SECONDS
            while not made.ended.wait(0.01):
                if process.poll() is not None:
                    made.error = made.error or "crashed"
                    self._waiting = queue.Queue()
                    break
                assert time.monotonic() < until, f"{self.name} does not answer:\n{self.log[-3000:]}"
            del self._open[made.id]
            return made

    def kill(self) -> None:
        """Ends the process as a lost environment would."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGKILL)
            process.wait()

    def close(self) -> None:
        self.kill()
        self._server.shutdown()
        self._server.server_close()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        host, port = self._server.server_address[:2]
        environment = {
            "PATH": os.environ["PATH"],
            "AWS_LAMBDA_RUNTIME_API": f"{host!s}:{port}",
            "AWS_LAMBDA_FUNCTION_NAME": self.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
            "AWS_LAMBDA_LOG_GROUP_NAME": self.name,
            "AWS_LAMBDA_LOG_STREAM_NAME": "stream",
            "LAMBDA_TASK_ROOT": str(self._root),
            **self.environment,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "awslambdaric", self._handler],
                cwd=self._root,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self._process

    # The Runtime API

    def next(self) -> Invocation | None:
        process = self._process
        while process is self._process:
            try:
                made = self._waiting.get(timeout=0.1)
            except queue.Empty:
                continue
            if process is self._process:
                return made
            # The process that asked has died meanwhile.
            self._waiting.put(made)
        return None

    def ended(self, path: str, body: bytes) -> None:
        _, _, rest = path.partition("/invocation/")
        name, _, kind = rest.partition("/")
        made = self._open.get(name)
        if kind == "response" and made is not None:
            made.payload = json.loads(body)
        else:
            # An error of initialisation concerns whatever waits.
            for item in [made] if made is not None else list(self._open.values()):
                item.error = body.decode()
        for item in [made] if made is not None else list(self._open.values()):
            item.ended.set()


def _serve(function: Function) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            made = function.next()
            if made is None:
                self.close_connection = True
                return
            data = json.dumps(made.event).encode()
            self.send_response(200)
            self.send_header("Lambda-Runtime-Aws-Request-Id", made.id)
            self.send_header("Lambda-Runtime-Deadline-Ms", str(made.deadline_ms))
            self.send_header(
                "Lambda-Runtime-Invoked-Function-Arn", f"arn:aws:lambda:eu-west-1:1:function:{function.name}"
            )
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            function.ended(self.path, self._body())
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            # A process that was killed.
            return

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server
