"""The process that keeps the listener alive: it owns the listening socket and exchanges servers behind it.

Its control API is HTTP on a private loopback port, with the token of `control.token` as bearer:
`GET /status`, `POST /update` with a configuration, `POST /stop` with `{"end_deployments": bool}`.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.process import ProcessIdentity, tail
from port_webhook_handlers.runtime import config as configuration
from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.config import ListenerConfig
from port_webhook_handlers.runtime.deployments import end_deployments
from port_webhook_handlers.runtime.files import write_private
from port_webhook_handlers.runtime.launch import (
    PROXY_VARIABLES,
    SERVER_LIBRARIES,
    python_command,
    scrubbed_environment,
)
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.places import Places

_BACKOFF_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0)
_STEADY_SECONDS: Final = 10.0


class SupervisorError(Exception):
    """What was asked for cannot be done; the message says why and what to do."""


class _Server:
    """A server process and the connection to it."""

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.process = process
        self.digest = ""
        self.metrics_port = 0
        self.since = time.monotonic()
        self._connection = connection
        self._stream = connection.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            # It has ended, which is noticed elsewhere.
            pass

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message; None at the end or after that time."""
        self._connection.settimeout(max(0.01, seconds))
        try:
            line = self._stream.readline()
        except OSError:
            return None
        value: dict[str, Any] | None = json.loads(line) if line else None
        return value

    def end(self, seconds: float) -> None:
        """Waits for the process to end by itself, then kills it."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._connection.close()


class Supervisor:
    """Keeps one server running.

    Args:
        home: folder of the listener.
        config: configuration to start with.
        log: its log.
    """

    def __init__(self, home: Path, config: ListenerConfig, log: Log) -> None:
        self._places = Places(home)
        self._log = log
        self._nonce = secrets.token_hex(16)
        self._config = config
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._draining: list[_Server] = []
        self._failures = 0
        # One change at a time; status is answered meanwhile.
        self._change = threading.RLock()
        self.ended = threading.Event()

    # Life

    def start(self) -> None:
        """Binds the address and starts the first server.

        Raises:
            SupervisorError: the address is taken or the server does not get healthy.
        """
        with self._change:
            self._socket = self._bind(self._config)
            server = self._spawn(self._config, self._socket)
            server.send({"serve": True})
            self._expect_serving(server)
            self._server = server
            self._save()

    def watch(self) -> None:
        """Restarts the server whenever it ends, until stopped."""
        while not self.ended.wait(0.1):
            with self._change:
                if self.ended.is_set():
                    return
                for former in [item for item in self._draining if item.process.poll() is not None]:
                    former.close()
                    self._draining.remove(former)
                server = self._server
                if server is not None and server.process.poll() is None:
                    continue
                if server is not None:
                    self._server = None
                    server.close()
                    steady = time.monotonic() - server.since > _STEADY_SECONDS
                    self._failures = 0 if steady else self._failures
                    self._log("server ended", code=server.process.returncode)
                delay = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)]
                self._failures += 1
            if self.ended.wait(delay):
                return
            with self._change:
                if self._server is None and not self.ended.is_set():
                    self._restart()

    def _restart(self) -> None:
        assert self._socket is not None  # noqa: S101
        try:
            server = self._spawn(self._config, self._socket)
            server.send({"serve": True})
            self._expect_serving(server)
        except SupervisorError as error:
            self._log("server not restarted", error=str(error))
        else:
            self._server = server
            self._log("server restarted", pid=server.process.pid)

    # What control asks for

    def status(self) -> dict[str, Any]:
        """What `control.ListenerStatus` shows."""
        server, bound = self._server, self._socket
        running = server is not None and server.process.poll() is None
        return {
            "nonce": self._nonce,
            "url": _url(self._config.host, _port(bound)) if bound else "",
            "port": _port(bound) if bound else 0,
            "digest": server.digest if server is not None and running else "",
            "metrics_port": server.metrics_port if server is not None and running else 0,
            "config": self._config.to_json(),
            "draining": len(self._draining),
        }

    def update(self, config: ListenerConfig) -> None:
        """Exchanges the server; the former one stays if the new one does not get healthy.

        Raises:
            SupervisorError: the address is taken, or the new server does not get healthy.
        """
        with self._change:
            if self.ended.is_set():
                raise SupervisorError("the listener is being stopped; try again")
            former_socket = self._socket
            moves = (
                former_socket is None
                or config.host != self._config.host
                or (config.port not in (0, _port(former_socket)))
            )
            bound = self._bind(config) if moves else former_socket
            assert bound is not None  # noqa: S101
            try:
                server = self._spawn(config, bound)
                server.send({"serve": True})
                self._expect_serving(server)
            except SupervisorError:
                if moves:
                    bound.close()
                raise
            former, self._server = self._server, server
            self._config, self._socket, self._failures = config, bound, 0
            if former is not None:
                former.send({"drain": True})
                self._draining.append(former)
            if moves and former_socket is not None:
                former_socket.close()
            self._save()
            self._log("server exchanged", pid=server.process.pid, digest=server.digest)

    def stop(self, final: bool) -> None:
        """Ends all servers, and in the end the processes that handlers deployed.

        Args:
            final: also end deployed processes and fail what waits; nothing will run here any more.
        """
        with self._change:
            self.ended.set()
            servers = [*self._draining, *([self._server] if self._server is not None else [])]
            for server in servers:
                if server is self._server:
                    server.send({"stop": {"final": final}})
                else:
                    # It was told to drain and takes no further order but the signal.
                    server.process.send_signal(signal.SIGTERM)
            until = time.monotonic() + self._config.limits.drain_seconds + 30
            for server in servers:
                server.end(max(0.1, until - time.monotonic()))
            self._server, self._draining = None, []
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            if final:
                state_dir = self._config.state_dir or self._places.home.parent
                for name in end_deployments(state_dir / "deployments"):
                    self._log("deployed process ended", deployment=name)

    # Parts

    def _bind(self, config: ListenerConfig) -> socket.socket:
        kept = self._places.read_port() if config.port == 0 else None
        wanted = config.port or kept or 0
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        until = time.monotonic() + 5
        while True:
            listening = socket.socket(family, socket.SOCK_STREAM)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((config.host, wanted))
                listening.listen(2048)
            except OSError as error:
                listening.close()
                # A server whose supervisor was killed gives the port free as soon as it notices.
                stale = self._server is None and self._places.has_stale_server()
                if stale and time.monotonic() < until:
                    time.sleep(0.05)
                    continue
                if kept is not None and wanted == kept:
                    self._log("port taken, another is picked", port=kept)
                    kept, wanted = None, 0
                    continue
                raise SupervisorError(
                    f"listener.port: cannot bind {config.host}:{wanted} ({error.strerror}); "
                    "set listener.port to a free port, or to 0 to have one picked"
                ) from error
            self._places.write_port(_port(listening))
            return listening

    def _spawn(self, config: ListenerConfig, listening: socket.socket) -> _Server:
        """Starts a server and waits until it is ready to serve."""
        try:
            # Its code is run from the bundle, so the bundle is checked by code that is not of it.
            manifest, _ = manifests.load(config.bundle)
            manifests.verify_files(config.bundle, manifest)
        except manifests.ManifestError as error:
            raise SupervisorError(str(error)) from error
        ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), listening.fileno())
        try:
            process = subprocess.Popen(
                python_command(
                    config.bundle,
                    self._places.cache,
                    SERVER_LIBRARIES,
                    "port_webhook_handlers.runtime.server",
                    str(theirs.fileno()),
                ),
                stdin=subprocess.DEVNULL,
                env=scrubbed_environment(PROXY_VARIABLES),
                cwd=self._places.home,
                pass_fds=inherited,
            )
        except OSError as error:
            ours.close()
            raise SupervisorError(f"the server cannot be started: {error}") from error
        finally:
            theirs.close()
        server = _Server(process, ours)
        self._places.record_server(process.pid)
        server.send(
            {
                "init": {
                    "config": config.to_json(),
                    "home": str(self._places.home),
                    "nonce": self._nonce,
                    "socket": listening.fileno(),
                }
            }
        )
        answer = server.receive(config.limits.start_seconds)
        if answer is None or "ready" not in answer:
            server.process.kill()
            server.end(5)
            if answer is not None and "failed" in answer:
                raise SupervisorError(str(answer["failed"]))
            raise SupervisorError(
                f"the server did not get ready within {config.limits.start_seconds:g} s; the end of its log:\n"
                f"{tail(self._places.log)}"
            )
        server.digest = answer["ready"]["digest"]
        server.metrics_port = answer["ready"]["metrics_port"]
        return server

    def _expect_serving(self, server: _Server) -> None:
        answer = server.receive(self._config.limits.start_seconds)
        if answer is None or "serving" not in answer:
            server.process.kill()
            server.end(5)
            raise SupervisorError(f"the server does not serve; the end of its log:\n{tail(self._places.log)}")

    def _save(self) -> None:
        write_private(self._places.config, self._config.dumps())


def _port(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{shown}:{port}"


class _Control(BaseHTTPRequestHandler):
    supervisor: Supervisor
    token: str
    protocol_version = "HTTP/1.1"
    timeout = 60
    wbufsize = 65536

    def do_GET(self) -> None:
        if self._authorized() and self.path == "/status":
            self._answer(200, self.supervisor.status())
        else:
            self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        if not self._authorized():
            self._answer(404, {"error": "not found"})
            return
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        try:
            if self.path == "/update":
                self.supervisor.update(configuration.parse(body))
                self._answer(200, self.supervisor.status())
            elif self.path == "/stop":
                self.supervisor.stop(bool(json.loads(body)["end_deployments"]))
                self._answer(200, {})
            else:
                self._answer(404, {"error": "not found"})
        except (SupervisorError, configuration.ConfigError) as error:
            self._answer(409, {"error": str(error)})

    def _authorized(self) -> bool:
        given = self.headers.get("authorization", "")
        return hmac.compare_digest(given.encode("latin-1", "replace"), f"Bearer {self.token}".encode())

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.close_connection = True
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


class _ControlServer(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A caller that went away.
        return


def main() -> None:
    """Runs the supervisor of a listener. Argument: the listener's folder."""
    places = Places(Path(sys.argv[1]))
    log = Log(path=places.log)
    config = configuration.parse(places.config.read_bytes())
    supervisor = Supervisor(places.home, replace(config), log)
    identity = ProcessIdentity.of(os.getpid())
    handler = type("Control", (_Control,), {"supervisor": supervisor, "token": places.token.read_text()})
    control = _ControlServer(("127.0.0.1", 0), handler)
    serving = threading.Thread(target=control.serve_forever, kwargs={"poll_interval": 0.1})
    stopping = threading.Thread(target=supervisor.stop, args=(False,))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None if stopping.ident else stopping.start())
    record: dict[str, Any] = {"pid": identity.pid, "start_time": identity.start_time}
    try:
        supervisor.start()
    except SupervisorError as error:
        log("listener not started", error=str(error))
        write_private(places.supervisor, json.dumps({**record, "error": str(error)}).encode())
        supervisor.stop(final=False)
        control.server_close()
        sys.exit(1)
    serving.start()
    record["control_port"] = control.server_address[1]
    write_private(places.supervisor, json.dumps(record).encode())
    log("listener started", pid=identity.pid, url=supervisor.status()["url"])
    supervisor.watch()
    if stopping.ident:
        stopping.join()
    # An answer to the caller of /stop may be under way.
    control.shutdown()
    control.server_close()
    log("listener ended", pid=identity.pid)


if __name__ == "__main__":
    main()
