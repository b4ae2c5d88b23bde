"""The handler that calls HTTP APIs, against real servers on loopback."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.unit.localport.webhook import Webhook

from port_webhook_handlers.bundled import outbound
from port_webhook_handlers.bundled.http_call import TOKEN, call_http_api
from port_webhook_handlers.bundled.options import fill
from port_webhook_handlers.sdk import Failure, InputError, SettingError, Success
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.testing import Invocation, invoke

SECRET = "t0p-s3cret-token"


@pytest.fixture
def api() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()


def call(
    url: str,
    method: str = "GET",
    *,
    body: Any = None,
    secret: str = SECRET,
    seconds: float | None = None,
    **options: Any,
) -> Invocation:
    origin = url.partition("://")[2].partition("/")[0]
    host = {"methods": ["GET", "POST", "PUT"], "private": True, "plain": True} | options
    return invoke(
        call_http_api,
        inputs={"method": method, "url": url, **({"body": body} if body is not None else {})},
        secrets={TOKEN: secret},
        settings={"hosts": {origin: host}},
        seconds=seconds,
    )


def failure(outcome: Invocation) -> str:
    assert isinstance(outcome.result, Failure), outcome
    assert outcome.error_type is None
    return outcome.result.summary


def test_the_answer_becomes_summary_and_link(api: Webhook) -> None:
    api.reply = b'{"key": "OPS-7", "fields": {"status": "open"}, "tags": ["a", "b"]}'
    outcome = call(
        f"{api.url}/tickets",
        "POST",
        body={"title": "disk full"},
        secret=f"{SECRET}\n",
        paths=["/tickets"],
        token={"prefix": "Bearer "},
        summary="Ticket {key} is {fields.status} ({tags.1})",
        link="https://tickets.example.com/browse/{key}",
    )
    assert outcome.result == Success(
        "Ticket OPS-7 is open (b)", link="https://tickets.example.com/browse/OPS-7"
    )
    (request,) = api.received
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert request.json == {"title": "disk full"}


def test_without_settings_for_the_token_it_stays_here(api: Webhook) -> None:
    assert isinstance(call(api.url).result, Success)
    assert SECRET not in json.dumps(api.received[0].headers)


def test_an_api_that_repeats_the_token_reveals_nothing(api: Webhook) -> None:
    api.status, api.reply = 403, f"no rights for {SECRET}".encode()
    outcome = call(api.url, token={})
    assert failure(outcome) == f"{api.url[7:]} answered 403.\n\n```\nno rights for ***\n```"
    assert SECRET not in json.dumps(outcome.messages)


def test_a_token_that_is_no_header_is_not_shown(api: Webhook) -> None:
    outcome = call(api.url, secret="first\nsecond-half", token={})
    assert failure(outcome) == "header Authorization holds characters that no header may hold."
    assert "second-half" not in json.dumps(outcome.messages)
    assert api.received == []


NOT_ALLOWED: list[tuple[str, str, dict[str, Any], str]] = [
    ("GET", "http://other.example.com/", {}, "hosts.other.example.com: is not in the settings"),
    ("DELETE", "{api}/", {}, "DELETE is not allowed on {host} (allowed: GET, POST, PUT)."),
    ("GET", "{api}/admin", {"paths": ["/v1"]}, "This path is not allowed on {host} (allowed: /v1)."),
    ("GET", "{api}/v1x", {"paths": ["/v1"]}, "This path is not allowed"),
    ("GET", "{api}/v1/../admin", {"paths": ["/v1"]}, "inputs.url must hold no . and .. in its path."),
    ("GET", "{api}/v1/%2e%2E/admin", {"paths": ["/v1"]}, "inputs.url must hold no . and .. in its path."),
    ("GET", "{api}/v1/..%2fadmin", {"paths": ["/v1"]}, "inputs.url must hold no encoded slash"),
    ("GET", "{api}/", {"plain": False}, "{host} may be called with https only"),
    ("GET", "{api}/", {"private": False}, "127.0.0.1 leads to the address 127.0.0.1"),
    ("GET", "http://user:pw@{host}/", {}, "inputs.url must hold no user and password"),
]


@pytest.mark.parametrize(("method", "url", "options", "message"), NOT_ALLOWED)
def test_what_is_not_allowed_is_not_sent(
    method: str, url: str, options: dict[str, Any], message: str, api: Webhook
) -> None:
    host = api.url.partition("://")[2]
    settings = {
        "hosts": {host: {"methods": ["GET", "POST", "PUT"], "private": True, "plain": True} | options}
    }
    outcome = invoke(
        call_http_api,
        inputs={"method": method, "url": url.format(api=api.url, host=host)},
        secrets={TOKEN: SECRET},
        settings=settings,
    )
    assert failure(outcome).startswith(message.format(host=host))
    assert api.received == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "http://a b/", "http://", "http://x\\@y/", "http://x/#f"]
)
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    with contextlib.suppress(InputError):
        assert failure(call(url)).startswith("inputs.url ")


@pytest.mark.parametrize(
    ("address", "public", "private"),
    [
        ("93.184.216.34", True, True),
        ("2606:2800:220:1::1", True, True),
        ("10.0.0.1", False, True),
        ("127.0.0.1", False, True),
        ("::1", False, True),
        ("fd12::1", False, True),
        ("::ffff:10.0.0.1", False, True),
        ("64:ff9b::a00:1", False, True),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("64:ff9b::a9fe:a9fe", False, False),
        ("2002:a9fe:a9fe::", False, False),
        ("fd00:ec2::254", False, False),
        ("fe80::1", False, False),
        ("0.0.0.0", False, False),  # noqa: S104
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("100.100.100.200", False, False),
    ],
)
def test_addresses(address: str, public: bool, private: bool) -> None:
    found = ipaddress.ip_address(address)
    assert (outbound.allowed(found, private=False), outbound.allowed(found, private=True)) == (
        public,
        private,
    )


def test_a_name_is_resolved_once(api: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name leads to is what was checked: a second answer of its server would be another."""
    port = int(api.url.rpartition(":")[2])
    asked: list[str] = []

    def rebind(host: str, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "169.254.169.254"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebind)
    assert isinstance(call(f"http://rebinding.example.com:{port}/").result, Success)
    assert asked == ["rebinding.example.com"]
    assert api.received[0].headers["host"] == f"rebinding.example.com:{port}"


def test_redirects_are_not_followed(api: Webhook) -> None:
    api.status, api.reply_headers = 302, {"Location": f"{api.url}/elsewhere"}
    assert "a redirect, which is not followed" in failure(call(f"{api.url}/here", token={}))
    assert [request.path for request in api.received] == ["/here"]


@pytest.mark.parametrize(
    ("method", "status", "options", "tries"),
    [
        ("GET", 503, {}, 3),
        ("PUT", 503, {}, 3),
        ("POST", 503, {}, 1),
        ("POST", 503, {"idempotency_header": "Idempotency-Key"}, 3),
        ("POST", 429, {}, 3),
        ("GET", 404, {}, 1),
        ("GET", 503, {"attempts": 1}, 1),
    ],
)
def test_repeated_is_what_may_be(
    method: str,
    status: int,
    options: dict[str, Any],
    tries: int,
    api: Webhook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    api.status = status
    outcome = call(api.url, method, **options)
    assert f"answered {status}" in failure(outcome)
    assert len(api.received) == tries
    keys = {request.headers.get("idempotency-key") for request in api.received}
    assert keys == {"r_0123456789abcdef" if "idempotency_header" in options else None}
    assert len(outcome.logs) == tries


def test_it_waits_as_the_api_asks_but_not_beyond_its_time(api: Webhook) -> None:
    api.status, api.reply_headers = 429, {"Retry-After": "3600"}
    began = time.monotonic()
    assert "answered 429" in failure(call(api.url))
    assert time.monotonic() - began < 5
    assert len(api.received) == 1


@contextlib.contextmanager
def raw_server(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that speaks whatever `serve` makes it speak."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    with connection:
                        serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            ended.set()
            with contextlib.suppress(OSError):
                socket.create_connection(listening.getsockname(), timeout=1).close()
            thread.join()


def test_an_answer_that_trickles_ends_at_the_deadline() -> None:
    def trickle(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"x: y\r\n")
            time.sleep(0.05)

    with raw_server(trickle) as url:
        began = time.monotonic()
        outcome = call(url, "POST", timeout_seconds=0.4)
    assert time.monotonic() - began < 3
    assert "did not answer within 0.4 s" in failure(outcome)
    assert "Whether it took effect is unknown" in failure(outcome)


def test_a_body_without_length_that_is_cut_off_is_no_success() -> None:
    def endless(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}")
        while connection.recv(1):
            pass

    with raw_server(endless) as url:
        assert "did not answer within 0.3 s" in failure(call(url, "POST", timeout_seconds=0.3))


def test_too_much_is_refused() -> None:
    def flood(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(OSError):
            connection.sendall(b"x" * (2 * outbound.LARGEST_ANSWER))

    with raw_server(flood) as url:
        assert "more than one MiB" in failure(call(url, "POST"))


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    outcome = call(f"http://127.0.0.1:{port}", "POST", attempts=2)
    assert failure(outcome) == f"127.0.0.1:{port} cannot be reached: Connection refused."
    assert len(outcome.logs) == 1, "nothing was sent, so it is tried again"


def test_https_is_checked(api: Webhook) -> None:
    outcome = call(api.url.replace("http:", "https:"), attempts=1)
    assert "no secure connection" in failure(outcome)


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"metods": ["GET"]}, ".metods: unknown key; remove it"),
    ({"methods": "GET"}, ".methods: must be a list of texts"),
    ({"token": {"heder": "X"}}, ".token.heder: unknown key"),
    ({"attempts": 0}, ".attempts: must be a number from 1 to 10"),
    ({"timeout_seconds": "1"}, ".timeout_seconds: must be a number"),
    ({"private": "yes"}, ".private: must be true or false"),
]


@pytest.mark.parametrize(("options", "message"), SETTINGS)
def test_settings_that_cannot_be_used_are_named(options: dict[str, Any], message: str, api: Webhook) -> None:
    assert f"hosts.{api.url[7:]}{message}" in failure(call(api.url, **options))
    assert api.received == []


def test_a_summary_that_does_not_fit_the_answer_fails_nothing(api: Webhook) -> None:
    outcome = call(api.url, summary="{nothing}")
    assert isinstance(outcome.result, Success)
    assert "{nothing} does not exist; known here: done" in str(outcome.result.summary)


def test_templates_reach_no_attributes_and_are_filled_once() -> None:
    assert (
        fill("{a} {b.c} {l.0} {n}", {"a": "{b}", "b": {"c": True}, "l": [1], "n": None}, "t") == "{b} true 1 "
    )
    with pytest.raises(SettingError, match=r"t: \{a.__class__\} does not exist"):
        fill("{a.__class__}", {"a": "x"}, "t")


IN_A_CHILD = """\
import json, sys
from port_webhook_handlers.sdk.invoke import run_request
run_request(json.loads(sys.stdin.read()), lambda message: print(json.dumps(message), flush=True))
"""


def test_an_interrupted_call_is_not_repeated(api: Webhook) -> None:
    """It is declared so, because a second POST could take effect a second time."""
    handler = handler_of(call_http_api)
    assert (handler.on_interrupt, handler.max_attempts) == ("fail", 1)
    api.gate.clear()
    request = {
        "run": {"id": "r_1", "action": "call_http_api", "deadline": time.time() + 60},
        "inputs": {"method": "POST", "url": api.url},
        "handler": handler.target,
        "secrets": {TOKEN: SECRET},
        "settings": {"hosts": {api.url[7:]: {"methods": ["POST"], "private": True, "plain": True}}},
    }
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        deadline = time.monotonic() + 20
        while not api.received:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        assert child.stdout.read() == b"", "no result was reported, so the listener reports the interruption"
    assert len(api.received) == 1
