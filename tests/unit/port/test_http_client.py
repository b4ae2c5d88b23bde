"""What the HTTP client takes from the environment, for an agent and for the reports of a listener."""

from __future__ import annotations

import asyncio
import ssl
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from tests.agent import network
from tests.agent.kit import destination
from tests.unit.runtime.kit import FakePort, fake_port

from port_webhook_handlers.port import http_client
from port_webhook_handlers.port.async_client import PortApi
from port_webhook_handlers.port.client import PortApiError, PortError, PortNotFoundError
from port_webhook_handlers.port.http_client import HttpClient, SendError
from port_webhook_handlers.port.trust import authorities_pem, client_context
from port_webhook_handlers.runtime.claims import CurrentSecrets
from port_webhook_handlers.runtime.port_calls import LoopCalls
from port_webhook_handlers.runtime.secret_file import ApiCredentials

SECRET = "client-secret-0123456789"
NAMES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No authorities and proxies of whoever runs the tests."""
    for name in (*NAMES, *PROXIES, *map(str.lower, PROXIES)):
        monkeypatch.delenv(name, raising=False)
    http_client._proxy_for.cache_clear()
    yield
    http_client._proxy_for.cache_clear()


@pytest.fixture
def port() -> Iterator[FakePort]:
    with fake_port() as fake:
        yield fake


def secrets() -> CurrentSecrets:
    content = types.SimpleNamespace(api=ApiCredentials("id", SECRET))
    return cast(CurrentSecrets, types.SimpleNamespace(content=content))


def report(url: str) -> dict[str, Any]:
    """What a listener's outbox gets from Port."""

    async def main() -> dict[str, Any]:
        calls = LoopCalls(secrets(), url)
        try:
            return await calls.call("PATCH", "/v1/actions/runs/r_1", {"version": "v2"}, {"status": "SUCCESS"})
        finally:
            await calls.close()

    return asyncio.run(main())


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_reports_of_a_listener_trust_what_the_environment_names(
    name: str, tmp_path: Path, port: FakePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = network.authority(tmp_path / "own", "localhost")
    with network.tls_before(port.url, own.server) as (_, number):
        url = f"https://localhost:{number}"
        with pytest.raises(PortError, match=r"localhost is not trusted: .*REQUESTS_CA_BUNDLE"):
            report(url)
        assert port.calls == []
        monkeypatch.setenv(name, str(own.ca_file))
        assert report(url)["run"]["status"] == "SUCCESS"


def test_reports_of_a_listener_take_the_proxy(
    tmp_path: Path, port: FakePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that nobody but the proxy knows, through a tunnel."""
    own = network.authority(tmp_path / "own", "port.example")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(own.ca_file))
    with (
        network.tls_before(port.url, own.server) as place,
        network.proxy({"port.example:443": place}) as found,
    ):
        monkeypatch.setenv("HTTPS_PROXY", found.url)
        assert report("https://port.example")["run"]["status"] == "SUCCESS"


@pytest.mark.parametrize(
    "address", ["http://me:hidden@proxy:none", "http://me:hidden@[proxy", "socks5://me:hidden@proxy"]
)
def test_an_address_that_is_none_of_a_proxy_is_an_error_without_its_password(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    with pytest.raises(PortError, match=r"the proxy of the environment for https must be") as caught:
        report("https://port.example")
    assert "hidden" not in str(caught.value)


def test_an_unusable_file_of_authorities_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path in (empty, tmp_path / "missing.pem"):
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
        with pytest.raises(PortError, match=path.name):
            report("https://localhost:9")


def test_authorities_for_other_libraries_are_those_of_folders_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities = {
        name: network.authority(tmp_path / name, "x").ca_file for name in ("first", "second", "third", "own")
    }
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, name in zip(folders, ("first", "second"), strict=True):
        folder.mkdir()
        (folder / "0a1b2c3d.0").write_bytes(authorities[name].read_bytes())
        (folder / "README.pem").write_bytes(authorities["third"].read_bytes())
    monkeypatch.setenv("SSL_CERT_DIR", f"{folders[0]}:{tmp_path / 'missing'}")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folders[1]))
    text = authorities_pem(authorities["own"])
    held = {
        name: ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(path.read_text())) in text
        for name, path in authorities.items()
    }
    assert held == {"first": True, "second": True, "third": False, "own": True}


def test_an_image_without_certificates_trusts_those_of_certifi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setattr(ssl, "create_default_context", lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    assert client_context().get_ca_certs()


def test_errors_are_those_of_the_other_client_and_show_no_secret(port: FakePort) -> None:
    async def attempt() -> None:
        http = HttpClient()
        try:
            await PortApi(port.url, lambda: ("id", SECRET), http).call("GET", "/v1/x")
        finally:
            http.close()

    port.fault = lambda method, path: (404, {"X-Trace-Id": "t1"}, {"message": f"{SECRET} and token: none"})
    with pytest.raises(PortNotFoundError) as caught:
        asyncio.run(attempt())
    assert str(caught.value) == "Port answered 404 to GET /v1/x: *** and ***: none [trace t1]"
    port.fault = lambda method, path: (200, {}, cast(dict[str, Any], ["no object"]))
    with pytest.raises(PortError, match=r"GET /v1/x was not answered with a JSON object") as foreign:
        asyncio.run(attempt())
    assert not isinstance(foreign.value, PortApiError)


def test_a_listener_does_not_call_itself_an_agent() -> None:
    with destination() as target:
        target.answer = lambda request: (200, b"{}")
        with pytest.raises(PortError, match="without a token"):
            report(target.url)
        assert [request.headers["user-agent"] for request in target.received] == ["port-webhook-stack"]


def test_a_malformed_proxy_is_no_reply_for_an_agent_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:none")

    async def main() -> None:
        with pytest.raises(SendError, match="for http must be"):
            await HttpClient().request("POST", "http://hooks.example/x", [], b"{}", 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "origin", "path"),
    [
        ("http://a.example", "http://a.example", "/"),
        (
            "https://a.example:8443/v1/runs/r_1?version=v2",
            "https://a.example:8443",
            "/v1/runs/r_1?version=v2",
        ),
        ("https://u:p@a.example/x", "https://u:p@a.example", "/x"),
        ("https://a.example/x y/ü?q=a b", "https://a.example", "/x%20y/%C3%BC?q=a%20b"),
        ("https://a.example?q=1", "https://a.example", "/?q=1"),
        ("https://a.example/x?", "https://a.example", "/x"),
        ("https://a.example/x#part", "https://a.example", "/x"),
        ("https://a.example/x%2Fy", "https://a.example", "/x%2Fy"),
        ("https://[::1]:80/x", "https://[::1]:80", "/x"),
        ("http://a.example/x\r\nHost: b", "http://a.example", "/xHost:%20b"),
    ],
)
def test_what_of_a_url_is_sent(url: str, origin: str, path: str) -> None:
    assert http_client._split(url) == (origin, path)
    assert http_client._target(origin).secure is origin.startswith("https")


def test_each_origin_is_looked_at_once() -> None:
    http_client._target.cache_clear()
    for number in range(50):
        origin, _ = http_client._split(f"http://a.example/v1/actions/runs/r_{number}")
        http_client._target(origin)
        http_client._proxy_for(origin)
    assert http_client._target.cache_info().misses == 1
    assert http_client._proxy_for.cache_info().misses == 1
