"""The server process of one local Port."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from port_webhook_handlers.process import ProcessIdentity
from port_webhook_localport.app import App
from port_webhook_localport.home import Credentials, Home, LocalPortError, write_private
from port_webhook_localport.port import Port
from port_webhook_localport.store import Store

_LOG = logging.getLogger("port_webhook_localport")


def serve(home: Home) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        LocalPortError: another server already uses this folder, or no port can be had.
    """
    os.umask(0o077)
    home.create()
    lock = os.open(home.server_lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise LocalPortError(f"another local Port already serves {home.folder}. Stop it first") from None
    try:
        _serve(home)
    finally:
        os.close(lock)


def _serve(home: Home) -> None:
    credentials = home.credentials()
    listening = _listen(home)
    store = Store(home.database)
    port = Port(store, credentials)
    port.keep_credentials = home.save
    port.base_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    nonce = secrets.token_hex(16)
    config = uvicorn.Config(
        App(port, nonce),
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        # Clients keep connections; closing an idle one early races with their next request.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config, home, _record(credentials, port.base_url, nonce), port)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(server.serve(sockets=[listening]))
    finally:
        home.endpoint_file.unlink(missing_ok=True)
        listening.close()
        store.close()


class _Server(uvicorn.Server):
    """Publishes the endpoint once requests are answered; a signal ends it in order."""

    def __init__(self, config: uvicorn.Config, home: Home, record: str, port: Port) -> None:
        super().__init__(config)
        self._home = home
        self._record = record
        self._port = port

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike the original, does not raise the signal again at the end: the database is still open."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        yield

    def _end(self) -> None:
        self.should_exit = True
        # Calls that wait on purpose must not hold up the end.
        self._port.stopping.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            write_private(self._home.endpoint_file, self._record)
            _LOG.info("listening")


def _record(credentials: Credentials, url: str, nonce: str) -> str:
    identity = ProcessIdentity.of(os.getpid())
    return json.dumps(
        {
            "url": url,
            "client_id": credentials.client_id,
            "pid": identity.pid,
            "start_time": identity.start_time,
            "nonce": nonce,
        }
    )


def _listen(home: Home) -> socket.socket:
    """The port of the last start, so that addresses others have noted stay right; another if it is taken."""
    try:
        kept = int(home.port_file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        kept = 0
    listening = _bind(kept) if 0 < kept < 65_536 else None
    if listening is None:
        listening = _bind(0)
        if listening is None:
            raise LocalPortError("no free port on 127.0.0.1")
        number = listening.getsockname()[1]
        if kept:
            _LOG.warning("port %d is taken by another program; from now on this is port %d", kept, number)
        write_private(home.port_file, str(number))
    return listening


def _bind(number: int) -> socket.socket | None:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", number))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return None
        raise
    return listening


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop
