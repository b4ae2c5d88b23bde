from __future__ import annotations

import asyncio
import threading

import pytest
from tests.agent.kit import Received, destination

from port_webhook_handlers.agent.core import RetryLaterError
from port_webhook_handlers.agent.destinations import AllowList, DestinationError, is_callable
from port_webhook_handlers.agent.messages import Invocation, Message
from port_webhook_handlers.agent.reports import delay
from port_webhook_handlers.agent.sinks.forward import ForwardSink
from port_webhook_handlers.port.http_client import HttpClient, SendError

ALLOWED = AllowList(
    ["internal", "ci.example.com:8443", "*.svc.cluster", "169.254.169.254", "[::1]", "127.0.0.1:80"]
)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("http://internal/x", "internal:80"),
        ("https://INTERNAL:9000/x?y=1", "internal:9000"),
        ("https://ci.example.com:8443/", "ci.example.com:8443"),
        ("http://a.b.svc.cluster/", "a.b.svc.cluster:80"),
        ("http://127.0.0.1/", "127.0.0.1:80"),
    ],
)
def test_what_is_listed_may_be_called(url: str, place: str) -> None:
    assert ALLOWED.place(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "http://other/",
        "https://ci.example.com/",
        "http://svc.cluster/",
        "http://notsvc.cluster/",
        "http://internal.evil.com/",
        "http://internal@evil.com/",
        "http://evil.com#@internal/",
        "http://evil.com\\@internal/",
        "http://in ternal/",
        "ftp://internal/",
        "//internal/",
        "http:///x",
        "http://internal:99999/",
        "http://169.254.169.254/latest",
        "http://metadata.google.internal/",
        "http://127.0.0.1:81/",
        "http://internal/\r\nx: y",
    ],
)
def test_the_rest_may_not(url: str) -> None:
    with pytest.raises(DestinationError):
        ALLOWED.place(url)


@pytest.mark.parametrize(
    ("address", "callable_"),
    [
        ("10.1.2.3", True),
        ("127.0.0.1", True),
        ("::1", True),
        ("fd12::1", True),
        ("93.184.216.34", True),
        ("169.254.169.254", False),
        ("169.254.0.1", False),
        ("fe80::1%eth0", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:a9fe:a9fe::1", False),
        ("fd00:ec2::254", False),
        ("100.100.100.200", False),
        ("168.63.129.16", False),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("224.0.0.1", False),
        ("no address", False),
    ],
)
def test_some_addresses_are_never_called(address: str, callable_: bool) -> None:
    assert is_callable(address) is callable_


def test_a_name_that_leads_to_such_an_address_is_not_connected_to() -> None:
    """The address is checked after the name was resolved, and it is the one that is connected to."""
    asked: list[str] = []

    def refuse(address: str) -> bool:
        asked.append(address)
        return False

    async def main(url: str) -> None:
        http = HttpClient(check_address=refuse)
        with pytest.raises(SendError) as caught:
            await http.request("POST", url, [], b"{}", 5)
        assert not caught.value.retryable
        assert "never called" in str(caught.value)
        http.close()

    with destination() as target:
        port = target.url.rpartition(":")[2]
        asyncio.run(main(f"http://localhost:{port}/x"))
        assert target.received == []
    assert "127.0.0.1" in asked


@pytest.mark.parametrize(("wanted", "least", "most"), [(None, 0.05, 0.1), (0.3, 0.3, 0.3), (9, 9, 9)])
def test_a_destination_may_ask_for_a_pause(wanted: float | None, least: float, most: float) -> None:
    assert least <= delay(1, 0.1, 30, wanted) <= most
    assert delay(40, 0.1, 30, None) <= 30


def test_what_is_tried_again_and_when() -> None:
    """`Retry-After` is honoured, a silent destination is given up after its time, a closed port is no answer."""

    async def attempt(url: str, seconds: float) -> RetryLaterError:
        http = HttpClient(connect_seconds=1)
        sink = ForwardSink(http, AllowList(["127.0.0.1"]), (), lambda: b"secret", list, seconds=seconds)
        message = Message("m", "r_1", "ship", "run r_1", Invocation({"url": url}), {"a": 1}, {"a": 1})
        with pytest.raises(RetryLaterError) as caught:
            await sink.deliver(message)
        http.close()
        return caught.value

    gate = threading.Event()
    with destination() as target:
        target.headers["retry-after"] = "7"

        def answer(request: Received) -> tuple[int, bytes]:
            return (429, b"") if request.path == "/busy" else (200 if gate.wait(5) else 500, b"")

        target.answer = answer
        assert asyncio.run(attempt(f"{target.url}/busy", 5)).wanted == 7
        silent = asyncio.run(attempt(f"{target.url}/silent", 0.1))
        gate.set()
    assert "within 0.1 s" in silent.summary
    closed = asyncio.run(attempt(target.url, 5))
    assert "was not reached" in closed.summary
    assert not silent.lasting
    assert not closed.lasting
