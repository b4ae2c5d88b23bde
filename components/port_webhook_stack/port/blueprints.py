"""Blueprints: owned, adopted (merged, never replaced) or only checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.port.client import PortApiError, PortNotFoundError, quote
from port_webhook_stack.port.handler import (
    UNKNOWN,
    Context,
    CreateResult,
    Failure,
    Properties,
    ProviderError,
    ReadResult,
)
from port_webhook_stack.port.normalise import Body, canonical_blueprint
from port_webhook_stack.port.objects import BOOLEAN, MAP, OWNERSHIP, STRING, PortObject, schema_of

_POLL_SECONDS = 0.5
_MIGRATION_FAILED = frozenset({"FAILURE", "FAILED", "CANCELLED"})
_MIGRATION_DONE = frozenset({"COMPLETED", "SUCCESS", "DONE"})
_SHOWN_ENTITIES = 5

_BODY: Mapping[str, Any] = {
    "identifier": STRING,
    "title": STRING,
    "icon": STRING,
    "description": STRING,
    "schema": {**MAP, "description": "Properties, and which of them are required."},
    "relations": MAP,
    "mirrorProperties": MAP,
    "calculationProperties": MAP,
    "aggregationProperties": MAP,
    "changelogDestination": MAP,
    "teamInheritance": MAP,
    "ownership": MAP,
}


class Blueprint(PortObject):
    """`port-webhook:index:Blueprint`."""

    kind = "blueprint"
    control = PortObject.control | {"manage", "forceDestroy"}
    identifiers = re.compile(r"(?!\.{1,2}$)[\w@.+:\\/-]{1,100}")
    replacing = frozenset({"identifier"})
    schema = schema_of(
        "A blueprint of Port.",
        {
            **_BODY,
            "manage": {
                **STRING,
                "description": "create (the default), or existing: only checked, never written and never deleted.",
            },
            "forceDestroy": {**BOOLEAN, "description": "Delete all its entities together with it."},
            **OWNERSHIP,
        },
        ["identifier"],
        {"adopted": BOOLEAN},
    )

    def canonical(self, body: Mapping[str, Any]) -> Body:
        return canonical_blueprint(body)

    def item(self, id: str) -> str:
        return f"/v1/blueprints/{quote(id)}"

    def collection(self, inputs: Properties) -> str:
        return "/v1/blueprints"

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        manage = inputs.get("manage", "create")
        if manage is UNKNOWN or manage not in ("create", "existing"):
            return [Failure("manage", "must be create or existing")]
        if manage == "existing":
            return [*self.missing(inputs, "identifier"), *self.misnamed(inputs)]
        return [*self.missing(inputs, "identifier", "title", "schema"), *self.misnamed(inputs)]

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if inputs.get("manage") != "existing":
            return super().create(ctx, inputs, preview)
        id = self._known_id(inputs)
        if id:
            self._require(ctx, id, inputs)
        return CreateResult(id, {**inputs, "adopted": False})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        if state.get("manage") == "existing":
            # Others own it: what it has beside our declaration is none of our business.
            result = super().read(ctx, id, {**state, "adopted": True}, inputs)
            return result and ReadResult(result.id, {**result.outputs, "adopted": False}, result.inputs)
        return super().read(ctx, id, state, inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        if news.get("manage") == "existing":
            self._require(ctx, self.id_of(news), news)
            return {**news, "adopted": False}
        if olds.get("manage") == "existing":
            if not preview:
                with self.reporting(id):
                    self.write_adopted(ctx, self.id_of(olds), news)
                ctx.memory.add((self.kind, self.id_of(news)))
            return {**news, "adopted": True}
        return super().update(ctx, id, olds, news, preview)

    def write(self, ctx: Context, id: str, olds: Properties, news: Properties) -> None:
        if olds.get("adopted") is True:
            self.write_adopted(ctx, id, news)
            return
        # A PUT drops what it does not send; what was added in Port and is in no definition is not ours to drop.
        present = self.fetch(ctx, id) or {}
        foreign = {
            key: value
            for key, value in present.items()
            if key not in olds and key not in news and value is not None
        }
        super().write(ctx, id, olds, {**foreign, **news})

    def write_adopted(self, ctx: Context, id: str, inputs: Properties) -> None:
        """Merge our definition into a blueprint that others have made."""
        ctx.port.request("PATCH", self.item(id), json=self.body(inputs))

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        if state.get("manage") != "existing":
            super().delete(ctx, id, state)

    def remove(self, ctx: Context, id: str, state: Properties) -> None:
        try:
            super().remove(ctx, id, state)
        except PortNotFoundError:
            return
        except PortApiError as error:
            if error.code != "has_dependents":
                raise
            if state.get("forceDestroy") is not True:
                raise ProviderError(self._dependents(ctx, id, error)) from error
            try:
                self._remove_with_entities(ctx, id)
            except PortApiError as refusal:
                if refusal.code != "has_dependents":
                    raise
                raise ProviderError(_still_used(id, refusal)) from refusal

    def _require(self, ctx: Context, id: str, inputs: Properties) -> None:
        with self.reporting(id):
            present = self.fetch(ctx, id)
        if present is None:
            raise ProviderError(
                f"blueprint {id} does not exist in Port, and is declared as existing: create it in Port, or set "
                "`manage` to create"
            )
        problems = _missing_parts(self.body(inputs), present)
        if problems:
            raise ProviderError(f"blueprint {id} in Port does not fit its declaration: {'; '.join(problems)}")

    def _dependents(self, ctx: Context, id: str, refusal: PortApiError) -> str:
        reply = ctx.port.request("GET", f"{self.item(id)}/entities", params={"include": "identifier"})
        names = [str(entity.get("identifier")) for entity in reply.get("entities", [])]
        shown = ", ".join(names[:_SHOWN_ENTITIES])
        more = f" and {len(names) - _SHOWN_ENTITIES} more" if len(names) > _SHOWN_ENTITIES else ""
        return (
            f"blueprint {id} still has entities: {shown}{more}. Delete them, or set `forceDestroy` to delete them "
            "together with the blueprint"
            if names
            else _still_used(id, refusal)
        )

    def _remove_with_entities(self, ctx: Context, id: str) -> None:
        reply = ctx.port.request(
            "DELETE", f"{self.item(id)}/all-entities", params={"delete_blueprint": "true"}
        )
        migration = reply.get("migrationId")
        while migration:
            reply = ctx.port.request("GET", f"/v1/migrations/{quote(str(migration))}")
            status = str(reply.get("migration", reply).get("status", "")).upper()
            if status in _MIGRATION_DONE:
                return
            if status in _MIGRATION_FAILED:
                raise ProviderError(f"blueprint {id}: Port ended the deletion of its entities with {status}")
            if ctx.cancelled.wait(_POLL_SECONDS):
                raise ProviderError(f"blueprint {id}: cancelled while Port deletes its entities")


def _still_used(id: str, refusal: PortApiError) -> str:
    return f"blueprint {id} is still used by other objects in Port; delete those first ({refusal.message})"


def _missing_parts(declared: Body, present: Body) -> list[str]:
    """What `declared` relies on and `present` lacks: properties by type, relations by target."""
    problems = []
    wanted = declared.get("schema", {}).get("properties", {})
    had = present.get("schema", {}).get("properties", {})
    for name, definition in wanted.items():
        if name not in had:
            problems.append(f"it has no property {name}")
        elif had[name].get("type") != definition.get("type"):
            problems.append(f"property {name} is a {had[name].get('type')}, not a {definition.get('type')}")
    for name, definition in declared.get("relations", {}).items():
        relation = present.get("relations", {}).get(name)
        if relation is None:
            problems.append(f"it has no relation {name}")
        elif relation.get("target") != definition.get("target"):
            problems.append(
                f"relation {name} points at {relation.get('target')}, not {definition.get('target')}"
            )
    return problems
