from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from port_webhook_localport.http_client import MAX_REPLY_BYTES, HttpReply, SendError, send


@contextmanager
def answering(*parts: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers one connection with these bytes, then closes it."""
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection:
                received.append(connection.recv(65_536))
                try:
                    for part in parts:
                        connection.sendall(part)
                except OSError:
                    return

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", received
        thread.join()


def post(url: str, body: bytes | None = b"{}", timeout: float = 5) -> HttpReply:
    return asyncio.run(send("POST", url, [("x-a", "Zoë")], body, timeout))


@pytest.mark.parametrize(
    ("parts", "status", "body"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na", b"bc"], 200, b"abc"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", b"0\r\n\r\n"], 200, b"a"),
        ([b"HTTP/1.1 500 No\r\n\r\nuntil the end"], 500, b"until the end"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b""),
        (
            [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 201 Created\r\nContent-Length: 1\r\n\r\nx"],
            201,
            b"x",
        ),
        ([b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n"], 302, b""),
    ],
)
def test_replies(parts: list[bytes], status: int, body: bytes) -> None:
    with answering(*parts) as (url, _):
        reply = post(url)
    assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ([], "closed without a reply"),
        ([b"SSH-2.0-OpenSSH_9\r\n"], "not HTTP"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"], "in the middle"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"], "in the middle"),
        ([b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_REPLY_BYTES + 1)], "longer than"),
    ],
)
def test_replies_that_are_none(parts: list[bytes], problem: str) -> None:
    with answering(*parts) as (url, _), pytest.raises(SendError, match=problem):
        post(url)


def test_the_request_is_sent_as_given() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (url, received):
        post(url + "/a%2Fb/ü?x=1&y=%20z")
    host = url.removeprefix("http://").encode()
    assert received[0] == (
        b"POST /a%2Fb/%C3%BC?x=1&y=%20z HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n"
        b"Content-Length: 2\r\nx-a: Zo\xc3\xab\r\n\r\n{}"
    )


def test_no_connection_and_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    with pytest.raises(SendError, match="refused"):
        post(f"http://127.0.0.1:{number}")
    with answering(b"this is not TLS") as (url, _), pytest.raises(SendError, match="TLS failed"):
        post(url.replace("http://", "https://"))
    with pytest.raises(SendError, match="connection failed"):
        post("http://absent.invalid/")


def test_a_silent_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(SendError, match=r"within 0\.1 s"):
        post(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1)
