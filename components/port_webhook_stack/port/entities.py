"""Entities: only what is declared counts, because runs and integrations fill in the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from port_webhook_handlers.port.client import PortNotFoundError, quote
from port_webhook_stack.port.handler import UNKNOWN, Context, Failure, Properties, ProviderError, ReadResult
from port_webhook_stack.port.normalise import Body, canonical_entity
from port_webhook_stack.port.objects import (
    ANY,
    BOOLEAN,
    ID_SEPARATOR,
    MAP,
    OWNERSHIP,
    STRING,
    PortObject,
    schema_of,
)


class Entity(PortObject):
    """`port-webhook:index:Entity`; its id is `blueprint|identifier`."""

    kind = "entity"
    control = PortObject.control | {"blueprint"}
    identity = ("blueprint", "identifier")
    replacing = frozenset(identity)
    identifiers = re.compile(r"(?!\.{1,2}$)[\w@.+:\\/=-]{1,1000}")
    fetch_params: ClassVar[Mapping[str, str] | None] = {"exclude_calculated_properties": "true"}
    subset = True
    schema = schema_of(
        "An entity of Port. Only the properties and relations that are declared are managed.",
        {
            "blueprint": {**STRING, "description": "Identifier of its blueprint."},
            "identifier": STRING,
            "title": STRING,
            "icon": STRING,
            "team": {**ANY, "description": "A team or a list of teams."},
            "properties": MAP,
            "relations": MAP,
            **OWNERSHIP,
        },
        ["blueprint", "identifier"],
        {"adopted": BOOLEAN},
    )

    def canonical(self, body: Mapping[str, Any]) -> Body:
        return canonical_entity(body)

    def item(self, id: str) -> str:
        blueprint, _, identifier = id.partition(ID_SEPARATOR)
        return f"/v1/blueprints/{quote(blueprint)}/entities/{quote(identifier)}"

    def collection(self, inputs: Properties) -> str:
        return f"/v1/blueprints/{quote(str(inputs['blueprint']))}/entities"

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        found = [*self.missing(inputs, "blueprint", "identifier"), *self.misnamed(inputs)]
        blueprint = inputs.get("blueprint")
        if blueprint is not UNKNOWN and isinstance(blueprint, str) and ID_SEPARATOR in blueprint:
            found.append(Failure("blueprint", f"holds {ID_SEPARATOR!r}, which no blueprint's identifier may"))
        return found

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        if state:
            return super().read(ctx, id, state, inputs)
        blueprint, separator, identifier = id.partition(ID_SEPARATOR)
        if not (blueprint and separator and identifier):
            raise ProviderError(
                f"{id!r} is no id of an entity: write it as <blueprint>{ID_SEPARATOR}<identifier>"
            )
        return super().read(ctx, id, state, {**inputs, "blueprint": blueprint})

    def write(self, ctx: Context, id: str, olds: Properties, news: Properties) -> None:
        try:
            ctx.port.request("PATCH", self.item(id), json=_patch(self.body(olds), self.body(news)))
        except PortNotFoundError:
            ctx.log.warning(f"entity {id} was deleted outside of this program, so it is created again")
            ctx.port.request("POST", self.collection(news), json=self.body(news), repeatable=True)


def _patch(old: Body, new: Body) -> Body:
    """The new values, and null for what is no longer declared."""
    patch: Body = {key: new.get(key) for key in {**old, **new} if key != "identifier"}
    for part in ("properties", "relations"):
        if part in patch:
            before, after = old.get(part) or {}, new.get(part) or {}
            patch[part] = {key: after.get(key) for key in {**before, **after}}
    return patch
