"""One HTTP/1.1 request, sent byte for byte as given: no redirects, no retries, no proxies."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote, urlsplit

import httptools

MAX_REPLY_BYTES = 1024 * 1024


class SendError(Exception):
    """No reply; the message says why and names no part of the request."""


@dataclass(slots=True)
class HttpReply:
    """Status and body of a reply."""

    status: int
    body: bytes


class _Collector:
    """Callbacks of httptools' parser."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.complete = False
        self.framed = False
        self.parser = httptools.HttpResponseParser(self)

    def on_header(self, name: bytes, _value: bytes) -> None:
        self.framed |= name.lower() in (b"content-length", b"transfer-encoding")

    def on_body(self, data: bytes) -> None:
        if len(self.body) + len(data) > MAX_REPLY_BYTES:
            raise SendError(f"the reply is longer than {MAX_REPLY_BYTES} bytes")
        self.body += data

    def on_message_complete(self) -> None:
        # An interim reply (1xx) is followed by the real one.
        self.complete = self.parser.get_status_code() >= 200


async def send(
    method: str,
    url: str,
    headers: Sequence[tuple[str, str]],
    body: bytes | None,
    timeout_seconds: float,
    *,
    pause_seconds: float = 0.0,
) -> HttpReply:
    """Sends a request on a connection of its own and reads the whole reply.

    Args:
        url: http or https.
        headers: without Host, Content-Length and Connection, which are added.
        body: None sends none.
        timeout_seconds: for everything, from connecting to the last byte.
        pause_seconds: time to wait in the middle of the body, as a slow sender would.

    Raises:
        SendError: no connection, no answer in time, or an answer that is not HTTP.
    """
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    host = parts.hostname or ""
    port = parts.port or (443 if secure else 80)
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._") + (
        "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]") if parts.query else ""
    )
    lines = [f"{method} {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name}: {value}" for name, value in headers]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8") + (body or b"")
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(
                host, port, ssl=_tls() if secure else None, server_hostname=host if secure else None
            )
            try:
                half = len(request) - len(body or b"") // 2
                if pause_seconds:
                    writer.write(request[:half])
                    await asyncio.sleep(pause_seconds)
                writer.write(request[half if pause_seconds else 0 :])
                await writer.drain()
                return await _read(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise SendError(f"no complete reply within {timeout_seconds:g} s") from None
    except ssl.SSLError as error:
        raise SendError(f"TLS failed: {error.reason or 'handshake failure'}") from None
    except httptools.HttpParserError:
        raise SendError("the reply is not HTTP") from None
    except OSError as error:
        raise SendError(f"the connection failed: {_reason(error)}") from None


async def _read(reader: asyncio.StreamReader) -> HttpReply:
    collector = _Collector()
    while not collector.complete:
        data = await reader.read(65_536)
        if not data:
            break
        try:
            collector.parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise SendError(str(error.__context__ or error)) from None
    status = collector.parser.get_status_code()
    if not status:
        raise SendError("the connection was closed without a reply")
    # Without a length or chunks the end of the connection is the end of the body.
    if collector.framed and not collector.complete:
        raise SendError("the connection was closed in the middle of the reply")
    return HttpReply(status, bytes(collector.body))


def _reason(error: OSError) -> str:
    if error.errno and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
