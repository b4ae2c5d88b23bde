"""A small SMTP server on loopback: STARTTLS, AUTH PLAIN, and refusals on demand."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import ssl
import threading
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import Message
from pathlib import Path

USER, PASSWORD = "port@example.com", "m4il-passw0rd"


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 with its key, in one PEM file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "smtp.test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "smtp.pem"
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


class SmtpServer:
    """Keeps what it takes in `mails`, with the envelope's recipients.

    Attributes:
        refuse: replies by the first word of a command, or by `RCPT <address>`.
        drop_data: closes the connection when a message was sent.
    """

    def __init__(self, pem: Path) -> None:
        self.mails: list[tuple[list[str], Message]] = []
        self.refuse: dict[str, str] = {}
        self.drop_data = False
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(pem)
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        assert started.wait(10)

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            self._stop = asyncio.Event()
            started.set()
            await self._stop.wait()
            server.close()
            await asyncio.sleep(0)

        self._loop.run_until_complete(serve())
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
            self._loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        secure, recipients = False, list[str]()

        async def say(line: str) -> None:
            writer.write(f"{line}\r\n".encode())
            await writer.drain()

        await say("220 smtp.test")
        while line := (await reader.readline()).decode().strip():
            word = line.split()[0].upper()
            address = line.partition("<")[2].rstrip(">")
            refusal = self.refuse.get(word) or self.refuse.get(f"RCPT {address}" if word == "RCPT" else "")
            if refusal:
                await say(refusal)
            elif word == "EHLO":
                await say("250-smtp.test")
                await say("250 AUTH PLAIN" if secure else "250 STARTTLS")
            elif word == "STARTTLS":
                await say("220 go")
                await writer.start_tls(self._tls)
                secure = True
            elif word == "AUTH":
                given = base64.b64decode(line.split()[2]).decode().split("\0")
                await say("235 ok" if given == ["", USER, PASSWORD] else f"535 wrong: {given[2]}")
            elif word == "RCPT":
                recipients.append(address)
                await say("250 ok")
            elif word == "DATA":
                await say("354 go on")
                content = (await reader.readuntil(b"\r\n.\r\n"))[:-5].replace(b"\r\n..", b"\r\n.")
                self.mails.append((recipients, message_from_bytes(content)))
                if self.drop_data:
                    return
                recipients = []
                await say("250 taken")
            elif word == "QUIT":
                await say("221 bye")
                return
            else:
                await say("250 ok")
