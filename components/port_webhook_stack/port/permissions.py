"""Who may run and who may approve an action."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.port.client import PortNotFoundError, quote
from port_webhook_stack.port.handler import (
    UNKNOWN,
    Context,
    CreateResult,
    Failure,
    Properties,
    ProviderError,
    ReadResult,
)
from port_webhook_stack.port.normalise import Body, canonical_permissions, reconcile
from port_webhook_stack.port.objects import MAP, STRING, PortObject, schema_of

_PARTS = ("execute", "approve")
_SETS = ("users", "roles", "teams")
_KEYS: Mapping[str, tuple[str, ...]] = {
    "execute": (*_SETS, "ownedByTeam", "policy"),
    "approve": (*_SETS, "policy"),
}

# Port makes the permissions of an action a moment after the action itself.
_APPEAR_ATTEMPTS = 20
_APPEAR_SECONDS = 0.5


class ActionPermissions(PortObject):
    """`port-webhook:index:ActionPermissions`; its id is the action's identifier.

    A part that is declared is managed as a whole: who is not in it loses the right. When the resource is removed
    and its action stays, the permissions stay as well, because Port has no way to delete them.
    """

    kind = "permissions"
    control = frozenset({"action"})
    identity = ("action",)
    schema = schema_of(
        "Permissions of an action.",
        {
            "action": {**STRING, "description": "Identifier of the action."},
            "execute": {**MAP, "description": "users, roles, teams, ownedByTeam, policy."},
            "approve": {**MAP, "description": "users, roles, teams, policy."},
        },
        ["action"],
    )

    def canonical(self, body: Mapping[str, Any]) -> Body:
        return canonical_permissions(body)

    def item(self, id: str) -> str:
        return f"/v1/actions/{quote(id)}/permissions"

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        found = self.missing(inputs, "action")
        for part in _PARTS:
            value = inputs.get(part)
            if value is None or value is UNKNOWN:
                continue
            if not isinstance(value, Mapping):
                found.append(Failure(part, "must be a map"))
                continue
            found += [
                Failure(f"{part}.{key}", f"is not a key of Port's; it has {', '.join(_KEYS[part])}")
                for key in value
                if key not in _KEYS[part]
            ]
            found += [
                Failure(f"{part}.{key}", "must be a list")
                for key in _SETS
                if value.get(key) is not None
                and not isinstance(value[key], list)
                and value[key] is not UNKNOWN
            ]
        return found

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if preview:
            return CreateResult(self._known_id(inputs), inputs)
        id = self.id_of(inputs)
        with self.reporting(id):
            self.write(ctx, id, {}, inputs)
        return CreateResult(id, inputs)

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        action = self.id_of(state) if state else id
        present = self.fetch(ctx, action)
        if present is None:
            return None
        declared = self.body(inputs)
        if inputs:
            present = {part: value for part, value in present.items() if part in declared}
        merged = {"action": action, **reconcile(declared, present, self.canonical)}
        return ReadResult(action, merged, merged)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        if not preview:
            action = self.id_of(news)
            with self.reporting(action):
                self.write(ctx, action, olds, news)
        return news

    def write(self, ctx: Context, id: str, olds: Properties, news: Properties) -> None:
        body = {part: _whole(part, value) for part, value in self.body(news).items()}
        for _ in range(_APPEAR_ATTEMPTS):
            try:
                ctx.port.request("PATCH", self.item(id), json=body)
            except PortNotFoundError as error:
                missing = error
                if ctx.cancelled.wait(_APPEAR_SECONDS):
                    raise ProviderError(f"permissions of {id}: cancelled") from error
            else:
                return
        raise missing

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        """Nothing: they end with their action."""


def _whole(part: str, value: Mapping[str, Any]) -> Body:
    """`value` with everything that it leaves out taken away explicitly."""
    empty: Body = {**{name: [] for name in _SETS}, "policy": None}
    if part == "execute":
        empty["ownedByTeam"] = False
    return {**empty, **value}
