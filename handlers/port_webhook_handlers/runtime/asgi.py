"""The receiver as an ASGI application: reads bodies within limits and checks who is addressed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from port_webhook_handlers.runtime.receiver import Receiver, RefusedError, Response
from port_webhook_handlers.runtime.sources import Sources

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1", "[::1]"})
_BODY_SECONDS: Final = 15.0
# Reading a little more than allowed lets a sender that is still writing see the answer.
_DRAIN_BYTES: Final = 1024 * 1024


class Application:
    """ASGI application of a listener.

    Args:
        receiver: what answers.
        max_body_bytes: larger bodies are answered 413.
        hosts: host names, besides those of loopback, under which this listener may be addressed; None: any,
            because it is bound to an address of the network.
        sources: where requests may come from; None: from everywhere.

    Attributes:
        closing: connections are closed after their next answer.
    """

    def __init__(
        self,
        receiver: Receiver,
        max_body_bytes: int,
        hosts: frozenset[str] | None,
        sources: Sources | None = None,
    ) -> None:
        self._receiver = receiver
        self._sources = sources
        self._limit = max_body_bytes
        self._hosts = None if hosts is None else LOOPBACK | hosts
        self.closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"{scope['type']} is not served")
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        # The path as received: a decoded one cannot tell "/" from "%2F" in a route's name.
        path = scope["raw_path"].partition(b"?")[0].decode("latin-1")
        response = self._misaddressed(headers)
        if self._sources is not None and not self._sources.takes(path, _peer(scope), headers):
            response = self._receiver.from_elsewhere(path)
        if response is None:
            try:
                body = await self._body(headers, receive)
            except _TooLargeError:
                response = self._receiver.too_large(path)
            except TimeoutError:
                response = RefusedError(408, "body_timeout", "The body did not arrive in time.").response
            else:
                if body is None:
                    return
                response = await self._receiver.handle(scope["method"], path, headers, body)
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(response.body)).encode()),
                    (b"cache-control", b"no-store"),
                    *([(b"connection", b"close")] if self.closing else []),
                    *response.headers,
                ],
            }
        )
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else response.body}
        )

    def _misaddressed(self, headers: list[tuple[bytes, bytes]]) -> Response | None:
        if self._hosts is None:
            return None
        # A web page can make a browser send requests to loopback, under a name it controls.
        host = b""
        for name, value in headers:
            if name == b"host":
                host = value
            elif name == b"origin" and host_of(value.rpartition(b"/")[2]) not in self._hosts:
                return RefusedError(403, "wrong_origin", "Requests from web pages are not served.").response
        if host_of(host) not in self._hosts:
            return RefusedError(421, "wrong_host", "This listener does not serve that host name.").response
        return None

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes | None:
        """The body; None if the sender went away."""
        declared = next((value for name, value in headers if name == b"content-length"), b"0")
        if int(declared) > self._limit + _DRAIN_BYTES:
            raise _TooLargeError
        parts: list[bytes] = []
        size = 0
        async with asyncio.timeout(_BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    return None
                part: bytes = message.get("body", b"")
                size += len(part)
                if size <= self._limit:
                    parts.append(part)
                elif size > self._limit + _DRAIN_BYTES:
                    raise _TooLargeError
                if not message.get("more_body"):
                    break
        if size > self._limit:
            raise _TooLargeError
        return b"".join(parts)


class _TooLargeError(Exception):
    pass


def _peer(scope: Scope) -> str | None:
    client = scope.get("client")
    return str(client[0]) if client else None


def host_of(value: bytes) -> str:
    """The host of a Host header or an origin, without the port."""
    text = value.decode("latin-1").lower()
    return text if text.endswith("]") else text.rpartition(":")[0] if ":" in text.rpartition("]")[2] else text
