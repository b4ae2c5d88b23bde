"""HTTP requests to other systems that cannot be led astray.

A name is resolved once, every address is checked, and the connection goes to a checked address, so that a name
that changes its address in between gains nothing. Redirects are not followed and proxies of the environment are not
used. One deadline holds for the whole exchange, however slowly the other side sends.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import SplitResult, quote, unquote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

LARGEST_ANSWER: Final = 1024 * 1024
REPEATABLE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})
"""Methods that may be sent twice (RFC 9110, 9.2.2)."""

_REFUSED: Final = frozenset({408, 429})
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
# Where clouds answer with credentials, or what leads to the same host; never reached, whatever the settings say.
_NEVER: Final = tuple(
    map(
        ipaddress.ip_network,
        ("0.0.0.0/8", "169.254.0.0/16", "100.100.100.200/32", "::/128", "fe80::/10", "fd00:ec2::/32"),
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_PATH_SAFE: Final = "/:@!$&'()*+,;=-._~%"


class OutboundError(Exception):
    """There is no answer.

    Attributes:
        sent: whether the other side may have got the request.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


class RefusedAddressError(OutboundError):
    """The address may not be called."""

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in parts that need no further interpretation.

    Attributes:
        scheme: `https` or `http`.
        host: in lower case.
        port: as written, or that of the scheme.
        path: with its query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """`host`, or `host:port` if the port is not that of the scheme."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _port_of(self.scheme) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: names in lower case.
        body: at most one MiB.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def text(self) -> str:
        """The body as text; bytes that are no UTF-8 are replaced."""
        return self.body.decode(errors="replace")


def parse(url: str) -> Target:
    """The parts of a URL.

    Raises:
        ValueError: it is not plainly one `http` or `https` URL; the message never holds the URL, which may be secret.
    """
    if (
        not url.isascii()
        or any(ord(character) <= 32 or ord(character) == 127 for character in url)
        or "\\" in url
    ):
        raise ValueError("must be ASCII without blanks and backslashes; percent-encode the rest")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is no URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must start with https:// or http:// and a host")
    if "@" in parts.netloc:
        raise ValueError("must hold no user and password; use a token")
    if parts.fragment:
        raise ValueError("must hold no fragment (#)")
    return Target(
        parts.scheme, parts.hostname.removesuffix("."), port or _port_of(parts.scheme), _path(parts)
    )


def _port_of(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _path(parts: SplitResult) -> str:
    path = quote(parts.path, safe=_PATH_SAFE) or "/"
    # What a server behind a proxy would take for another path than the one that was checked.
    if any(unquote(segment) in (".", "..") for segment in path.split("/")):
        raise ValueError("must hold no . and .. in its path")
    if any(escape in path.lower() for escape in ("%2f", "%5c", "%00")):
        raise ValueError("must hold no encoded slash, backslash or zero in its path")
    return f"{path}?{parts.query}" if parts.query else path


def send(
    method: str,
    target: Target,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    private: bool = False,
    seconds: float,
) -> Answer:
    """Sends one request and reads the answer.

    Args:
        method: HTTP method.
        target: where to.
        headers: beside Host and Content-Length.
        body: what to send.
        private: whether private and loopback addresses are allowed; link-local ones and metadata services never are.
        seconds: for all of it.

    Raises:
        OutboundError: no answer.
    """
    deadline = time.monotonic() + seconds
    for name, value in headers.items():
        # The client's own error would repeat the value, which may be a token.
        if any(ord(character) < 32 or ord(character) > 126 for character in value):
            raise OutboundError(f"header {name} holds characters that no header may hold", sent=False)
    connection, guard = _connect(target, private, deadline)
    sent = False
    try:
        with _deadline(guard, deadline):
            sent = True
            connection.request(method, target.path, body=body, headers=dict(headers))
            response = connection.getresponse()
            content = response.read(LARGEST_ANSWER + 1)
            names = {name.lower(): value for name, value in response.getheaders()}
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= deadline:
            raise OutboundError(f"{target.origin} did not answer within {seconds:.3g} s", sent=sent) from None
        raise OutboundError(f"{target.origin} broke the connection: {_said(error)}", sent=sent) from None
    finally:
        connection.close()
        guard.close()
    if len(content) > LARGEST_ANSWER:
        raise OutboundError(f"{target.origin} answers with more than one MiB", sent=True)
    # Cut off at the deadline, a body of unknown length looks complete.
    if time.monotonic() >= deadline:
        raise OutboundError(f"{target.origin} did not answer within {seconds:.3g} s", sent=True)
    return Answer(response.status, names, content)


def send_persistently(
    attempt: Callable[[float], Answer],
    *,
    repeatable: bool,
    attempts: int,
    seconds: float,
    each_seconds: float,
    report: Callable[[str], None],
) -> Answer:
    """Sends a request again where its method allows it.

    A request that may take effect twice is repeated only if the other side cannot have got it, or says that it
    refused it (408, 429).

    Args:
        attempt: sends it within the seconds it is given.
        repeatable: whether it may take effect twice.
        attempts: how often at most.
        seconds: for all attempts.
        each_seconds: for one of them.
        report: takes a line for each attempt that failed.

    Raises:
        OutboundError: no answer, or none in time.
    """
    deadline = time.monotonic() + seconds
    for number in range(1, attempts + 1):
        left = deadline - time.monotonic()
        wait = 0.25 * 2 ** (number - 1)
        last = number == attempts
        try:
            answer = attempt(max(0.1, min(left, each_seconds)))
        except RefusedAddressError:
            raise
        except OutboundError as error:
            if last or (error.sent and not repeatable) or left <= wait:
                raise
            report(f"{error}; trying again")
        else:
            wait = max(wait, _retry_after(answer))
            again = answer.status in (_PASSING if repeatable else _REFUSED)
            if last or not again or deadline - time.monotonic() <= wait:
                return answer
            report(f"answered {answer.status}; trying again in {wait:.3g} s")
        time.sleep(wait)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _retry_after(answer: Answer) -> float:
    text = answer.headers.get("retry-after", "")
    # A date is also allowed, but then the ordinary wait does.
    return float(text) if text.isdecimal() and len(text) < 7 else 0.0


def allowed(address: Address, *, private: bool) -> bool:
    """Whether an address may be called.

    Args:
        address: to check; one that embeds an IPv4 address counts as that.
        private: whether private and loopback addresses may be.
    """
    address = _embedded(address)
    if any(address in network for network in _NEVER if network.version == address.version):
        return False
    if address.is_multicast or address.is_unspecified:
        return False
    return address.is_global or (private and (address.is_private or address.is_loopback))


def _embedded(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo
    return address.ipv4_mapped or address.sixtofour or (teredo[1] if teredo else None) or address


def resolve(host: str, port: int, *, private: bool) -> list[Any]:
    """Socket addresses of a host, all of them allowed.

    Raises:
        RefusedAddressError: one of its addresses may not be called.
        OutboundError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OutboundError(f"{host} is not found: {_said(error)}", sent=False) from None
    for *_, (text, *_) in found:
        if not allowed(ipaddress.ip_address(str(text).partition("%")[0]), private=private):
            raise RefusedAddressError(f"{host} leads to the address {text}, which this handler may not call")
    return found


def _connect(
    target: Target, private: bool, deadline: float
) -> tuple[http.client.HTTPConnection, socket.socket]:
    """A connection to a checked address, and a second handle on it that can cut it off."""
    problem = "no address"
    for family, kind, protocol, _, address in resolve(target.host, target.port, private=private):
        raw = socket.socket(family, kind, protocol)
        try:
            raw.settimeout(max(0.05, deadline - time.monotonic()))
            raw.connect(address)
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as error:
            raw.close()
            problem = _said(error)
            continue
        guard = socket.socket(fileno=os.dup(raw.fileno()))
        connection = http.client.HTTPConnection(target.origin)
        try:
            with _deadline(guard, deadline):
                connection.sock = _secured(raw, target)
        except OSError as error:
            raw.close()
            guard.close()
            raise OutboundError(
                f"{target.origin}: no secure connection: {_said(error)}", sent=False
            ) from None
        return connection, guard
    raise OutboundError(f"{target.origin} cannot be reached: {problem}", sent=False)


def _secured(raw: socket.socket, target: Target) -> socket.socket:
    if target.scheme == "http":
        return raw
    return ssl.create_default_context().wrap_socket(raw, server_hostname=target.host)


@contextlib.contextmanager
def _deadline(guard: socket.socket, deadline: float) -> Iterator[None]:
    """Cuts a connection off at its deadline: a socket's own timeout starts again with every byte."""

    def cut() -> None:
        with contextlib.suppress(OSError):
            guard.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, deadline - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def seconds_within(seconds_left: float, reserve: float) -> float:
    """Seconds that a handler may spend and still report."""
    return max(1.0, seconds_left - reserve)
