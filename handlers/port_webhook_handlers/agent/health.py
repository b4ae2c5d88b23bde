"""Health and metrics over HTTP, on a private address.

| path | answer |
|---|---|
| `/health/live` | 200 while the process works |
| `/health/ready` | 200 if invocations are received, else 503; JSON says why |
| `/metrics` | Prometheus' text format |
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

_REASONS = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


class HealthServer:
    """Serves the three paths.

    Args:
        status: the content of `/health/ready`; `ready` decides.
        metrics: the text of `/metrics`.
    """

    def __init__(self, status: Callable[[], dict[str, Any]], metrics: Callable[[], str]) -> None:
        self._status = status
        self._metrics = metrics
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Binds; returns the port.

        Raises:
            OSError: the address is taken.
        """
        self._server = await asyncio.start_server(self._serve, host, port)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Ends."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(5):
                request = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
            status, kind, text = self._answer(request[1].decode("latin-1") if len(request) == 3 else "")
            data = text.encode()
            head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: {kind}\r\nconnection: close\r\n"
            writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str) -> tuple[int, str, str]:
        if path == "/health/live":
            return 200, "application/json", '{"status":"ok"}'
        if path == "/health/ready":
            status = self._status()
            return 200 if status["ready"] else 503, "application/json", json.dumps(status)
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4", self._metrics()
        return 404, "application/json", '{"error":"not_found"}'
