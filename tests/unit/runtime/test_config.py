import json
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.config import ConfigError, Limits, ListenerConfig, parse

CONFIG = ListenerConfig(
    bundle=Path("/b"),
    secrets_file=Path("/s"),
    secrets_key_file=Path("/k"),
    port_endpoint_file=Path("/e"),
    limits=Limits(max_children=2),
    source_addresses=("10.0.0.0/8", "::1"),
    trusted_proxy_hops=2,
    settings={"*": {"a": 1, "b": 1}, "deploy": {"b": 2}},
)


def test_round_trip() -> None:
    assert parse(CONFIG.dumps()) == CONFIG


def test_settings_of_a_route_override_common_ones() -> None:
    assert CONFIG.handler_settings("deploy") == {"a": 1, "b": 2}
    assert CONFIG.handler_settings("other") == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"colour": 1}, "listener.colour"),
        ({"port": "80"}, "listener.port"),
        ({"port": 70000}, "listener.port"),
        ({"port": True}, "listener.port"),
        ({"host": ""}, "listener.host"),
        ({"source_addresses": "10.0.0.0/8"}, "listener.source_addresses"),
        ({"source_addresses": ["port"]}, "listener.source_addresses"),
        ({"source_addresses": [1]}, "listener.source_addresses"),
        ({"trusted_proxy_hops": 99}, "listener.trusted_proxy_hops"),
        ({"trusted_proxy_hops": True}, "listener.trusted_proxy_hops"),
        ({"bundle": "relative"}, "listener.bundle"),
        ({"public_url": "http://[x"}, "listener.public_url"),
        ({"bundle": None}, "listener.bundle"),
        ({"port_base_url": "https://api.getport.io"}, "port_endpoint_file"),
        ({"public_url": "example.com"}, "listener.public_url"),
        ({"limits": {"max_children": 0}}, "listener.limits.max_children"),
        ({"limits": {"max_children": 1.5}}, "listener.limits.max_children"),
        ({"limits": {"speed": 1}}, "listener.limits.speed"),
        ({"settings": {"deploy": 1}}, "listener.settings.deploy"),
    ],
)
def test_wrong_value_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse(json.dumps({**CONFIG.to_json(), **change}))
