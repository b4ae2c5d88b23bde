"""The receiver behind HTTP/1.1: reads requests within limits, checks who is addressed, writes answers.

A protocol of its own and no ASGI server, because between the bytes and the receiver nothing else is needed: this is
half of what a request costs otherwise. httptools parses.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import httptools

from port_webhook_handlers.runtime.asgi import LOOPBACK, host_of
from port_webhook_handlers.runtime.receiver import RefusedError, Response

if TYPE_CHECKING:
    from port_webhook_handlers.runtime.receiver import Receiver
    from port_webhook_handlers.runtime.sources import Sources

_HEAD_BYTES: Final = 32 * 1024
# What a header costs beside its text, so that many empty ones are too many as well.
_HEADER_BYTES: Final = 128
_REQUEST_SECONDS: Final = 15.0
_IDLE_SECONDS: Final = 65.0
_LINGER_SECONDS: Final = 2.0
_SWEEP_SECONDS: Final = 0.5
# Reading a little more than allowed lets a sender that is still writing see the answer.
_DRAIN_BYTES: Final = 1024 * 1024
_WAITING_REQUESTS: Final = 8

_STATUS: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode()
    + b"content-type: application/json\r\ncache-control: no-store\r\ncontent-length: "
    for status in HTTPStatus
}


_HEAD_TOO_LARGE: Final = RefusedError(431, "head_too_large", "The request's head is too large.")


# The same few hosts over and over.
_host_of = functools.lru_cache(64)(host_of)


class HttpServer:
    """Serves a receiver on listening sockets.

    Args:
        receiver: what answers.
        max_body_bytes: larger bodies are answered 413.
        hosts: host names, besides those of loopback, under which this listener may be addressed; None: any,
            because it is bound to an address of the network.
        sources: where requests may come from; None: from everywhere.
    """

    def __init__(
        self,
        receiver: Receiver,
        max_body_bytes: int,
        hosts: frozenset[str] | None,
        sources: Sources | None = None,
    ) -> None:
        self.receiver = receiver
        self.sources = sources
        self.limit = max_body_bytes
        self.hosts = None if hosts is None else LOOPBACK | hosts
        self.closing = False
        self.connections: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.answering = 0
        self._idle: asyncio.Future[None] | None = None
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, listening: socket.socket) -> None:
        """Accepts connections."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self, loop), sock=listening, backlog=2048)
        self._sweep()

    def refuse_connections(self) -> None:
        """Accepts no more connections; those that are open are closed after their next answer."""
        self.closing = True
        if self._server is not None:
            self._server.close()

    async def stop(self, seconds: float) -> None:
        """Closes idle connections and waits until the requests in flight are answered."""
        self.refuse_connections()
        for connection in list(self.connections):
            connection.close_if_idle()
        if self.answering:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=seconds)
        for connection in list(self.connections):
            connection.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()

    def answered(self) -> None:
        """One request less is being answered."""
        self.answering -= 1
        if not self.answering and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.check(now)
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)


class _Request:
    __slots__ = ("body", "headers", "keep_alive", "method", "path", "refusal")

    def __init__(self) -> None:
        self.method = ""
        self.path = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.keep_alive = True
        self.refusal: Response | None = None


class _Connection(asyncio.Protocol):
    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._request = _Request()
        self._parts: list[bytes] = []
        self._size = 0
        self._head_size = 0
        self._unread = 0
        self._in_head = True
        self._began = False
        self._waiting: deque[_Request] = deque()
        self._busy = False
        self._last = False
        self._lingers = False
        self._half_closed = False
        self._peer: str | None = None
        self._until = loop.time() + _REQUEST_SECONDS

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)
        if self._server.sources is not None:
            peer = transport.get_extra_info("peername")
            self._peer = peer[0] if isinstance(peer, tuple) else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._waiting.clear()

    def eof_received(self) -> bool:
        # Who has nothing more to say may still wait for the answer.
        self._half_closed = True
        return self._busy

    def pause_writing(self) -> None:
        # Answers are small and one at a time; who does not read them gets no further ones.
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def abort(self) -> None:
        """Closes it at once."""
        self._transport.abort()

    def close_if_idle(self) -> None:
        """Closes it unless a request is being answered."""
        if not self._busy and not self._waiting:
            self._transport.close()

    def _close(self) -> None:
        if self._lingers and not self._half_closed:
            self._until = self._loop.time() + _LINGER_SECONDS
            self._transport.write_eof()
        else:
            self._transport.close()

    def check(self, now: float) -> None:
        """Closes it if it has been idle, or at one request, for too long."""
        if self._busy or now < self._until or (self._last and not self._lingers):
            return
        if self._lingers:
            self._transport.abort()
        elif self._began:
            self._end(RefusedError(408, "body_timeout", "The request did not arrive in time.").response)
        else:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._last:
            return
        self._unread = self._unread + len(data) if self._in_head else 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end(RefusedError(400, "upgrade", "Only plain HTTP/1.1 is served here.").response)
        except httptools.HttpParserError:
            if self._head_size > _HEAD_BYTES:
                self._end(_HEAD_TOO_LARGE.response)
            else:
                self._end(RefusedError(400, "malformed_request", "This is not an HTTP/1.1 request.").response)
        else:
            # A line without end has not come to the parser's callbacks yet.
            if self._in_head and self._unread > 2 * _HEAD_BYTES and self._unread > len(data):
                self._end(_HEAD_TOO_LARGE.response)

    def _end(self, response: Response) -> None:
        """Answers what is left of the connection once the requests before are answered."""
        if not self._last:
            self._last = True
            request = _Request()
            request.keep_alive = False
            request.refusal = response
            self._enqueue(request)

    # The parser

    def on_message_begin(self) -> None:
        self._began = True
        self._in_head = True
        self._head_size = 0
        self._request = _Request()
        self._until = self._loop.time() + _REQUEST_SECONDS

    def on_url(self, url: bytes) -> None:
        self._request.path += url
        self._head_size += len(url)
        if self._head_size > _HEAD_BYTES:
            raise _HEAD_TOO_LARGE

    def on_header(self, name: bytes, value: bytes) -> None:
        self._request.headers.append((name.lower(), value))
        self._head_size += len(name) + len(value) + _HEADER_BYTES
        if self._head_size > _HEAD_BYTES:
            raise _HEAD_TOO_LARGE

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._unread = 0
        self._size = 0
        request = self._request
        request.method = self._parser.get_method().decode("latin-1")
        request.keep_alive = self._parser.should_keep_alive()
        sources = self._server.sources
        if sources is not None and not sources.takes(_path(request), self._peer, request.headers):
            # Who is still writing the body, which nobody reads, shall see the answer.
            self._lingers = True
            self._end(self._server.receiver.from_elsewhere(_path(request)))
            return
        for name, value in request.headers:
            if name == b"expect" and value.lower() == b"100-continue" and not self._busy:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            elif name == b"content-length" and int(value) > self._server.limit + _DRAIN_BYTES:
                self._too_large()

    def on_body(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= self._server.limit:
            self._parts.append(part)
        elif self._size > self._server.limit + _DRAIN_BYTES:
            self._too_large()

    def on_message_complete(self) -> None:
        self._began = False
        self._in_head = True
        request, parts = self._request, self._parts
        self._parts = []
        if self._last:
            return
        if self._size > self._server.limit:
            request.refusal = self._server.receiver.too_large(_path(request))
        elif parts:
            request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._enqueue(request)

    def _too_large(self) -> None:
        self._end(self._server.receiver.too_large(_path(self._request)))

    # Answers

    def _enqueue(self, request: _Request) -> None:
        if self._busy:
            self._waiting.append(request)
            if len(self._waiting) >= _WAITING_REQUESTS:
                self._transport.pause_reading()
            return
        self._serve(request)

    def _serve(self, request: _Request) -> None:
        self._busy = True
        server = self._server
        response = request.refusal
        if response is None and server.hosts is not None:
            response = _misaddressed(request.headers, server.hosts)
        self._server.answering += 1
        if response is not None:
            self._write(request, response)
            return
        path = _path(request)
        respond = functools.partial(self._write, request)
        if self._server.receiver.serve(request.method, path, request.headers, request.body, respond):
            return
        # Nothing cancels it: a run that was claimed must go on when its sender goes away.
        task = self._loop.create_task(self._answer(request))
        self._server.tasks.add(task)
        task.add_done_callback(self._server.tasks.discard)

    async def _answer(self, request: _Request) -> None:
        self._write(
            request,
            await self._server.receiver.handle(request.method, _path(request), request.headers, request.body),
        )

    def _write(self, request: _Request, response: Response) -> None:
        keep = (
            request.keep_alive and not self._server.closing and not (self._half_closed and not self._waiting)
        )
        head = _STATUS[response.status] + b"%d\r\n" % len(response.body)
        for name, value in response.headers:
            head += name + b": " + value + b"\r\n"
        if not keep:
            head += b"connection: close\r\n"
        self._busy = False
        self._server.answered()
        if self._transport.is_closing():
            return
        self._transport.write(head + b"\r\n" + (b"" if request.method == "HEAD" else response.body))
        if not keep:
            self._last = True
            self._close()
            return
        self._until = self._loop.time() + _IDLE_SECONDS
        if self._waiting:
            if len(self._waiting) == _WAITING_REQUESTS:
                with contextlib.suppress(RuntimeError):
                    self._transport.resume_reading()
            self._serve(self._waiting.popleft())


def _path(request: _Request) -> str:
    # As received: a decoded path cannot tell "/" from "%2F" in a route's name.
    return request.path.partition(b"?")[0].decode("latin-1")


def _misaddressed(headers: list[tuple[bytes, bytes]], hosts: frozenset[str]) -> Response | None:
    # A web page can make a browser send requests to loopback, under a name it controls.
    host = b""
    for name, value in headers:
        if name == b"host":
            host = value
        elif name == b"origin" and host_of(value.rpartition(b"/")[2]) not in hosts:
            return RefusedError(403, "wrong_origin", "Requests from web pages are not served.").response
    if _host_of(host) not in hosts:
        return RefusedError(421, "wrong_host", "This listener does not serve that host name.").response
    return None
