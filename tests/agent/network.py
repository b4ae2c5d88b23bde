"""A forward proxy and TLS in front of plain servers, as companies have them around their networks."""

from __future__ import annotations

import contextlib
import datetime
import selectors
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Place = tuple[str, int]


def relay(left: socket.socket, right: socket.socket) -> None:
    """Copies both ways until one end closes."""
    with selectors.DefaultSelector() as selector:
        selector.register(left, selectors.EVENT_READ, right)
        selector.register(right, selectors.EVENT_READ, left)
        while True:
            for key, _ in selector.select():
                source = key.fileobj
                assert isinstance(source, socket.socket)
                data = source.recv(65536)
                if not data:
                    return
                key.data.sendall(data)
                if isinstance(source, ssl.SSLSocket):
                    while source.pending():
                        key.data.sendall(source.recv(65536))


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that does not trust the certificate, or goes away.
        return


@contextmanager
def _serving(handler: type[socketserver.BaseRequestHandler]) -> Iterator[int]:
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Proxy:
    """What a proxy was asked.

    Attributes:
        url: its address.
        asked: method, target and credentials of every request.
    """

    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)


@contextmanager
def proxy(names: Mapping[str, Place], credentials: str = "") -> Iterator[Proxy]:
    """A proxy that knows names which nobody else does: `CONNECT`, and requests with a whole URL.

    Args:
        names: `host:port` as clients ask for it → where it leads.
        credentials: value of `Proxy-Authorization` without which the answer is 407.
    """
    found = Proxy()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline().decode("latin-1").strip():
                method, target, _ = line.split(" ")
                lines = list(iter(lambda: self.rfile.readline().decode("latin-1").strip(), ""))
                headers = {name.lower(): value for name, _, value in (item.partition(": ") for item in lines)}
                given = headers.get("proxy-authorization", "")
                found.asked.append((method, target, given))
                if given != credentials:
                    length = int(headers.get("content-length", "0"))
                    self.rfile.read(length)
                    self.answer(407)
                    continue
                if method == "CONNECT":
                    self.tunnel(target)
                    return
                self.forward(method, target, headers)

        def answer(self, status: int) -> None:
            self.wfile.write(f"HTTP/1.1 {status} Proxy\r\ncontent-length: 0\r\n\r\n".encode())

        def tunnel(self, target: str) -> None:
            if target not in names:
                self.answer(502)
                return
            with socket.create_connection(names[target]) as upstream:
                self.wfile.write(b"HTTP/1.1 200 Established\r\n\r\n")
                with contextlib.suppress(OSError):
                    relay(self.connection, upstream)

        def forward(self, method: str, target: str, headers: dict[str, str]) -> None:
            parts = urlsplit(target)
            place = names.get(f"{parts.hostname}:{parts.port or 80}")
            if place is None:
                self.answer(502)
                return
            body = self.rfile.read(int(headers.get("content-length", "0")))
            own = {**headers, "connection": "close"}
            own.pop("proxy-authorization", None)
            head = "".join(f"{name}: {value}\r\n" for name, value in own.items())
            with socket.create_connection(place) as upstream:
                upstream.sendall(f"{method} {parts.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
                while data := upstream.recv(65536):
                    self.wfile.write(data)

    with _serving(Handler) as port:
        found.url = f"http://127.0.0.1:{port}"
        yield found


@dataclass(frozen=True)
class Authority:
    """A certificate authority of one's own.

    Attributes:
        ca_file: what clients have to trust.
        server: context of a server with a certificate for the given names.
    """

    ca_file: Path
    server: ssl.SSLContext


def authority(folder: Path, *names: str) -> Authority:
    """Makes an authority and a certificate of it for these names."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Authority of {folder.name}")])

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    root = (
        certificate(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        certificate(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    ca_file, chain = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(private + leaf.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return Authority(ca_file, context)


@contextmanager
def tls_before(url: str, context: ssl.SSLContext) -> Iterator[Place]:
    """Where the server of a plain URL answers over TLS."""
    parts = urlsplit(url)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                contextlib.suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as client,
                socket.create_connection((parts.hostname or "", parts.port or 80)) as upstream,
            ):
                relay(client, upstream)

    with _serving(Handler) as port:
        yield "127.0.0.1", port
