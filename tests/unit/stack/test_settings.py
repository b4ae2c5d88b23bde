from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_stack.errors import SettingsError
from port_webhook_stack.settings import Settings, parse

PLANTED = "planted-secret-value"


def settings(
    values: Mapping[str, object] | None = None,
    *,
    provider: Mapping[str, str] | None = None,
    secret: tuple[str, ...] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Settings from plain values, as the engine would pass them."""
    texts = {
        f"port-webhook:{key}": value
        for key, value in ({"region": "local"} if provider is None else provider).items()
    }
    for key, value in (values or {}).items():
        texts[f"port-webhook-stack:{key}"] = value if isinstance(value, str) else json.dumps(value)
    keys = frozenset(f"port-webhook-stack:{key}" for key in secret)
    return parse("dev", texts, keys, environment or {}, Path("/project"))


def test_the_smallest_stack_file_is_enough() -> None:
    found = settings()
    assert found.is_local_port
    assert found.blueprints == "create"
    assert found.state_dir == Path("/project/.state/dev")
    assert found.listener.port == 0


def test_outside_local_blueprints_are_only_checked() -> None:
    provider = {"region": "us", "clientId": "id", "clientSecret": "s"}
    found = settings({"listener": {"publicUrl": "https://hooks.example.com/"}}, provider=provider)
    assert found.blueprints == "existing"
    assert found.listener.public_url == "https://hooks.example.com"


def test_credentials_come_from_the_environment_too() -> None:
    environment = {"PORT_REGION": "eu", "PORT_CLIENT_ID": "id", "PORT_CLIENT_SECRET": PLANTED}
    found = settings({"listener": {"publicUrl": "https://x.example"}}, provider={}, environment=environment)
    assert (found.region, found.client_id, found.client_secret) == ("eu", "id", PLANTED)


@pytest.mark.parametrize(
    ("values", "key", "part"),
    [
        ({"hanlders": ["a"]}, "port-webhook-stack:hanlders", "did you mean handlers?"),
        ({"target": "locl"}, "port-webhook-stack:target", "did you mean local?"),
        ({"handlers": "a"}, "port-webhook-stack:handlers", "a list of strings"),
        ({"handlers": ["a", 1]}, "port-webhook-stack:handlers[1]", "not a string"),
        ({"forceDestroy": "yes"}, "port-webhook-stack:forceDestroy", "true or false"),
        ({"listener": {"prot": 1}}, "port-webhook-stack:listener.prot", "did you mean port?"),
        ({"listener": {"port": 70000}}, "port-webhook-stack:listener.port", "1 to 65535"),
        ({"listener": {"port": True}}, "port-webhook-stack:listener.port", "1 to 65535"),
        ({"listener": {"publicUrl": "ftp://x"}}, "port-webhook-stack:listener.publicUrl", "https://"),
        ({"listener": {"toleranceSeconds": 5}}, "port-webhook-stack:listener.toleranceSeconds", "30 to 900"),
        (
            {"listener": {"sourceAddresses": "port"}},
            "port-webhook-stack:listener.sourceAddresses",
            "[port, 10",
        ),
        (
            {"listener": {"sourceAddresses": ["port", "10.0.0.1/8"]}},
            "port-webhook-stack:listener.sourceAddresses[1]",
            "port for the addresses",
        ),
        (
            {"listener": {"sourceAddresses": ["eu"]}},
            "port-webhook-stack:listener.sourceAddresses[0]",
            "no address or network",
        ),
        (
            {"listener": {"sourceAddresses": ["::1"], "trustedProxyHops": 11}},
            "port-webhook-stack:listener.trustedProxyHops",
            "0 to 10",
        ),
        (
            {"listener": {"trustedProxyHops": 1}},
            "port-webhook-stack:listener.trustedProxyHops",
            "sourceAddresses",
        ),
        ({"secrets": {"A": PLANTED}}, "port-webhook-stack:secrets.A", "pulumi config set --secret"),
        ({"secrets": {"A": {"fromEnv": "NOPE"}}}, "port-webhook-stack:secrets.A.fromEnv", "NOPE"),
        ({"secrets": {"A b": {"fromEnv": "HOME"}}}, "port-webhook-stack:secrets.A b", "letters, digits"),
        ({"signingSecrets": [PLANTED]}, "port-webhook-stack:signingSecrets[0]", "plain text"),
        ({"blueprints": "maybe"}, "port-webhook-stack:blueprints", "create or existing"),
    ],
)
def test_an_error_names_its_key_and_the_remedy(values: Mapping[str, object], key: str, part: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(values)
    assert str(caught.value).startswith(key)
    assert part in str(caught.value)
    assert PLANTED not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"signingSecrets": [{"valu": PLANTED}]}, "signingSecrets[0]"),
        ({"signingSecrets": [{"value": PLANTED, "notAfter": "soon"}]}, "signingSecrets[0].notAfter"),
        (
            {"signingSecrets": [{"value": PLANTED, "notAfter": "2027-01-01T00:00:00"}]},
            "signingSecrets[0].notAfter",
        ),
        ({"signingSecrets": [{"value": PLANTED, "until": "x"}]}, "signingSecrets[0].until"),
        ({"apiCredentials": {"clientId": "a"}}, "apiCredentials.clientSecret"),
        ({"decryptionKeys": [1]}, "decryptionKeys[0]"),
        ({"secrets": [PLANTED]}, "secrets"),
    ],
)
def test_errors_about_secrets_never_show_them(values: Mapping[str, object], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(values, secret=tuple(values))
    assert str(caught.value).startswith(f"port-webhook-stack:{key}")
    assert PLANTED not in str(caught.value)


def test_secret_values_are_taken_and_not_shown() -> None:
    found = settings(
        {
            "secrets": {"TOKEN": PLANTED},
            "signingSecrets": [{"value": PLANTED, "notAfter": "2027-01-01T00:00:00Z"}],
            "apiCredentials": {"clientId": "svc", "clientSecret": PLANTED},
        },
        secret=("secrets", "signingSecrets", "apiCredentials"),
    )
    assert found.secrets == {"TOKEN": PLANTED}
    assert found.signing_secrets[0].value == PLANTED
    assert PLANTED not in repr(found) + repr(found.signing_secrets) + repr(found.api_credentials)


@pytest.mark.parametrize(
    ("provider", "key"),
    [
        ({"region": "eup"}, "port-webhook:region"),
        ({"region": "eu", "clientId": "a"}, "port-webhook:clientSecret"),
        ({"region": "us", "clientSecret": "a"}, "port-webhook:clientId"),
    ],
)
def test_port_cannot_be_reached_without_region_and_credentials(provider: Mapping[str, str], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings({"listener": {"publicUrl": "https://x.example"}}, provider=provider)
    assert str(caught.value).startswith(key)


def test_a_local_listener_behind_a_real_port_needs_a_tunnel() -> None:
    with pytest.raises(SettingsError, match=r"listener\.publicUrl"):
        settings(provider={"region": "eu", "clientId": "a", "clientSecret": "b"})


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=30), max_size=5))
def test_any_configuration_is_taken_or_refused_by_name(values: dict[str, str]) -> None:
    error: SettingsError | None = None
    try:
        settings(values)
    except SettingsError as caught:
        error = caught
    assert error is None or error.key.startswith("port-webhook-stack:")
    assert error is not None or not values


def test_the_word_port_stands_for_the_addresses_that_port_publishes() -> None:
    listed = {
        "listener": {
            "sourceAddresses": ["10.0.0.0/8", "port", "1.2.3.4", "10.0.0.0/8"],
            "trustedProxyHops": 2,
        }
    }
    found = settings({**listed, "target": "local"}).listener
    assert found.source_addresses == ("10.0.0.0/8", "127.0.0.0/8", "::1/128", "1.2.3.4/32")
    assert found.trusted_proxy_hops == 2
    for region, address in (("eu", "34.252.219.131"), ("us", "44.193.148.179")):
        provider = {"region": region, "clientId": "id", "clientSecret": "secret"}
        values = {"listener": {**listed["listener"], "publicUrl": "https://hooks.example.com"}}
        addresses = settings(values, provider=provider).listener.source_addresses
        assert address in addresses
        assert len(addresses) == 5
    with pytest.raises(SettingsError, match=r"sourceAddresses\[1\]: .*region"):
        settings(
            {"listener": {**listed["listener"], "publicUrl": "https://hooks.example.com"}},
            provider={"baseUrl": "https://api.example.com", "clientId": "id", "clientSecret": "secret"},
        )
    assert settings({}).listener.source_addresses == ()
