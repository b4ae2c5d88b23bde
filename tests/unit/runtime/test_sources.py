"""From where requests are taken, on each server."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.runtime.kit import envelope, poll, signed
from tests.unit.runtime.test_receiver import Bench, bench

from port_webhook_handlers.runtime.asgi import Application, Message
from port_webhook_handlers.runtime.aws.events import request_of
from port_webhook_handlers.runtime.http import HttpServer
from port_webhook_handlers.runtime.sources import Sources

PORT = ["3.251.12.205", "10.0.0.0/8", "2001:db8::/32"]


@pytest.mark.parametrize(
    ("hops", "peer", "forwarded", "taken"),
    [
        (0, "3.251.12.205", [], True),
        (0, "3.251.12.206", [], False),
        (0, "10.255.0.1", [], True),
        (0, "::ffff:10.1.2.3", [], True),
        (0, "::ffff:11.1.2.3", [], False),
        (0, "2001:db8::7", [], True),
        (0, "fe80::1%eth0", [], False),
        (0, None, [], False),
        (0, "", [], False),
        (0, "11.0.0.1", ["10.0.0.1"], False),
        (0, "10.0.0.1", ["11.0.0.1"], True),
        (1, "11.0.0.1", ["10.0.0.1"], True),
        (1, "10.0.0.1", ["11.0.0.1"], False),
        (1, "10.0.0.1", [], False),
        (1, "10.0.0.1", [""], False),
        (1, "10.0.0.1", ["10.0.0.1, 11.0.0.1"], False),
        (1, "10.0.0.1", ["11.0.0.1,10.0.0.1"], True),
        (1, "10.0.0.1", ["10.0.0.1", "11.0.0.1"], False),
        (1, "10.0.0.1", ["11.0.0.1", " 10.0.0.1:4711 "], True),
        (1, "10.0.0.1", ["[2001:db8::1]:443"], True),
        (1, "10.0.0.1", ["10.0.0.1, unknown"], False),
        (1, "10.0.0.1", ["é".encode().decode("latin-1")], False),
        (2, "10.0.0.1", ["11.0.0.1, 3.251.12.205, 172.16.0.1"], True),
        (2, "10.0.0.1", ["3.251.12.205, 11.0.0.1, 172.16.0.1"], False),
        (2, "10.0.0.1", ["3.251.12.205"], False),
    ],
)
def test_who_the_sender_is(hops: int, peer: str | None, forwarded: list[str], taken: bool) -> None:
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    sources = Sources(PORT, hops)
    for path in (
        "/webhooks/work",
        "/webhooks/_verification/",
        "/webhooks/%5Fverification",
        "/",
        "/elsewhere",
    ):
        assert sources.takes(path, peer, headers) is taken, path
    # What runs no handler is open: for balancers, and for who proves a deployment.
    assert sources.takes("/health", peer, headers)
    assert sources.takes("/webhooks/_verification", peer, headers)


@pytest.mark.parametrize(("networks", "hops"), [(["port"], 0), (["10.0.0.1/8"], 0), (["10.0.0.1"], -1)])
def test_networks_that_are_none(networks: list[str], hops: int) -> None:
    with pytest.raises(ValueError, match=r"network|host bits|proxies"):
        Sources(networks, hops)
    assert Sources.of([]) is None


def head(body: bytes, *lines: str, path: str = "/webhooks/work") -> bytes:
    headers = {**signed(body), "host": "localhost", "content-length": str(len(body))}
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return (
        f"POST {path} HTTP/1.1\r\n{fields}{''.join(line + chr(13) + chr(10) for line in lines)}\r\n".encode()
    )


def serve(folder: Path, sources: Sources, talk: Callable[[tuple[str, int], Bench], None]) -> None:
    """Talks, in a thread, to a listener on loopback."""

    async def main() -> None:
        async with bench(folder) as built:
            listening = socket.create_server(("127.0.0.1", 0))
            server = HttpServer(built.receiver, 256 * 1024, frozenset(), sources)
            await server.start(listening)
            try:
                await asyncio.to_thread(talk, listening.getsockname(), built)
            finally:
                await server.stop(1)

    asyncio.run(main())


def rest_of(connection: socket.socket) -> bytes:
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def test_a_stranger_is_refused_before_the_body(tmp_path: Path) -> None:
    body = envelope("work", "r_1", text="a" * 100)

    def talk(address: tuple[str, int], b: Bench) -> None:
        for lines in ((), ("expect: 100-continue",), ("x-forwarded-for: 10.0.0.1",)):
            with socket.create_connection(address, timeout=10) as connection:
                connection.sendall(head(body, *lines))
                answer = rest_of(connection)
                assert answer.startswith(b"HTTP/1.1 403 Forbidden"), "nothing waits for the body"
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"] == "source_address"
                # Who writes the body all the same is not cut off in the middle of it.
                connection.sendall(body)
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(head(b"", path="/webhooks/_verification") + head(body) + body)
            found = rest_of(connection)
            assert found.count(b"HTTP/1.1 400") == 1
            assert found.count(b"HTTP/1.1 403") == 1
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert rest_of(connection).startswith(b"HTTP/1.1 200")
        assert b.recorder.started == []

    serve(tmp_path, Sources(PORT), talk)
    log = (tmp_path / "log").read_text()
    assert log.count('"reason":"source_address"') == 4


def test_a_stranger_who_stays_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("port_webhook_handlers.runtime.http._LINGER_SECONDS", 0.1)

    def talk(address: tuple[str, int], b: Bench) -> None:
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(head(b"x" * 100_000))
            assert rest_of(connection).startswith(b"HTTP/1.1 403")
            with pytest.raises(OSError, match=r"reset|Broken pipe"):
                poll(lambda: connection.sendall(b"x"))

    serve(tmp_path, Sources(PORT), talk)


def test_a_known_sender_is_served(tmp_path: Path) -> None:
    body = envelope("work", "r_1", text="a")

    def talk(address: tuple[str, int], b: Bench) -> None:
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(head(body, "connection: close") + body)
            assert rest_of(connection).startswith(b"HTTP/1.1 202")
        assert b.recorder.started == [("r_1", "work")]

    serve(tmp_path, Sources(["127.0.0.0/8"]), talk)


@pytest.mark.parametrize(
    ("client", "status"), [(("3.251.12.205", 1), 202), (("8.8.8.8", 1), 403), (None, 403)]
)
def test_on_an_asgi_server(tmp_path: Path, client: tuple[str, int] | None, status: int) -> None:
    body = envelope("work", "r_1", text="a")
    sent: list[Message] = []
    asked: list[int] = []

    async def receive() -> Message:
        asked.append(1)
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        async with bench(tmp_path) as built:
            scope = {
                "type": "http",
                "method": "POST",
                "raw_path": b"/webhooks/work",
                "headers": [(name.encode(), value.encode()) for name, value in signed(body).items()],
                "client": client,
            }
            await Application(built.receiver, 256 * 1024, None, Sources(PORT))(scope, receive, send)

    asyncio.run(main())
    assert sent[0]["status"] == status
    assert bool(asked) is (status == 202), "the body of a stranger is not read"


def test_the_gateway_says_who_sent_a_request() -> None:
    http: dict[str, Any] = {"method": "POST", "path": "/webhooks/work", "sourceIp": "3.251.12.205"}
    event: dict[str, Any] = {"requestContext": {"http": http}, "headers": {"X-Forwarded-For": "10.0.0.1"}}
    request = request_of(event)
    assert request.source == "3.251.12.205"
    assert Sources(PORT).takes(request.path, request.source, request.headers)
    assert Sources(PORT, 1).takes(request.path, None, request.headers)
    del http["sourceIp"]
    assert not Sources(PORT).takes(request.path, request_of(event).source, request.headers)
