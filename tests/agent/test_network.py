"""Proxies of the environment and authorities of one's own: Port's API, deliveries, brokers."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.agent import network
from tests.agent.kit import AgentProcess, Destination, poll
from tests.unit.runtime.kit import FakePort

from port_webhook_handlers.agent.config import AgentConfig, AgentLimits, PollingSettings
from port_webhook_handlers.port import http_client

pytestmark = pytest.mark.agent

SECRET = "organisation-secret-0123456789-0123456789"
PORT, HOOKS, STRANGE, PLAIN = "port.example", "hooks.example:8443", "strange.example", "plain.example:81"
PASSWORD = "p%40ss"
CREDENTIALS = "Basic " + base64.b64encode(b"agent:p@ss").decode()


def offer(port: FakePort, urls: dict[str, str]) -> None:
    """Lets a claim find a synchronous run for each URL, once."""
    left = dict(urls)

    def answer(method: str, path: str) -> Any:
        if path != "/v1/actions/runs/claim-pending":
            return (200, {}, {"ackedCount": 1}) if path.endswith("/ack") else None
        runs = [
            {"id": run_id, "payload": {"url": url, "agent": True, "synchronized": True, "body": {}}}
            for run_id, url in left.items()
        ]
        left.clear()
        return 200, {}, {"runs": runs}

    port.fault = answer


def config(**changes: Any) -> AgentConfig:
    values: dict[str, Any] = {
        "source": "polling",
        "port_base_url": f"https://{PORT}",
        "allowed_hosts": (HOOKS, STRANGE, PLAIN, "away.example"),
        "polling": PollingSettings(interval_seconds=0.05, max_backoff_seconds=0.1),
        "limits": AgentLimits(retry_seconds=0.02, attempt_seconds=5, delivery_seconds=0.2),
        "run_logs": False,
        **changes,
    }
    return AgentConfig(**values)


@pytest.fixture
def company(tmp_path: Path, target: Destination, port: FakePort) -> Iterator[tuple[network.Proxy, Path]]:
    """A proxy with a password, behind which Port and a destination are known; and the authority of both."""
    own = network.authority(tmp_path / "own", PORT, "hooks.example")
    strange = network.authority(tmp_path / "strange", STRANGE)
    with ExitStack() as stack:
        names = {
            f"{PORT}:443": stack.enter_context(network.tls_before(port.url, own.server)),
            HOOKS: stack.enter_context(network.tls_before(target.url, own.server)),
            f"{STRANGE}:443": stack.enter_context(network.tls_before(target.url, strange.server)),
            PLAIN: ("127.0.0.1", urlsplit(target.url).port or 0),
        }
        yield stack.enter_context(network.proxy(names, CREDENTIALS)), own.ca_file


def with_password(found: network.Proxy, password: str = PASSWORD) -> str:
    return found.url.replace("http://", f"http://agent:{password}@")


def test_everything_goes_through_the_proxy_and_trusts_the_own_authority(
    tmp_path: Path, company: tuple[network.Proxy, Path], target: Destination, port: FakePort
) -> None:
    found, ca_file = company
    offer(
        port,
        {
            "r_tls": f"https://{HOOKS}/a",
            "r_plain": f"http://{PLAIN}/b",
            "r_strange": f"https://{STRANGE}/c",
            "r_away": "http://away.example/d",
        },
    )
    environment = {
        "HTTPS_PROXY": with_password(found),
        "http_proxy": with_password(found),
        "NO_PROXY": "away.example",
    }
    agent = AgentProcess(tmp_path / "agent", config(ca_file=ca_file), "id", SECRET, environment)
    try:
        ended = {
            name: poll(lambda name=name: port.ended(name), message=agent.log)  # type: ignore[misc]
            for name in ("r_tls", "r_plain", "r_strange", "r_away")
        }
        assert agent.ready()["ready"]
        assert PASSWORD not in agent.log
        assert CREDENTIALS not in agent.log
    finally:
        agent.kill()
    assert [ended[name]["status"] for name in ("r_tls", "r_plain")] == ["SUCCESS", "SUCCESS"]
    assert sorted(request.path for request in target.received) == ["/a", "/b"]
    assert "proxy-authorization" not in {name for request in target.received for name in request.headers}
    # Who issued this one is nobody that the agent knows, proxy or not.
    assert "not trusted" in ended["r_strange"]["summary"]
    # And this one is reached without the proxy, or not at all.
    assert "cannot be resolved" in ended["r_away"]["summary"]
    asked = {(method, place) for method, place, _ in found.asked}
    assert asked == {
        ("CONNECT", f"{PORT}:443"),
        ("CONNECT", HOOKS),
        ("CONNECT", f"{STRANGE}:443"),
        ("POST", f"http://{PLAIN}/b"),
    }


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_an_authority_of_the_environment_and_a_proxy_for_all(
    tmp_path: Path, company: tuple[network.Proxy, Path], target: Destination, port: FakePort, name: str
) -> None:
    """The variables that the image of Port's own agent sets; the proxy stands in ALL_PROXY."""
    found, ca_file = company
    offer(port, {"r_1": f"https://{HOOKS}/a", "r_strange": f"https://{STRANGE}/c"})
    environment = {"ALL_PROXY": with_password(found), name: str(ca_file)}
    verify = name == "SSL_CERT_FILE"
    agent = AgentProcess(tmp_path / "agent", config(verify_tls=verify), "id", SECRET, environment)
    try:
        assert poll(lambda: port.ended("r_1"), message=agent.log)["status"] == "SUCCESS"
        # Destinations may go unchecked; Port's API never does.
        strange = poll(lambda: port.ended("r_strange"), message=agent.log)
        assert strange["status"] == ("FAILURE" if verify else "SUCCESS")
    finally:
        agent.kill()


@pytest.mark.parametrize(
    ("password", "trusted", "problem"),
    [
        (PASSWORD, False, f"the certificate of {PORT} is not trusted"),
        ("wrong", True, "the proxy answered 407; check user and password"),
        ("", True, "must be an address such as http://proxy:3128"),
    ],
    ids=["authority", "password", "address"],
)
def test_readiness_says_why_port_is_not_reached(
    tmp_path: Path, company: tuple[network.Proxy, Path], password: str, trusted: bool, problem: str
) -> None:
    found, ca_file = company
    address = with_password(found, password) if password else "socks5://127.0.0.1:1080"
    agent = AgentProcess(
        tmp_path / "agent",
        config(ca_file=ca_file if trusted else None),
        "id",
        SECRET,
        {"HTTPS_PROXY": address},
    )
    try:
        status = poll(lambda: (found := agent.ready())["problem"] and problem in found["problem"] and found)
        assert status["ready"] is False
        assert PASSWORD not in json.dumps(status) + agent.log
    finally:
        agent.kill()


@pytest.mark.parametrize(
    ("url", "used"),
    [
        ("https://hooks.example/x", True),
        ("https://inside.example/x", False),
        ("https://a.inside.example:8443/x", False),
        ("https://notinside.example/x", True),
        ("https://10.1.2.3/x", False),
        ("https://11.1.2.3/x", True),
        ("https://[fd00::1]/x", False),
        ("https://port.example:444/x", False),
        ("https://port.example/x", True),
        ("https://127.0.0.1/x", False),
        ("https://localhost:1/x", False),
    ],
)
def test_what_no_proxy_exempts(monkeypatch: pytest.MonkeyPatch, url: str, used: bool) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "inside.example, 10.0.0.0/8,fd00::/8,port.example:444,not/a/network")
    http_client._proxy_for.cache_clear()
    try:
        assert (http_client._proxy_for(url) is not None) is used
    finally:
        http_client._proxy_for.cache_clear()
