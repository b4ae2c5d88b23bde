"""The same objects against local Port, which was written from Port's documentation alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.component.provider.test_objects import ACTION, AUTOMATION, BLUEPRINT, ENTITY, SECRET, Lines

from port_webhook_handlers.port.client import PortClient, PortNotFoundError
from port_webhook_localport import control
from port_webhook_stack.port.configuration import LOCAL, Configuration
from port_webhook_stack.port.handler import Context, ProviderError
from port_webhook_stack.port.provider import handler


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PortClient]:
    home = tmp_path_factory.mktemp("state") / "localport"
    endpoint = control.ensure_running(home)
    try:
        with PortClient(endpoint.url, endpoint.client_id, endpoint.client_secret) as made:
            yield made
    finally:
        control.stop(home)


@pytest.fixture
def ctx(client: PortClient) -> Context:
    config = Configuration(LOCAL, "id", "secret", Path("/state"), client.base_url)
    return Context(config, client, Lines())


# In the order of creation; the second body is what an update makes of it.
LIVES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (
        "Blueprint",
        {**BLUEPRINT, "forceDestroy": True},
        {**BLUEPRINT, "forceDestroy": True, "description": "d"},
    ),
    ("Entity", ENTITY, {**ENTITY, "properties": {}, "title": "Cart"}),
    ("Secret", SECRET, {**SECRET, "description": "d"}),
    ("Action", ACTION, {**ACTION, "title": "T", "identifier": "release"}),
    ("Automation", AUTOMATION, {**AUTOMATION, "publish": True}),
    (
        "ActionPermissions",
        {"action": "release", "execute": {"roles": ["Admin"]}},
        {"action": "release", "execute": {"roles": ["Admin", "Member"], "ownedByTeam": True}},
    ),
]


def test_life_of_every_object(ctx: Context, client: PortClient) -> None:
    made = []
    for name, first, second in LIVES:
        kind = handler(f"port-webhook:index:{name}")
        assert kind.check(ctx, first, {}).failures == []
        created = kind.create(ctx, first, False)
        seen = kind.read(ctx, created.id, created.outputs, first)
        assert seen is not None
        assert (seen.inputs, seen.outputs) == (first, created.outputs)

        assert kind.diff(ctx, created.id, created.outputs, second).changes
        state = kind.update(ctx, created.id, created.outputs, second, False)
        assert not kind.diff(ctx, created.id, state, second).changes
        seen = kind.read(ctx, created.id, state, second)
        assert seen is not None
        assert (seen.inputs, seen.outputs) == (second, state)

        if name not in ("Entity", "ActionPermissions"):
            imported = kind.read(ctx, seen.id, {}, {})
            assert imported is not None
            assert not kind.diff(ctx, seen.id, imported.outputs, imported.inputs).changes
        made.append((kind, seen.id, state))

    # A run has made an entity, which goes with its blueprint.
    client.request("POST", "/v1/blueprints/service/entities", json={"identifier": "made-by-a-run"})
    ctx.memory.clear()
    blueprint, id, state = made[0]
    with pytest.raises(ProviderError, match="made-by-a-run"):
        blueprint.delete(ctx, id, {**state, "forceDestroy": False})
    for kind, id, state in reversed(made):
        kind.delete(ctx, id, state)
    for path in ("blueprints/service", "actions/release", "actions/react", "organization/secrets/TOKEN"):
        with pytest.raises(PortNotFoundError):
            client.request("GET", f"/v1/{path}")
