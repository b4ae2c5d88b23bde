"""The process that serves: receiver, ledger, dispatcher and outbox on one event loop.

Its supervisor gives it the listening socket and a connection over which both exchange JSON lines:

| from the supervisor | meaning |
|---|---|
| `{"init": {"config", "home", "nonce", "socket"}}` | first line: build everything |
| `{"serve": true}` | accept requests, start runs |
| `{"drain": true}` | a successor serves: accept nothing more, let running handlers end, exit |
| `{"stop": {"final": bool}}` | end within `drain_seconds`; final: accepted runs that wait end as FAILURE |
| end of the connection | the supervisor is gone: as `drain` |

It answers `{"ready": {"digest", "metrics_port"}}` or `{"failed": "…"}`, then `{"serving": true}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from port_webhook_handlers.runtime import config as configuration
from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.config import ListenerConfig
from port_webhook_handlers.runtime.library_log import LibraryLog
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.redact import Redactor
from port_webhook_handlers.runtime.secret_file import LiveSecrets, SecretFile, SecretFileError, StoredSecrets

if TYPE_CHECKING:
    from port_webhook_handlers.agent.service import AgentService
    from port_webhook_handlers.runtime.confirmation import Confirmation
    from port_webhook_handlers.runtime.ledger import Ledger
    from port_webhook_handlers.runtime.receiver import Receiver

_FLUSH_SECONDS: Final = 10.0
_LAST_REQUESTS_SECONDS: Final = 0.5
_REQUEST_GRACE_SECONDS: Final = 30


class StartError(Exception):
    """The server cannot serve with this configuration; the message says why and what to do."""


class Server:
    """One server process.

    Args:
        config: configuration.
        home: folder of the listener.
        nonce: name of the listener at `/health`.
        log: its log.
    """

    def __init__(self, config: ListenerConfig, home: Path, nonce: str, log: Log) -> None:
        self._config = config
        self._home = home
        self._nonce = nonce
        self._log = log
        self.metrics = Metrics()
        self.digest = ""
        self.confirmation: Confirmation | None = None

    async def open(self) -> None:
        """Checks and builds everything; accepts nothing yet.

        Raises:
            StartError: bundle, secrets or ledger cannot be used.
        """
        from port_webhook_handlers.port.json_codec import quick_codec
        from port_webhook_handlers.runtime.asgi import LOOPBACK
        from port_webhook_handlers.runtime.children import ChildPool
        from port_webhook_handlers.runtime.claims import LedgerError
        from port_webhook_handlers.runtime.confirmation import Confirmation, is_needed
        from port_webhook_handlers.runtime.dispatcher import Dispatcher, owner_name
        from port_webhook_handlers.runtime.http import HttpServer
        from port_webhook_handlers.runtime.ledger import Ledger
        from port_webhook_handlers.runtime.outbox import Outbox
        from port_webhook_handlers.runtime.port_calls import LoopCalls
        from port_webhook_handlers.runtime.receiver import Receiver
        from port_webhook_handlers.runtime.sources import Sources

        config = self._config
        try:
            manifest, self.digest = manifests.load(config.bundle)
            manifests.verify_files(config.bundle, manifest)
            store = SecretFile(config.secrets_file, config.secrets_key_file)
            secrets = LiveSecrets(store, self._secrets_changed, self._secrets_unreadable)
            _check_secrets(manifest, secrets.content)
            work = self._home / "work"
            work.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.ledger = Ledger(self._home / "ledger.db", store.key(), owner_name(self._nonce))
            self.pool = ChildPool(
                config.bundle,
                self.digest,
                work,
                self._log,
                max_shared=config.limits.max_children,
                on_spawn=self._spawned,
                on_end=self._child_ended,
            )
            self.outbox = Outbox(self.ledger, secrets, _base_url(config), self._log, self.metrics)
            self.dispatcher = Dispatcher(
                manifest,
                config,
                config.state_dir or self._home.parent,
                secrets,
                self.ledger,
                self.pool,
                self.outbox,
                self._log,
                self.metrics,
            )
            if is_needed(manifest.routes.values()):
                # Beside the outbox, whose backlog would keep requests waiting.
                self.confirmation = Confirmation(LoopCalls(secrets, _base_url(config)))
            self.receiver: Receiver = Receiver(
                manifest,
                self.digest,
                self._nonce,
                secrets,
                self.ledger,
                self.dispatcher,
                config.limits,
                self._log,
                self.metrics,
                quick=(self.ledger, self.dispatcher),
                codec=quick_codec(),
                confirm=self.confirmation,
            )
            self.agent = (
                None
                if config.agent is None
                else _agent(config, manifest, secrets, self.receiver, self.ledger, self._log)
            )
            self.ledger.open()
            await self.ledger.waiting()
        except (manifests.ManifestError, SecretFileError, LedgerError, ValueError, OSError) as error:
            raise StartError(str(error)) from error
        hosts: frozenset[str] | None = None
        if config.host in LOOPBACK:
            public = urlsplit(config.public_url or "").hostname
            hosts = frozenset(filter(None, [public]))
        sources = Sources.of(config.source_addresses, config.trusted_proxy_hops)
        self.http = HttpServer(self.receiver, config.limits.max_body_bytes, hosts, sources)
        self.dispatcher.on_overload = self._overloaded

    async def gauges(self) -> str:
        """Metrics as text."""
        own = self.metrics.render(await self.ledger.gauges())
        return own if self.agent is None else own + self.agent.rendered()

    async def agent_status(self) -> str:
        """Whether runs are taken from Port, as JSON; `null` without an agent."""
        return json.dumps(None if self.agent is None else self.agent.status())

    async def close(self, seconds: float | None, final: bool) -> None:
        """Ends runs and reports in order.

        Args:
            seconds: for running handlers; None: as long as they may take.
            final: no other server will start what waits.
        """
        if self.confirmation is not None:
            await self.confirmation.close()
        await self.dispatcher.drain(seconds)
        if final:
            await self.dispatcher.fail_waiting("The listener was stopped before the run started.")
        if not await self.outbox.flush(_FLUSH_SECONDS):
            self._log("reports left in the ledger")
        await self.outbox.close()
        await self.ledger.release()
        await self.ledger.close()

    async def _spawned(self, child: str) -> None:
        from port_webhook_handlers.runtime.claims import LedgerError

        try:
            await self.ledger.add_child(child)
        except LedgerError as error:
            # It ends by itself when this process does; only one that hangs would be left.
            self._log("child not recorded", child=child, error=str(error))

    def _child_ended(self, child: str) -> None:
        self.ledger.forget_child(child)

    def _secrets_changed(self, content: StoredSecrets) -> None:
        values = [item.value for item in content.signing] + [*content.decryption, *content.secrets.values()]
        if content.api is not None:
            values.append(content.api.client_secret)
        self._log.redact = Redactor(values)
        self._log("secrets read", signing=len(content.signing), names=sorted(content.secrets))

    def _secrets_unreadable(self, error: SecretFileError) -> None:
        self._log("secrets not readable, the former ones stay in force", error=str(error))

    def _overloaded(self, overloaded: bool) -> None:
        if overloaded != self.receiver.overloaded:
            self.receiver.overloaded = overloaded
            self._log("overloaded" if overloaded else "no longer overloaded")


def _agent(
    config: ListenerConfig,
    manifest: manifests.Manifest,
    secrets: LiveSecrets,
    receiver: Receiver,
    ledger: Ledger,
    log: Log,
) -> AgentService:
    from port_webhook_handlers.agent import config as agents
    from port_webhook_handlers.agent.service import AgentService
    from port_webhook_handlers.agent.sinks.direct import DirectSink

    found = agents.from_json(
        {
            "actions": [route.action for route in manifest.routes.values()],
            **(config.agent or {}),
            "sink": "direct",
            "port_base_url": config.port_base_url,
            "port_endpoint_file": None
            if config.port_endpoint_file is None
            else str(config.port_endpoint_file),
        }
    )
    return AgentService(found, secrets, log, DirectSink(receiver, ledger), serves_health=False)


def _check_secrets(manifest: manifests.Manifest, content: StoredSecrets) -> None:
    if not content.signing:
        raise StartError("secrets store: holds no signing secret, so that no request could be accepted")
    for route in manifest.routes.values():
        if missing := [name for name in route.secrets if name not in content.secrets]:
            raise StartError(
                f"route {route.name}: its handler ({route.source}) declares the secret {missing[0]}, which the "
                "secrets store does not hold; set it in the stack's secrets"
            )
        if route.encrypted_inputs and not content.decryption:
            raise StartError(
                f"route {route.name}: has encrypted inputs, but the secrets store holds no decryption key"
            )
        if route.mode == "async" and content.api is None:
            raise StartError(
                f"route {route.name}: cannot be reported, the secrets store holds no API credentials"
            )
        if route.payload.header is not None and content.api is None:
            raise StartError(
                f"route {route.name}: its run ids are in a header, so Port must be asked about them, but the secrets "
                "store holds no API credentials"
            )


def _base_url(config: ListenerConfig) -> str | Callable[[], str]:
    if config.port_base_url is not None:
        return config.port_base_url
    path = config.port_endpoint_file
    assert path is not None  # noqa: S101

    def read() -> str:
        from port_webhook_handlers.port.client import PortUnreachableError

        try:
            return str(json.loads(path.read_bytes())["url"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PortUnreachableError(
                f"{path} does not tell where Port is ({type(error).__name__})"
            ) from error

    return read


class _Lines:
    """JSON lines over the connection to the supervisor."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self) -> dict[str, Any] | None:
        try:
            line = await self._reader.readline()
        except OSError:
            return None
        return json.loads(line) if line else None

    async def write(self, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self._writer.write(json.dumps(message).encode() + b"\n")
            await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


async def _private(answers: dict[str, Callable[[], Awaitable[str]]]) -> tuple[asyncio.Server, int]:
    """Serves texts by path on a loopback port of the system's choice."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
            answer = answers.get(request[1].decode("latin-1")) if len(request) == 3 else None
            status, text = ("200 OK", await answer()) if answer is not None else ("404 Not Found", "")
            head = f"HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\nconnection: close\r\n"
            writer.write(f"{head}content-length: {len(text.encode())}\r\n\r\n{text}".encode())
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def _serve(connection: socket.socket) -> int:
    lines = _Lines(*await asyncio.open_connection(sock=connection))
    first = await lines.read()
    if first is None:
        return 1
    init = first["init"]
    home = Path(init["home"])
    log = Log(path=home / "listener.log")
    logging.basicConfig(handlers=[LibraryLog(log)], level=logging.WARNING, force=True)
    config = configuration.parse(json.dumps(init["config"]))
    server = Server(config, home, init["nonce"], log)
    try:
        await server.open()
    except StartError as error:
        log("not started", error=str(error))
        await lines.write({"failed": str(error)})
        return 1
    private, metrics_port = await _private({"/metrics": server.gauges, "/agent": server.agent_status})
    await lines.write({"ready": {"digest": server.digest, "metrics_port": metrics_port}})
    loop = asyncio.get_running_loop()
    log.gather(loop)
    orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, orders.put_nowait, {"stop": {"final": False}})
    listening = asyncio.ensure_future(_listen(lines, orders))
    order = await orders.get()
    seconds: float | None = 0.0
    final = False
    if "serve" in order:
        server.pool.warm()
        # A repeat of an interrupted run must not find it as if it were still running.
        await server.dispatcher.recover()
        dispatching = asyncio.ensure_future(server.dispatcher.serve())
        await server.http.start(socket.socket(fileno=init["socket"]))
        if server.agent is not None:
            await server.agent.start()
        log("serving", digest=server.digest, pid=os.getpid())
        await lines.write({"serving": True})
        order = await orders.get()
        stop = order.get("stop")
        seconds, final = (None, False) if stop is None else (config.limits.drain_seconds, bool(stop["final"]))
        server.receiver.stopping = stop is not None
        log("stopping" if stop is not None else "draining")
        if server.agent is not None:
            await server.agent.close()
        # Requests in flight may hand over runs, so the front door closes first: no new connections, then the
        # requests of those that were just accepted, then the rest.
        server.http.refuse_connections()
        if stop is None:
            await asyncio.sleep(_LAST_REQUESTS_SECONDS)
        await server.http.stop(max(_REQUEST_GRACE_SECONDS, config.limits.sync_deadline_seconds + 2))
        dispatching.cancel()
        await asyncio.wait([dispatching])
    await server.close(seconds, final)
    private.close()
    listening.cancel()
    lines.close()
    log("ended", pid=os.getpid())
    log.flush()
    return 0


async def _listen(lines: _Lines, orders: asyncio.Queue[dict[str, Any]]) -> None:
    while (message := await lines.read()) is not None:
        orders.put_nowait(message)
    orders.put_nowait({"drain": True})


def main() -> None:
    """Runs the server until it is told to end. Arguments: bundle, number of the inherited connection."""
    import gc

    import uvloop

    # What is loaded stays; looking through it again and again for garbage is wasted.
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    connection = socket.socket(fileno=int(sys.argv[2]))
    connection.set_inheritable(False)
    connection.setblocking(False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_serve(connection))
    sys.exit(code)


if __name__ == "__main__":
    main()
