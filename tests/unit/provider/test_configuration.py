"""Which Port, as whom: from the stack's configuration and the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.component.provider.fake_port import CLIENT_ID, CLIENT_SECRET, FakePort, error, running

from port_webhook_stack.port import configuration
from port_webhook_stack.port.handler import UNKNOWN, CheckResult, Kind, ProviderError
from port_webhook_stack.port.provider import Provider

URN = "urn:pulumi:prod::project::pulumi:providers:port-webhook::default"


@pytest.fixture
def port() -> Iterator[FakePort]:
    with running() as fake:
        yield fake


def check(
    news: Mapping[str, Any],
    olds: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> CheckResult:
    provider = Provider(environment or {}, Path("/project"))
    try:
        return provider.check_config(URN, dict(news), dict(olds or {}))
    finally:
        provider.close()


def reasons(result: CheckResult) -> dict[str, str]:
    return {failure.property: failure.reason for failure in result.failures}


def test_the_organisation_is_asked_for_once(port: FakePort) -> None:
    given = {"baseUrl": port.url, "clientId": CLIENT_ID, "clientSecret": CLIENT_SECRET}
    first = check(given)
    assert not first.failures
    assert first.inputs == {**given, "stateDir": ".state/prod", "organization": "org_1"}
    assert port.calls_of() == ["GET /v1/organization"]

    port.calls.clear()
    assert check(given, first.inputs).inputs == first.inputs
    assert check({**given, "clientSecret": "rotated"}, first.inputs).inputs["organization"] == "org_1"
    assert port.calls == []


@pytest.mark.parametrize("changed", ["clientId", "baseUrl", "organization"])
def test_the_organisation_is_asked_for_again_if_it_may_be_another(port: FakePort, changed: str) -> None:
    given = {"baseUrl": port.url, "clientId": CLIENT_ID, "clientSecret": CLIENT_SECRET}
    olds = {
        **given,
        "organization": "org_0",
        changed: "" if changed == "organization" else "http://127.0.0.1:1",
    }
    assert check(given, olds).inputs["organization"] == "org_1"


def test_the_environment_stands_in_and_its_secret_is_not_recorded(port: FakePort) -> None:
    environment = {
        "PORT_BASE_URL": port.url,
        "PORT_CLIENT_ID": CLIENT_ID,
        "PORT_CLIENT_SECRET": CLIENT_SECRET,
    }
    result = check({}, environment=environment)
    assert not result.failures
    assert result.inputs == {
        "baseUrl": port.url,
        "clientId": CLIENT_ID,
        "organization": "org_1",
        "stateDir": ".state/prod",
    }


def test_configuration_wins_over_the_environment_as_a_whole(port: FakePort) -> None:
    environment = {"PORT_REGION": "us", "PORT_CLIENT_ID": "other"}
    result = check(
        {"baseUrl": port.url, "clientId": CLIENT_ID, "clientSecret": CLIENT_SECRET}, environment=environment
    )
    assert not result.failures
    assert "region" not in result.inputs
    assert result.inputs["clientId"] == CLIENT_ID


@pytest.mark.parametrize(
    ("given", "key", "parts"),
    [
        ({"region": "usa"}, "region", ["'usa'", "did you mean us?", "eu, us, local"]),
        ({"clientID": "x"}, "clientID", ["did you mean clientId?", "pulumi config rm port-webhook:clientID"]),
        (
            {"region": "eu", "baseUrl": "https://api.us.getport.io"},
            "baseUrl",
            ["contradicts port-webhook:region"],
        ),
        (
            {"region": "local", "baseUrl": "https://api.getport.io"},
            "baseUrl",
            ["contradicts port-webhook:region"],
        ),
        ({"baseUrl": "api.getport.io"}, "baseUrl", ["write it like https://api.getport.io"]),
        ({"baseUrl": "http://port.example.com"}, "baseUrl", ["unencrypted", "https://"]),
        (
            {"region": "local", "clientId": "x"},
            "clientId",
            ["local", "pulumi config rm port-webhook:clientId"],
        ),
        ({"region": UNKNOWN}, "region", ["must be known"]),
        ({"region": ""}, "region", ["non-empty string"]),
        ({"stateDir": 1}, "stateDir", ["non-empty string"]),
        (
            {"region": "us", "clientId": "x"},
            "clientSecret",
            ["pulumi config set --secret port-webhook:clientSecret", "PORT_CLIENT_SECRET"],
        ),
        ({}, "clientId", ["pulumi config set port-webhook:clientId", "PORT_CLIENT_ID"]),
    ],
)
def test_errors_name_the_key_and_the_remedy(given: dict[str, Any], key: str, parts: list[str]) -> None:
    found = reasons(check(given))
    assert key in found
    for part in parts:
        assert part in found[key]


def test_refused_credentials_and_an_unreachable_port(port: FakePort) -> None:
    given = {"baseUrl": port.url, "clientId": CLIENT_ID, "clientSecret": "wrong-secret"}
    found = reasons(check(given))
    assert "port-webhook:clientSecret" in found["clientId"]
    assert "wrong-secret" not in str(found)

    port.on("GET /v1/organization", error(403, "missing_permissions", "your address is not allowed"))
    found = reasons(check({**given, "clientSecret": CLIENT_SECRET}))
    assert "your address is not allowed" in found["baseUrl"]


def test_both_names_of_a_region_are_one_service() -> None:
    olds = {"region": "eu", "clientId": "a", "organization": "o"}
    assert configuration.diff(olds, {**olds, "region": None, "baseUrl": "https://api.port.io"}).replaces == []


@pytest.mark.parametrize(
    ("change", "replaces"),
    [
        ({"region": "us"}, ["region"]),
        ({"region": "local"}, ["region"]),
        ({"organization": "other"}, ["organization"]),
        ({"clientId": "b"}, []),
        ({"clientSecret": "b"}, []),
        ({"stateDir": "b"}, []),
        ({}, []),
    ],
)
def test_only_another_port_or_organisation_replaces(change: dict[str, str], replaces: list[str]) -> None:
    olds = {"region": "eu", "clientId": "a", "clientSecret": "a", "stateDir": "a", "organization": "o"}
    result = configuration.diff(olds, {**olds, **change})
    assert list(result.replaces) == replaces
    assert dict(result.changes) == dict.fromkeys(change, Kind.UPDATE)


def test_a_local_port_with_other_credentials_is_another_one() -> None:
    olds = {"region": "local", "clientId": "a", "stateDir": ".state/a"}
    assert configuration.diff(olds, {**olds, "clientId": "b"}).replaces == ["clientId"]
    assert configuration.diff(olds, {**olds, "stateDir": ".state/b"}).replaces == []


def test_an_organisation_that_was_never_recorded_replaces_nothing() -> None:
    olds = {"region": "eu", "clientId": "a"}
    assert configuration.diff(olds, {**olds, "organization": "o"}).replaces == []


def test_configuring_takes_the_secret_from_the_environment() -> None:
    inputs = {"region": "eu", "clientId": "a", "stateDir": ".state/x"}
    made = configuration.configure(
        inputs, environment={"PORT_CLIENT_SECRET": "s3cr3t"}, project=Path("/project")
    )
    assert (made.base_url, made.client_secret) == ("https://api.getport.io", "s3cr3t")
    assert made.state_dir == Path("/project/.state/x")
    assert "s3cr3t" not in repr(made)
    with pytest.raises(ProviderError, match="PORT_CLIENT_SECRET"):
        configuration.configure(inputs, environment={}, project=Path("/project"))
