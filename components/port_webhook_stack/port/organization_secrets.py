"""Organisation secrets. Port never returns a value, so the recorded one is what counts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.port.client import PortConflictError, PortNotFoundError, quote
from port_webhook_stack.port.handler import (
    UNKNOWN,
    Context,
    CreateResult,
    Diff,
    Failure,
    Properties,
    ProviderError,
    ReadResult,
)
from port_webhook_stack.port.normalise import Body
from port_webhook_stack.port.objects import BOOLEAN, OWNERSHIP, STRING, PortObject, schema_of

_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")
_COLLECTION = "/v1/organization/secrets"


class Secret(PortObject):
    """`port-webhook:index:Secret`; its id is its name.

    The value of an imported secret is not recorded, and as long as it is not, a change of it is ignored.
    """

    kind = "secret"
    secrets = frozenset({"secretValue"})
    identity = ("secretName",)
    replacing = frozenset(identity)
    schema = schema_of(
        "A secret of the organisation, used in templates as .secrets.NAME.",
        {
            "secretName": STRING,
            "secretValue": {**STRING, "secret": True},
            "description": STRING,
            **OWNERSHIP,
        },
        ["secretName"],
        {"adopted": BOOLEAN, "updatedAt": {**STRING, "description": "When it was last written in Port."}},
    )

    def canonical(self, body: Mapping[str, Any]) -> Body:
        return {key: value for key, value in body.items() if value not in (None, "")}

    def item(self, id: str) -> str:
        return f"{_COLLECTION}/{quote(id)}"

    def collection(self, inputs: Properties) -> str:
        return _COLLECTION

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        found = self.missing(inputs, "secretName")
        name = inputs.get("secretName")
        if isinstance(name, str) and name and not _NAME.fullmatch(name):
            found.append(
                Failure("secretName", f"{name!r} is not allowed by Port: 1 to 100 of A-Z a-z 0-9 - _")
            )
        imported = bool(olds) and "secretValue" not in olds
        if not imported:
            found += self.missing(inputs, "secretValue")
        value = inputs.get("secretValue")
        if value is not None and value is not UNKNOWN and not isinstance(value, str):
            found.append(Failure("secretValue", "must be a string"))
        description = inputs.get("description")
        if isinstance(description, str) and len(description) > 200:
            found.append(Failure("description", "is longer than the 200 characters that Port allows"))
        return found

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        return super().diff(ctx, id, olds, _without_value(news) if _is_imported(olds) else news)

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if preview:
            result = super().create(ctx, inputs, preview)
            return CreateResult(result.id, {**result.outputs, "updatedAt": UNKNOWN})
        id = self.id_of(inputs)
        with self.reporting(id):
            adopted = False
            try:
                reply = ctx.port.request("POST", _COLLECTION, json=self.body(inputs), repeatable=True)
            except PortConflictError as conflict:
                adopted = inputs.get("adopt") is True
                # After a lost reply the secret may be the one that this very call has made.
                if not adopted and not conflict.after_retry:
                    raise ProviderError(
                        f"secret {id} exists already in Port, and its value cannot be compared. Set `adopt` to "
                        "overwrite it, or choose another name"
                    ) from conflict
                reply = self._patch(ctx, id, inputs)
        ctx.memory.add((self.kind, id))
        return CreateResult(id, {**inputs, "adopted": adopted, **_updated_at(reply)})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        if ctx.config.port_is_gone:
            return None
        try:
            reply = ctx.port.request("GET", self.item(self.id_of(state) if state else id))
        except PortNotFoundError:
            return None
        present = reply.get("secret", {})
        written = state.get("updatedAt")
        if written and present.get("updatedAt") != written:
            ctx.log.warning(
                f"secret {id} was changed outside of this program; its value may not be the recorded one"
            )
        kept = {key: value for key, value in inputs.items() if key != "description"}
        merged = {"secretName": present.get("secretName", id), **kept}
        if present.get("description"):
            merged["description"] = present["description"]
        outputs = {**merged, "adopted": state.get("adopted") is True, **_updated_at(reply)}
        return ReadResult(self.id_of(merged), outputs, merged)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        if _is_imported(olds):
            news = _without_value(news)
        state = {**news, "adopted": olds.get("adopted", False)}
        if preview:
            return {**state, "updatedAt": UNKNOWN}
        with self.reporting(id):
            try:
                reply = self._patch(ctx, id, news)
            except PortNotFoundError:
                ctx.log.warning(f"secret {id} was deleted outside of this program, so it is created again")
                reply = ctx.port.request("POST", _COLLECTION, json=self.body(news), repeatable=True)
        ctx.memory.add((self.kind, id))
        return {**state, **_updated_at(reply)}

    def _patch(self, ctx: Context, id: str, inputs: Properties) -> Body:
        # An empty description clears it; leaving it out would keep it.
        body = {"description": "", **self.body(inputs)}
        del body["secretName"]
        return ctx.port.request("PATCH", self.item(id), json=body)


def _is_imported(state: Properties) -> bool:
    return "secretValue" not in state


def _without_value(inputs: Properties) -> Properties:
    return {key: value for key, value in inputs.items() if key != "secretValue"}


def _updated_at(reply: Mapping[str, Any]) -> Properties:
    value = reply.get("secret", {}).get("updatedAt")
    return {"updatedAt": value} if isinstance(value, str) else {}
