"""Ingest webhooks: addresses of Port's that turn what others post into entities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.port.client import quote
from port_webhook_handlers.port.lint.jq import JqMissingError, judge
from port_webhook_handlers.port.names import is_identifier
from port_webhook_stack.port.handler import (
    UNKNOWN,
    Context,
    CreateResult,
    Failure,
    Properties,
    ReadResult,
    has_unknown,
)
from port_webhook_stack.port.normalise import SERVER_MEMBERS, Body
from port_webhook_stack.port.objects import ANY, BOOLEAN, MAP, OWNERSHIP, STRING, PortObject, schema_of

_COLLECTION = "/v1/webhooks"
_COMPUTED = ("webhookKey", "url")
_SECURITY_KEYS = (
    "secret",
    "signatureHeaderName",
    "signatureAlgorithm",
    "signaturePrefix",
    "requestIdentifierPath",
)
_MAPPING_KEYS = ("blueprint", "filter", "itemsToParse", "operation", "entity")
_OPERATIONS = ("create", "delete")


class Webhook(PortObject):
    """`port-webhook:index:Webhook`. Who knows its address can post to it, so that is recorded as a secret."""

    kind = "webhook"
    member = "integration"
    secrets = frozenset({"security", *_COMPUTED})
    replacing = frozenset({"identifier"})
    schema = schema_of(
        "An ingest webhook of Port: what is posted to its address becomes entities.",
        {
            "identifier": STRING,
            "title": STRING,
            "icon": STRING,
            "description": STRING,
            "enabled": BOOLEAN,
            "security": {**MAP, "secret": True, "description": f"Any of {', '.join(_SECURITY_KEYS)}."},
            "mappings": {
                "type": "array",
                "items": ANY,
                "description": f"From a posted document to entities, each {', '.join(_MAPPING_KEYS)}.",
            },
            **OWNERSHIP,
        },
        ["identifier"],
        {
            "adopted": BOOLEAN,
            "url": {**STRING, "secret": True, "description": "Where to post."},
            "webhookKey": {
                **STRING,
                "secret": True,
                "description": "The part of the address that is secret.",
            },
        },
    )

    def canonical(self, body: Mapping[str, Any]) -> Body:
        known = {
            key: value for key, value in body.items() if key not in SERVER_MEMBERS and value not in (None, "")
        }
        known["enabled"] = known.get("enabled", False)
        if isinstance(known.get("security"), Mapping):
            known["security"] = {k: v for k, v in known["security"].items() if v not in (None, "")}
        if isinstance(known.get("mappings"), list):
            known["mappings"] = [_mapping(item) for item in known["mappings"]]
        return {key: value for key, value in known.items() if value not in ({}, [])}

    def item(self, id: str) -> str:
        return f"{_COLLECTION}/{quote(id)}"

    def collection(self, inputs: Properties) -> str:
        return _COLLECTION

    def failures(self, inputs: Properties, olds: Properties) -> list[Failure]:
        found = self.missing(inputs, "identifier")
        identifier = inputs.get("identifier")
        if isinstance(identifier, str) and identifier and not is_identifier(identifier):
            found.append(
                Failure("identifier", "has characters that Port refuses; use letters, digits, _ and -")
            )
        security = inputs.get("security")
        if isinstance(security, Mapping):
            found += _unknown(security, _SECURITY_KEYS, "security")
        mappings = inputs.get("mappings")
        for number, mapping in enumerate(mappings if isinstance(mappings, list) else ()):
            found += _mapping_failures(mapping, f"mappings[{number}]")
        return found

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        result = super().create(ctx, inputs, preview)
        computed = dict.fromkeys(_COMPUTED, UNKNOWN) if preview else self._computed(ctx, result.id)
        return CreateResult(result.id, {**result.outputs, **computed})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        result = super().read(ctx, id, state, inputs)
        if result is None:
            return None
        return ReadResult(result.id, {**result.outputs, **self._computed(ctx, result.id)}, result.inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        kept = {key: olds[key] for key in _COMPUTED if key in olds}
        return {**super().update(ctx, id, olds, news, preview), **kept}

    def _computed(self, ctx: Context, id: str) -> Properties:
        present = ctx.port.request("GET", self.item(id)).get(self.member, {})
        return {key: present[key] for key in _COMPUTED if isinstance(present.get(key), str)}


def _mapping(mapping: Any) -> Any:
    if not isinstance(mapping, Mapping):
        return mapping
    result = {key: value for key, value in mapping.items() if value is not None}
    if result.get("operation") in ("create", {"type": "create"}):
        del result["operation"]
    elif result.get("operation") == "delete":
        result["operation"] = {"type": "delete"}
    if isinstance(result.get("entity"), Mapping):
        result["entity"] = {k: v for k, v in result["entity"].items() if v not in (None, {})}
    return result


def _mapping_failures(mapping: Any, path: str) -> list[Failure]:
    if mapping is UNKNOWN:
        return []
    if not isinstance(mapping, Mapping):
        return [Failure(path, f"must be a map of {', '.join(_MAPPING_KEYS)}")]
    found = _unknown(mapping, _MAPPING_KEYS, path)
    found += [
        Failure(f"{path}.{name}", "is required by Port")
        for name in ("blueprint", "entity")
        if not mapping.get(name)
    ]
    operation = mapping.get("operation")
    name = operation.get("type") if isinstance(operation, Mapping) else operation
    if name is not None and not has_unknown(operation) and name not in _OPERATIONS:
        found.append(Failure(f"{path}.operation", f"must be {' or '.join(_OPERATIONS)}"))
    for place, expression in _expressions(mapping, path):
        found += _jq_failures(expression, place)
    return found


def _expressions(mapping: Mapping[str, Any], path: str) -> list[tuple[str, Any]]:
    found = [(f"{path}.{key}", mapping.get(key)) for key in ("filter", "itemsToParse")]
    entity = mapping.get("entity")
    if isinstance(entity, Mapping):
        found += [
            (f"{path}.entity.{key}", entity.get(key)) for key in ("identifier", "title", "icon", "team")
        ]
        for part in ("properties", "relations"):
            members = entity.get(part)
            if isinstance(members, Mapping):
                found += [(f"{path}.entity.{part}.{key}", value) for key, value in members.items()]
    return found


def _jq_failures(expression: Any, path: str) -> list[Failure]:
    if not isinstance(expression, str):
        return []
    try:
        verdict = judge(expression)
    except JqMissingError:
        return []
    if verdict is None or verdict.kind != "syntax":
        return []
    return [Failure(path, f"{verdict.message}; {verdict.remedy}")]


def _unknown(values: Mapping[str, Any], known: tuple[str, ...], path: str) -> list[Failure]:
    return [
        Failure(f"{path}.{key}", f"is not a key of Port's; write any of {', '.join(known)}")
        for key in values
        if key not in known
    ]
