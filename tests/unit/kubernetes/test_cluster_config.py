"""The configuration that the processes in a cluster mount."""

import json
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.config import ConfigError, Limits
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.kubernetes.config import ClusterConfig, load

CONFIG = ClusterConfig(
    port_base_url="https://api.getport.io",
    namespace="hooks",
    runs_namespace="hooks-runs",
    source_addresses=("3.251.12.205", "10.0.0.0/8"),
    trusted_proxy_hops=1,
    limits=Limits(max_children=3),
    settings={"*": {"a": 1}},
)


def test_round_trip(tmp_path: Path) -> None:
    (tmp_path / names.CONFIG_FILE).write_text(CONFIG.dumps())
    assert load(tmp_path) == CONFIG


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"source_addresses": ["port"]}, "source_addresses"),
        ({"trusted_proxy_hops": "1"}, "trusted_proxy_hops"),
        ({"colour": 1}, "must be an object with the keys"),
    ],
)
def test_wrong_value_is_named(tmp_path: Path, change: dict[str, object], named: str) -> None:
    body = json.loads(CONFIG.dumps())
    (tmp_path / names.CONFIG_FILE).write_text(json.dumps({**body, **change}))
    with pytest.raises(ConfigError, match=named):
        load(tmp_path)
