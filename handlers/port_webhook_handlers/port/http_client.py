"""An HTTP/1.1 client for many small requests: kept connections, no redirects, replies within a limit.

Names are resolved here and the connection goes to the address that was checked, so that a name cannot lead
elsewhere between the check and the connection. Proxies are those of the environment (`HTTP_PROXY`, `HTTPS_PROXY`,
`ALL_PROXY`, `NO_PROXY`).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from port_webhook_handlers.port.trust import client_context

_IDLE_SECONDS: Final = 30.0
_PROXY_AUTHENTICATION_REQUIRED: Final = 407
_SAFE: Final = "/%:@!$&'()*+,;=~-._"
# Scheme and authority. A URL in which `urlsplit` would leave something out or read it differently does not match.
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s\\]*")
# A path with its query that is sent as it is.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/%:@!$&'()*+,;=~._-]*(?:\?[A-Za-z0-9/%:@!$&'()*+,;=~._?\[\]-]+)?")


class SendError(Exception):
    """No reply. The message says why and holds nothing of the request.

    Attributes:
        retryable: whether another attempt may go better.
    """

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(slots=True)
class Reply:
    """What was answered; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Target:
    secure: bool
    host: str
    port: int
    authority: str


@dataclass(slots=True)
class _Proxy:
    host: str
    port: int
    authorization: str | None = field(repr=False, default=None)


class HttpClient:
    """Sends requests from one event loop.

    Args:
        check_address: says whether an address may be connected to; None: any.
        verify: check certificates.
        ca_file: certificates to trust besides the system's.
        connect_seconds: for connecting and TLS.
        max_reply_bytes: a longer reply is an error.
    """

    def __init__(
        self,
        *,
        check_address: Callable[[str], bool] | None = None,
        verify: bool = True,
        ca_file: Path | None = None,
        connect_seconds: float = 10.0,
        max_reply_bytes: int = 1024 * 1024,
    ) -> None:
        self._check_address = check_address
        self._verify = verify
        self._ca_file = ca_file
        self._connect_seconds = connect_seconds
        self._max_reply_bytes = max_reply_bytes
        self._idle: dict[tuple[bool, str, int], list[_Connection]] = {}
        self._tls: ssl.SSLContext | None = None
        self._closed = False

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]],
        body: bytes | None,
        seconds: float,
    ) -> Reply:
        """Sends a request and reads the whole reply.

        Args:
            method: in capitals.
            url: http or https.
            headers: without Host, Content-Length and Connection, which are added.
            body: None sends none.
            seconds: for everything, from connecting to the last byte.

        Raises:
            SendError: no reply in time, or none that is HTTP.
        """
        origin, path = _split(url)
        target = _target(origin)
        proxy = _proxy_for(origin)
        extra = ""
        if proxy is not None and not target.secure:
            path = f"http://{target.authority}{path}"
            extra = f"Proxy-Authorization: {proxy.authorization}\r\n" if proxy.authorization else ""
        lines = [f"{method} {path} HTTP/1.1\r\nHost: {target.authority}\r\n{extra}"]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}\r\n")
        lines += [f"{name}: {value}\r\n" for name, value in headers]
        data = ("".join(lines) + "\r\n").encode("utf-8") + (body or b"")
        key = (target.secure, target.host, target.port)
        try:
            async with asyncio.timeout(seconds):
                while True:
                    connection = self._kept(key)
                    kept = connection is not None
                    if connection is None:
                        connection = await self._connect(target, proxy)
                    try:
                        reply = await connection.exchange(data)
                    except _StaleError:
                        # The server closed a kept connection before it read anything.
                        if kept:
                            continue
                        raise SendError("the connection was closed without a reply") from None
                    finally:
                        self._keep(key, connection)
                    if proxy is not None and reply.status == _PROXY_AUTHENTICATION_REQUIRED:
                        # Not the destination's answer, so it does not settle anything.
                        raise SendError(_refused_by_proxy(reply.status))
                    return reply
        except TimeoutError:
            raise SendError(f"no complete reply within {seconds:g} s") from None
        except OSError as error:
            raise SendError(f"the connection failed: {_reason(error)}") from None

    def close(self) -> None:
        """Closes the kept connections."""
        self._closed = True
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    def _kept(self, key: tuple[bool, str, int]) -> _Connection | None:
        connections = self._idle.get(key)
        while connections:
            connection = connections.pop()
            if connection.usable and time.monotonic() - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _keep(self, key: tuple[bool, str, int], connection: _Connection) -> None:
        if connection.usable and not self._closed:
            connection.idle_since = time.monotonic()
            self._idle.setdefault(key, []).append(connection)
        else:
            connection.close()

    async def _connect(self, target: _Target, proxy: _Proxy | None) -> _Connection:
        loop = asyncio.get_running_loop()
        host, port = (proxy.host, proxy.port) if proxy is not None else (target.host, target.port)
        addresses = await self._resolve(host, port, checked=proxy is None)
        tls = self._context() if target.secure else None
        try:
            async with asyncio.timeout(self._connect_seconds):
                for index, address in enumerate(addresses):
                    try:
                        if proxy is None:
                            _, connection = await loop.create_connection(
                                self._new,
                                address,
                                port,
                                ssl=tls,
                                server_hostname=target.host if tls else None,
                            )
                            return connection
                        _, connection = await loop.create_connection(self._new, address, port)
                        return await self._through(connection, target, proxy, tls) if tls else connection
                    except ssl.SSLCertVerificationError as error:
                        raise SendError(
                            f"the certificate of {target.host} is not trusted: {error.verify_message}; name the file "
                            "of its authority in REQUESTS_CA_BUNDLE, or in an agent's caFile",
                            retryable=False,
                        ) from None
                    except OSError:
                        if index == len(addresses) - 1:
                            raise
        except TimeoutError:
            raise SendError(f"no connection within {self._connect_seconds:g} s") from None
        raise SendError(f"{host} has no address")

    async def _through(
        self, connection: _Connection, target: _Target, proxy: _Proxy, tls: ssl.SSLContext
    ) -> _Connection:
        """A tunnel through the proxy, with TLS to the target inside it."""
        place = f"{target.host}:{target.port}"
        lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
        if proxy.authorization:
            lines.append(f"Proxy-Authorization: {proxy.authorization}")
        try:
            reply = await connection.exchange(("\r\n".join(lines) + "\r\n\r\n").encode(), heads_only=True)
        except _StaleError:
            raise SendError("the proxy closed the connection") from None
        if reply.status != 200:
            connection.close()
            raise SendError(_refused_by_proxy(reply.status))
        inner = self._new()
        transport = await asyncio.get_running_loop().start_tls(
            connection.take_transport(), inner, tls, server_hostname=target.host
        )
        assert transport is not None  # noqa: S101
        inner.connection_made(transport)
        return inner

    async def _resolve(self, host: str, port: int, *, checked: bool) -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=1)
        except OSError:
            raise SendError(f"{host} cannot be resolved") from None
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        if checked and self._check_address is not None:
            addresses = [address for address in addresses if self._check_address(address)]
            if not addresses:
                raise SendError(f"{host} leads to an address that is never called", retryable=False)
        return addresses

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            try:
                self._tls = client_context(self._ca_file)
            except OSError as error:
                raise SendError(str(error)) from None
            if not self._verify:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        return self._tls

    def _new(self) -> _Connection:
        return _Connection(self._max_reply_bytes)


class _StaleError(Exception):
    """The connection ended before a byte of the reply came."""


class _Connection(asyncio.Protocol):
    """One connection; one exchange at a time."""

    def __init__(self, max_reply_bytes: int) -> None:
        self._limit = max_reply_bytes
        self._transport: Any = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._reply = Reply(0, {}, b"")
        self._body = bytearray()
        self._parser: Any = None
        self._heads_only = False
        self._framed = False
        self._dirty = False
        self.idle_since = 0.0

    @property
    def usable(self) -> bool:
        """Whether another exchange may use it."""
        return self._transport is not None and not self._dirty and not self._transport.is_closing()

    async def exchange(self, data: bytes, *, heads_only: bool = False) -> Reply:
        """Sends bytes and waits for a reply."""
        import httptools

        self._waiting = asyncio.get_running_loop().create_future()
        self._reply, self._body = Reply(0, {}, b""), bytearray()
        self._parser = httptools.HttpResponseParser(self)
        self._heads_only, self._framed = heads_only, False
        # Until the reply is complete, the connection is of no use to another request.
        self._dirty = True
        self._transport.write(data)
        return await self._waiting

    def take_transport(self) -> Any:
        """The transport; this protocol lets go of it."""
        transport, self._transport = self._transport, None
        return transport

    def close(self) -> None:
        """Ends the connection."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        import httptools

        if self._waiting is None or self._waiting.done():
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._fail(SendError(f"the reply is longer than {self._limit} bytes", retryable=False))
        except httptools.HttpParserUpgrade:
            if not self._waiting.done():
                self._fail(SendError("the reply switches protocols", retryable=False))
        except httptools.HttpParserError:
            self._fail(SendError("the reply is not HTTP"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if not self._reply.status:
            waiting.set_exception(_StaleError())
        elif exc is None and not self._framed and not self._heads_only:
            # Without a length the end of the connection is the end of the reply.
            self._finish()
        else:
            waiting.set_exception(SendError("the connection was closed in the middle of the reply"))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        self._reply.headers[key] = value.decode("latin-1")
        self._framed |= key in ("content-length", "transfer-encoding")

    def on_headers_complete(self) -> None:
        self._reply.status = self._parser.get_status_code()
        if self._heads_only and self._reply.status >= 200:
            self._finish()

    def on_body(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._limit:
            raise ValueError("too long")
        self._body += data

    def on_message_complete(self) -> None:
        if self._reply.status < 200:
            # An interim reply is followed by the real one.
            self._reply = Reply(0, {}, b"")
            return
        self._dirty = not self._parser.should_keep_alive()
        self._finish()

    def _finish(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._reply.body = bytes(self._body)
            self._waiting.set_result(self._reply)

    def _fail(self, error: SendError) -> None:
        self._dirty = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)
        self.close()


def _split(url: str) -> tuple[str, str]:
    """The origin of a URL, and what of it is sent as the target of a request."""
    found = _ORIGIN.match(url)
    if found is not None and _PLAIN_PATH.fullmatch(url, found.end()):
        return found[0], url[found.end() :]
    parts = urlsplit(url)
    path = quote(parts.path or "/", safe=_SAFE)
    if parts.query:
        path += "?" + quote(parts.query, safe=_SAFE + "?[]")
    return f"{parts.scheme}://{parts.netloc}", path


@lru_cache(maxsize=1024)
def _target(origin: str) -> _Target:
    parts = urlsplit(origin)
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    return _Target(secure, parts.hostname or "", port, parts.netloc.rpartition("@")[2])


@lru_cache(maxsize=1024)
def _proxy_for(origin: str) -> _Proxy | None:
    # The type stubs do not know the second one.
    from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

    parts = urlsplit(origin)
    host = parts.hostname or ""
    proxies = getproxies_environment()
    address = proxies.get(parts.scheme) or proxies.get("all")
    # A proxy cannot reach this machine's loopback.
    if not address or host in ("localhost", "::1") or host.startswith("127."):
        return None
    if proxy_bypass_environment(parts.netloc.rpartition("@")[2], proxies) or _in_networks(
        host, proxies.get("no", "")
    ):
        return None
    try:
        proxy = urlsplit(address if "//" in address else f"http://{address}")
        proxy_host, proxy_port = proxy.hostname if proxy.scheme == "http" else None, proxy.port or 80
    except ValueError:
        proxy_host = None
    if not proxy_host:
        # Its text may hold a password.
        raise SendError(
            f"the proxy of the environment for {parts.scheme} must be an address such as http://proxy:3128"
        )
    authorization = None
    if proxy.username:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return _Proxy(proxy_host, proxy_port, authorization)


def _in_networks(host: str, entries: str) -> bool:
    """Whether an address is in one of the networks that `NO_PROXY` names, as 10.0.0.0/8."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    for entry in entries.split(","):
        try:
            if "/" in entry and address in ipaddress.ip_network(entry.strip(), strict=False):
                return True
        except ValueError:
            continue
    return False


def _refused_by_proxy(status: int) -> str:
    hint = "; check user and password in HTTPS_PROXY or HTTP_PROXY" if status in (401, 403, 407) else ""
    return f"the proxy answered {status}{hint}"


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'handshake failure'}"
    return error.strerror or type(error).__name__
