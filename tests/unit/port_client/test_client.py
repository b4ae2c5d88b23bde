"""Port's client against a real HTTP server."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest
from tests.component.provider.fake_port import CLIENT_ID, CLIENT_SECRET, Call, FakePort, Reply, error, running

from port_webhook_handlers.port.client import (
    PortApiError,
    PortAuthenticationError,
    PortClient,
    PortConflictError,
    PortError,
    PortNotFoundError,
    PortRateLimitError,
    PortUnreachableError,
    PortValidationError,
    quote,
)

ACTIONS = "/v1/actions"


@pytest.fixture
def port() -> Iterator[FakePort]:
    with running() as fake:
        yield fake


@pytest.fixture
def client(port: FakePort) -> Iterator[PortClient]:
    with PortClient(port.url, CLIENT_ID, CLIENT_SECRET, backoff=0.001) as made:
        yield made


def test_import_is_cheap() -> None:
    code = (
        "import sys; import port_webhook_handlers.port.client; "
        "sys.exit(any(name in sys.modules for name in ('requests', 'urllib3', 'ssl')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_login_without_a_call_and_one_for_many(port: FakePort, client: PortClient) -> None:
    assert port.calls == []
    for _ in range(3):
        client.request("GET", ACTIONS)
    assert port.tokens == 1


def test_threads_share_one_login(port: FakePort, client: PortClient) -> None:
    together = threading.Barrier(8)

    def call(_: int) -> None:
        together.wait()
        client.request("GET", ACTIONS)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert port.tokens == 1


def test_a_token_is_renewed_before_it_expires(port: FakePort, client: PortClient) -> None:
    # Port hands out the rest of a token's life, which can be next to nothing.
    port.lifetime = 0.2
    client.request("GET", ACTIONS)
    time.sleep(0.15)  # within its life, but past half of it
    client.request("GET", ACTIONS)
    assert port.tokens == 2
    assert [call for call in port.calls if "GET" in call.method][-1].headers[
        "Authorization"
    ] == "Bearer token-2"


def test_a_refused_token_is_renewed_once(port: FakePort, client: PortClient) -> None:
    client.request("GET", ACTIONS)
    port.valid_token = "revoked"
    client.request("GET", ACTIONS)
    assert port.tokens == 2

    port.on(f"GET {ACTIONS}", *[error(401, "invalid_token")] * 5)
    with pytest.raises(PortAuthenticationError):
        client.request("GET", ACTIONS)
    assert port.tokens == 3
    assert len(port.script) == 3


def test_wrong_credentials_fail_at_once_and_show_no_secret(port: FakePort) -> None:
    def echo(call: Call) -> Reply:
        return error(401, "unauthorized", f"no client with secret {call.body['clientSecret']}")

    port.on("POST /v1/auth/access_token", echo)
    with (
        PortClient(port.url, CLIENT_ID, "wrong-secret") as client,
        pytest.raises(PortAuthenticationError) as failed,
    ):
        client.request("GET", ACTIONS)
    assert "wrong-secret" not in str(failed.value)
    assert "wrong-secret" not in repr(client)
    assert len(port.calls) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_transient_errors_are_repeated(port: FakePort, client: PortClient, status: int) -> None:
    port.on(f"GET {ACTIONS}", error(status, "internal_error"), error(status, "internal_error"))
    assert client.request("GET", ACTIONS)["ok"] is True
    assert port.calls_of("GET") == [f"GET {ACTIONS}"] * 3


def test_a_post_is_repeated_only_where_port_cannot_have_acted(port: FakePort, client: PortClient) -> None:
    body = {"identifier": "a"}
    port.on(f"POST {ACTIONS}", error(503, "unavailable"), error(429, "rate_limited"))
    client.request("POST", ACTIONS, json=body)

    port.on(f"POST {ACTIONS}", error(502, "bad_gateway"))
    with pytest.raises(PortApiError, match="502"):
        client.request("POST", ACTIONS, json={"identifier": "b"})

    port.on(f"POST {ACTIONS}", Reply(200, drop=True))
    with pytest.raises(PortUnreachableError) as lost:
        client.request("POST", ACTIONS, json={"identifier": "b"})
    assert lost.value.ambiguous


def test_a_conflict_after_a_lost_reply_says_so(port: FakePort, client: PortClient) -> None:
    def act_and_lose(call: Call) -> Reply:
        port.objects["actions/a"] = call.body
        return Reply(200, drop=True)

    port.on(f"POST {ACTIONS}", act_and_lose)
    with pytest.raises(PortConflictError) as conflict:
        client.request("POST", ACTIONS, json={"identifier": "a"}, repeatable=True)
    assert conflict.value.after_retry

    with pytest.raises(PortConflictError) as conflict:
        client.request("POST", ACTIONS, json={"identifier": "a"}, repeatable=True)
    assert not conflict.value.after_retry


def test_a_failed_login_never_makes_a_post_ambiguous(port: FakePort, client: PortClient) -> None:
    port.on("POST /v1/auth/access_token", error(500, "internal_error"), Reply(200, drop=True))
    client.request("POST", ACTIONS, json={"identifier": "a"})
    assert port.calls_of() == [f"POST {ACTIONS}"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "0.3"},
        {"x-ratelimit-reset": "0.3", "x-ratelimit-remaining": "0"},
        {"x-ratelimit-reset": "EPOCH"},
        {"Retry-After": "DATE"},
    ],
    ids=["delay", "reset as delay", "reset as epoch", "HTTP date"],
)
def test_waits_as_long_as_port_says(port: FakePort, client: PortClient, headers: dict[str, str]) -> None:
    # HTTP dates have whole seconds, so the moment is chosen to be at least 0.3 s ahead.
    due = time.time() + 1.3
    values = {"EPOCH": f"{time.time() + 0.3:.3f}", "DATE": formatdate(due, usegmt=True)}
    shown = {name: values.get(value, value) for name, value in headers.items()}
    port.on(f"GET {ACTIONS}", Reply(429, {"ok": False, "error": "rate_limited"}, shown))
    started = time.monotonic()
    client.request("GET", ACTIONS)
    assert time.monotonic() - started >= 0.25


@pytest.mark.parametrize("value", ["nan", "-1", "inf", "soon", ""])
def test_a_nonsensical_delay_is_ignored(port: FakePort, client: PortClient, value: str) -> None:
    port.on(f"GET {ACTIONS}", Reply(429, {"ok": False}, {"Retry-After": value}))
    client.request("GET", ACTIONS)
    assert len(port.calls_of("GET")) == 2


def test_gives_up_after_the_last_attempt(port: FakePort, client: PortClient) -> None:
    port.on(f"GET {ACTIONS}", *[error(429, "rate_limited", "slow down")] * 6)
    with pytest.raises(PortRateLimitError, match="slow down"):
        client.request("GET", ACTIONS)
    assert len(port.calls_of("GET")) == 6


def test_exactly_one_attempt_on_request(port: FakePort, client: PortClient) -> None:
    client.request("GET", ACTIONS)
    port.on(f"GET {ACTIONS}", error(500, "internal_error"))
    with pytest.raises(PortApiError):
        client.request("GET", ACTIONS, attempts=1)
    port.valid_token = "revoked"
    with pytest.raises(PortAuthenticationError):
        client.request("GET", ACTIONS, attempts=1)
    assert len(port.calls_of("GET")) == 3
    client.request("GET", ACTIONS, attempts=1)  # with a new token


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not_found", PortNotFoundError),
        (409, "identifier_taken", PortConflictError),
        (422, "invalid_request", PortValidationError),
        (403, "missing_permissions", PortApiError),
        (413, "bad_request", PortApiError),
    ],
)
def test_errors_carry_what_port_says(
    port: FakePort, client: PortClient, status: int, code: str, kind: type[PortApiError]
) -> None:
    port.on(f"GET {ACTIONS}", error(status, code, "it says why", resource="Action"))
    with pytest.raises(kind) as failed:
        client.request("GET", ACTIONS)
    failure = failed.value
    assert type(failure) is kind
    assert (failure.status, failure.code, failure.message, failure.trace_id) == (
        status,
        code,
        "it says why",
        "trace-1",
    )
    assert failure.details == {"resource": "Action"}
    for part in (str(status), code, "it says why", "trace-1", f"GET {ACTIONS}"):
        assert part in str(failure)
    assert len(port.calls_of("GET")) == 1


@pytest.mark.parametrize(
    ("message", "details", "field"),
    [
        ("body/trigger/userInputs must be object", {}, "trigger.userInputs"),
        ("body.invocationMethod.url is required", {}, "invocationMethod.url"),
        ("no", {"path": "/trigger/type"}, "trigger.type"),
        ("no", {"errors": [{"instancePath": "/title"}]}, "title"),
        ("the body is not valid", {}, ""),
    ],
)
def test_the_field_that_port_complains_about(message: str, details: dict[str, object], field: str) -> None:
    failure = PortValidationError(422, "invalid_request", message, details)
    assert failure.field == field
    assert field in str(failure)


def test_cancelling_ends_a_wait(port: FakePort) -> None:
    cancelled = threading.Event()
    with PortClient(port.url, CLIENT_ID, CLIENT_SECRET, cancelled=cancelled) as client:
        port.on(f"GET {ACTIONS}", Reply(429, {"ok": False}, {"Retry-After": "1e300"}))
        threading.Timer(0.1, cancelled.set).start()
        started = time.monotonic()
        with pytest.raises(PortUnreachableError, match="cancelled"):
            client.request("GET", ACTIONS)
        assert time.monotonic() - started < 5
        with pytest.raises(PortUnreachableError, match="cancelled"):
            client.request("GET", ACTIONS)


def test_bounded_concurrency(port: FakePort) -> None:
    def slow(call: Call) -> Reply | None:
        time.sleep(0.03)
        return None

    with PortClient(port.url, CLIENT_ID, CLIENT_SECRET, concurrency=2) as client:
        client.request("GET", ACTIONS)
        port.on(f"GET {ACTIONS}", *[slow] * 10)
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: client.request("GET", ACTIONS), range(10)))
    assert port.most_in_flight == 2


def test_connections_are_kept(port: FakePort, client: PortClient) -> None:
    client.request("GET", ACTIONS)
    before = threading.active_count()
    for _ in range(5):
        client.request("GET", ACTIONS)
    # The server has one thread for each connection.
    assert threading.active_count() == before


def test_a_moved_port_is_found_again(port: FakePort) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{unused.getsockname()[1]}"
    addresses = [dead, port.url + "/"]
    client = PortClient(
        lambda: addresses.pop(0) if len(addresses) > 1 else addresses[0],
        CLIENT_ID,
        CLIENT_SECRET,
        backoff=0.001,
    )
    with client:
        client.request("POST", ACTIONS, json={"identifier": "a"})
    assert "actions/a" in port.objects


def test_an_unreachable_port_is_named_in_one_line() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    client = PortClient(url, CLIENT_ID, CLIENT_SECRET, attempts=2, backoff=0.001)
    with client, pytest.raises(PortUnreachableError) as failed:
        client.request("GET", ACTIONS)
    assert url in str(failed.value)
    assert "refused" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert not failed.value.ambiguous


def test_a_silent_port_is_left_after_the_timeout(port: FakePort) -> None:
    release = threading.Event()

    def silent(call: Call) -> Reply | None:
        release.wait(5)
        return None

    port.on(f"GET {ACTIONS}", silent)
    client = PortClient(port.url, CLIENT_ID, CLIENT_SECRET, timeout=(1, 0.1), attempts=1)
    with client, pytest.raises(PortUnreachableError, match="did not answer"):
        client.request("GET", ACTIONS)
    release.set()


@pytest.mark.parametrize("body", ["<html>", [1], None], ids=["text", "list", "ok false"])
def test_something_that_is_not_port_is_an_error(port: FakePort, client: PortClient, body: object) -> None:
    client.request("GET", ACTIONS)
    port.on(f"GET {ACTIONS}", Reply(200, {"ok": False, "error": "odd"} if body is None else body))
    with pytest.raises(PortError):
        client.request("GET", ACTIONS)


def test_credentials_are_never_sent_to_a_redirect(port: FakePort, client: PortClient) -> None:
    port.on(f"GET {ACTIONS}", Reply(302, {"ok": False}, {"Location": port.url + "/elsewhere"}))
    with pytest.raises(PortApiError, match="302"):
        client.request("GET", ACTIONS)
    assert port.calls_of("GET") == [f"GET {ACTIONS}"]


def test_a_proxy_of_the_environment_is_not_used_for_the_loopback(
    port: FakePort, client: PortClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    client.request("GET", ACTIONS)
    assert port.calls_of("GET") == [f"GET {ACTIONS}"]


def test_identifiers_are_one_segment_of_a_path() -> None:
    assert quote("a/b c?d#é") == "a%2Fb%20c%3Fd%23%C3%A9"


def test_check_credentials_logs_in_once(port: FakePort, client: PortClient) -> None:
    port.on("POST /v1/auth/access_token", error(500, "internal_error"))
    client.check_credentials()
    client.check_credentials()
    assert port.tokens == 1
    with PortClient(port.url, CLIENT_ID, "wrong") as other, pytest.raises(PortAuthenticationError):
        other.check_credentials()
