"""Texts by path over plain HTTP, for probes and scrapers inside the cluster."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

Respond = Callable[[], Awaitable[tuple[int, str]]]

_REQUEST_SECONDS: Final = 5.0
_REASONS: Final = {200: "OK", 404: "Not Found", 503: "Service Unavailable"}


def listening(port: int) -> socket.socket:
    """A socket bound to every address of the Pod, of both families where the Pod has both."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=2048)
    return socket.create_server(("", port), backlog=2048)


async def serve(answers: Mapping[str, Respond], port: int) -> asyncio.Server:
    """Starts to serve texts.

    Args:
        answers: path to a function that gives status and text.
        port: 0: picked.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                request = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)
                respond = answers.get(request[1].decode("latin-1")) if len(request) == 3 else None
                status, text = await respond() if respond is not None else (404, "")
            body = text.encode()
            head = (
                f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: text/plain; version=0.0.4\r\n"
                f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, sock=listening(port))
