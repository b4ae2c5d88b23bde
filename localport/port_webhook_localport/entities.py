"""Entities: validation against their blueprint, relations, events."""

from __future__ import annotations

import time
from typing import Any, Protocol

from port_webhook_localport import automations, changelog, runstate, schemas, search
from port_webhook_localport.computed import with_computed
from port_webhook_localport.formats import parse_time
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check, first_problem_by_text
from port_webhook_localport.web import (
    ApiError,
    Call,
    Reply,
    compact,
    identifier_taken,
    invalid_request,
    make_id,
    not_found,
    not_supported,
    now,
)

_SCHEMA_KEYS = (
    "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "exclusiveMinimum", "exclusiveMaximum", "items", "minItems", "maxItems", "uniqueItems",
)  # fmt: skip


class Cause(Protocol):
    """What led to a change: the automations before it, and the run whose invocation made it."""

    chain: tuple[str, ...]
    causing_run: str | None


def blueprint(port: Port, identifier: str) -> dict[str, Any]:
    """A blueprint's document.

    Raises:
        ApiError: 404.
    """
    document = port.store.document("SELECT doc FROM blueprints WHERE identifier = ?", (identifier,))
    if document is None:
        raise not_found("Blueprint", identifier)
    return document


def find(port: Port, blueprint_id: str, identifier: str) -> dict[str, Any] | None:
    return port.store.document(
        "SELECT doc FROM entities WHERE blueprint = ? AND identifier = ?", (blueprint_id, identifier)
    )


def existing(port: Port, blueprint_id: str, identifier: str) -> dict[str, Any]:
    """An entity's document.

    Raises:
        ApiError: 404.
    """
    document = find(port, blueprint_id, identifier)
    if document is None:
        raise not_found("Entity", identifier)
    return document


# --- routes -------------------------------------------------------------------------------------------


def create(port: Port, call: Call) -> Reply:
    model = blueprint(port, call.path["blueprint"])
    if not isinstance(call.body, dict):
        raise invalid_request("the body: must be of type object")
    if isinstance(call.body.get("identifier"), dict):
        raise not_supported("an entity identifier that is a search query")
    check(schemas.ENTITY, call.body)
    identifier = call.body.get("identifier") or make_id("e")
    before = find(port, model["identifier"], identifier)
    upsert, merge = call.flag("upsert"), call.flag("merge")
    if before is not None and not upsert:
        raise identifier_taken("Entity", identifier)
    run = _run_of(port, call)
    after = compose(port, model, identifier, call.body, before, keep=upsert and merge)
    creates = call.flag("create_missing_related_entities")
    _check_relations(port, model, after, create_missing=creates, cause=call)
    if not call.flag("validation_only"):
        save(port, model, before, after, call)
        _list_under_run(port, run, after)
    return Reply({"entity": with_computed(port, model, after)}, 201 if before is None else 200)


def list_all(port: Port, call: Call) -> Reply:
    model = blueprint(port, call.path["blueprint"])
    rows = port.store.documents(
        "SELECT doc FROM entities WHERE blueprint = ? ORDER BY rowid", (model["identifier"],)
    )
    shown = [with_computed(port, model, entity) for entity in rows]
    return Reply({"entities": shown, "matchingBlueprints": [model["identifier"]]})


def get(port: Port, call: Call) -> Reply:
    model = blueprint(port, call.path["blueprint"])
    entity = existing(port, model["identifier"], call.path["entity"])
    if not call.flag("exclude_calculated_properties"):
        entity = with_computed(port, model, entity)
    return Reply({"entity": entity})


def put(port: Port, call: Call) -> Reply:
    return _change(port, call, keep=False)


def patch(port: Port, call: Call) -> Reply:
    return _change(port, call, keep=True)


def delete(port: Port, call: Call) -> Reply:
    blueprint(port, call.path["blueprint"])
    existing(port, call.path["blueprint"], call.path["entity"])
    run = _run_of(port, call)
    deleted = remove(
        port,
        call.path["blueprint"],
        call.path["entity"],
        call,
        delete_dependents=call.flag("delete_dependents"),
    )
    _list_under_run(port, run, deleted)
    return Reply({})


def search_all(port: Port, call: Call) -> Reply:
    """Entities of every blueprint that pass `{combinator, rules}`."""
    query = _query(call.body)
    models = {model["identifier"]: model for model in port.store.documents("SELECT doc FROM blueprints")}
    rows = port.store.documents("SELECT doc FROM entities ORDER BY rowid")
    shown = [with_computed(port, models[entity["blueprint"]], entity) for entity in rows]
    found = [entity for entity in shown if search.matches(query, entity)]
    return Reply({"entities": found, "matchingBlueprints": sorted({item["blueprint"] for item in found})})


def search_blueprint(port: Port, call: Call) -> Reply:
    """Entities of one blueprint that pass `query`, paged by `limit` and `from`."""
    model = blueprint(port, call.path["blueprint"])
    body = call.body if isinstance(call.body, dict) else {}
    query = _query(body.get("query", {"combinator": "and", "rules": []}))
    limit, start = body.get("limit", 200), body.get("from")
    if not isinstance(limit, int) or isinstance(limit, bool) or not 1 <= limit <= 1000:
        raise invalid_request("limit: must be a whole number from 1 to 1000")
    if start is not None and not (isinstance(start, str) and start.isascii() and start.isdigit()):
        raise invalid_request("from: must be the next value of the previous page")
    rows = port.store.documents(
        "SELECT doc FROM entities WHERE blueprint = ? ORDER BY rowid", (model["identifier"],)
    )
    shown = [with_computed(port, model, entity) for entity in rows]
    found = [entity for entity in shown if search.matches(query, entity)]
    first = int(start or 0)
    reply: dict[str, Any] = {"entities": found[first : first + limit]}
    if first + limit < len(found):
        reply["next"] = str(first + limit)
    return Reply(reply)


# --- operations, also used by invocations -------------------------------------------------------------


def upsert(port: Port, blueprint_id: str, body: dict[str, Any], cause: Cause) -> dict[str, Any]:
    """Creates an entity or merges into it, as an UPSERT_ENTITY invocation does.

    Raises:
        ApiError: the entity does not fit its blueprint.
    """
    model = blueprint(port, blueprint_id)
    check(schemas.ENTITY, body)
    identifier = body.get("identifier")
    if not identifier:
        raise invalid_request("mapping.identifier: yields no identifier")
    before = find(port, blueprint_id, identifier)
    after = compose(port, model, identifier, body, before, keep=True)
    _check_relations(port, model, after, create_missing=False, cause=cause)
    save(port, model, before, after, cause)
    return after


def compose(
    port: Port,
    model: dict[str, Any],
    identifier: str,
    body: dict[str, Any],
    before: dict[str, Any] | None,
    *,
    keep: bool,
) -> dict[str, Any]:
    """The entity that a write results in.

    Args:
        keep: what the body does not mention stays as it is (else it is lost).

    Raises:
        ApiError: 422 blueprint_schema_mismatch.
    """
    old = before if keep and before is not None else {}
    team = body["team"] if "team" in body else old.get("team", [])
    moment = now()
    after = {
        "identifier": identifier,
        "title": body.get("title", old.get("title")) or identifier,
        "icon": body.get("icon", old.get("icon")),
        "blueprint": model["identifier"],
        "team": [team] if isinstance(team, str) else team or [],
        "properties": {**old.get("properties", {}), **body.get("properties", {})},
        "relations": {
            **{name: [] if rule["many"] else None for name, rule in model.get("relations", {}).items()},
            **old.get("relations", {}),
            **body.get("relations", {}),
        },
        "createdAt": before["createdAt"] if before else moment,
        "createdBy": before["createdBy"] if before else port.user_id,
        "updatedAt": moment,
        "updatedBy": port.user_id,
    }
    _check_properties(model, after["properties"])
    return after


def save(
    port: Port, model: dict[str, Any], before: dict[str, Any] | None, after: dict[str, Any], cause: Cause
) -> None:
    """Writes an entity and fires its event."""
    key = (after["blueprint"], after["identifier"])
    port.store.run(
        "INSERT INTO entities (blueprint, identifier, doc) VALUES (?, ?, ?) "
        "ON CONFLICT (blueprint, identifier) DO UPDATE SET doc = excluded.doc",
        (*key, compact(after)),
    )
    if before is not None:
        port.store.run("DELETE FROM relations WHERE blueprint = ? AND identifier = ?", key)
    for name, rule in model.get("relations", {}).items():
        for target in _targets(after["relations"].get(name)):
            port.store.run(
                "INSERT OR IGNORE INTO relations VALUES (?, ?, ?, ?, ?)", (*key, name, rule["target"], target)
            )
    _set_timers(port, model, before, after)
    automations.entity_changed(port, before, after, cause.chain, cause.causing_run)
    changelog.note(port, model, before, after, cause.chain)


def remove(
    port: Port,
    blueprint_id: str,
    identifier: str,
    cause: Cause,
    *,
    delete_dependents: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Deletes an entity; relations of others to it are cleared, which fires no event (Port's rule).

    Args:
        delete_dependents: delete entities that require it as well.
        force: leave such entities with an empty relation instead of refusing.

    Raises:
        ApiError: 403 required_relation, another entity requires this one.
    """
    document = existing(port, blueprint_id, identifier)
    key = (blueprint_id, identifier)
    port.store.run("DELETE FROM entities WHERE blueprint = ? AND identifier = ?", key)
    port.store.run("DELETE FROM relations WHERE blueprint = ? AND identifier = ?", key)
    port.store.run("DELETE FROM timers WHERE blueprint = ? AND identifier = ?", key)
    for other_blueprint, other_id, relation in port.store.rows(
        "SELECT blueprint, identifier, relation FROM relations WHERE target_blueprint = ? AND target = ?", key
    ):
        other = find(port, other_blueprint, other_id)
        if other is None:
            continue
        if blueprint(port, other_blueprint)["relations"][relation]["required"] and not force:
            if not delete_dependents:
                raise ApiError(
                    403,
                    "required_relation",
                    f'Entity "{other_id}" of blueprint "{other_blueprint}" requires "{identifier}" by its '
                    f"relation {relation}. Delete it first, or set delete_dependents=true",
                )
            remove(port, other_blueprint, other_id, cause, delete_dependents=True)
            continue
        value = other["relations"].get(relation)
        other["relations"][relation] = (
            [item for item in value if item != identifier] if isinstance(value, list) else None
        )
        port.store.run(
            "UPDATE entities SET doc = ? WHERE blueprint = ? AND identifier = ?",
            (compact(other), other_blueprint, other_id),
        )
    port.store.run("DELETE FROM relations WHERE target_blueprint = ? AND target = ?", key)
    automations.entity_changed(port, document, None, cause.chain, cause.causing_run)
    changelog.note(port, blueprint(port, blueprint_id), document, None, cause.chain)
    return document


# --- details ------------------------------------------------------------------------------------------


def _change(port: Port, call: Call, *, keep: bool) -> Reply:
    model = blueprint(port, call.path["blueprint"])
    before = existing(port, call.path["blueprint"], call.path["entity"])
    check(schemas.ENTITY, call.body)
    if call.body.get("identifier", before["identifier"]) != before["identifier"]:
        raise not_supported("renaming an entity")
    run = _run_of(port, call)
    after = compose(port, model, before["identifier"], call.body, before, keep=keep)
    creates = call.flag("create_missing_related_entities")
    _check_relations(port, model, after, create_missing=creates, cause=call)
    save(port, model, before, after, call)
    _list_under_run(port, run, after)
    return Reply({"entity": with_computed(port, model, after)})


def _run_of(port: Port, call: Call) -> runstate.Run | None:
    """The run named by `run_id`, which becomes the cause of the change.

    Raises:
        ApiError: 404, or 400 run_exhausted when it is not in progress (Port's rule).
    """
    run_id = call.query.get("run_id")
    if run_id is None:
        return None
    run = runstate.load(port, run_id)
    if run.status != "IN_PROGRESS":
        raise ApiError(400, "run_exhausted", f'Run "{run_id}" is not in progress')
    call.chain, call.causing_run = run.chain, run.id
    return run


def _list_under_run(port: Port, run: runstate.Run | None, entity: dict[str, Any]) -> None:
    if run is None:
        return
    # Events of the change may have written to the run meanwhile.
    run = runstate.load(port, run.id)
    listed = {"blueprint": entity["blueprint"], "identifier": entity["identifier"]}
    touched = run.internal.setdefault("entities", [])
    if listed not in touched:
        touched.append(listed)
        runstate.save(port, run)


def properties_schema(model: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema of the properties of a blueprint's entities."""
    definition = model["schema"]
    return {
        "type": "object",
        "properties": {
            name: {key: rule[key] for key in _SCHEMA_KEYS if key in rule}
            for name, rule in definition["properties"].items()
        },
        "required": definition.get("required", []),
        "additionalProperties": False,
    }


def _check_properties(model: dict[str, Any], properties: dict[str, Any]) -> None:
    schema = properties_schema(model)
    present = {name: value for name, value in properties.items() if value is not None}
    problem = first_problem_by_text(compact(schema), present)
    if problem is not None:
        path, text = problem
        field = ".".join(part for part in ("properties", path) if part)
        raise ApiError(
            422,
            "blueprint_schema_mismatch",
            f'{field}: {text} (blueprint "{model["identifier"]}")',
            {"blueprint": model["identifier"], "field": field},
        )


def _check_relations(
    port: Port, model: dict[str, Any], entity: dict[str, Any], *, create_missing: bool, cause: Cause
) -> None:
    rules = model.get("relations", {})
    for name, value in entity["relations"].items():
        rule = rules.get(name)
        if rule is None:
            raise ApiError(
                422,
                "blueprint_schema_mismatch",
                f'relations.{name}: blueprint "{model["identifier"]}" has no such relation',
            )
        if value is not None and (
            isinstance(value, list) != rule["many"]
            or not all(isinstance(item, str) for item in _targets(value))
        ):
            wanted = "a list of identifiers" if rule["many"] else "one identifier"
            raise ApiError(422, "relation_many_violation", f"relations.{name}: must be {wanted}")
        for target in _targets(value):
            itself = (rule["target"], target) == (entity["blueprint"], entity["identifier"])
            if itself or find(port, rule["target"], target) is not None:
                continue
            if not create_missing:
                raise not_found("Entity", target)
            other = blueprint(port, rule["target"])
            save(port, other, None, compose(port, other, target, {}, None, keep=False), cause)
    for name, rule in rules.items():
        if rule["required"] and not _targets(entity["relations"].get(name)):
            raise ApiError(422, "required_relation", f"relations.{name}: is required")


def _targets(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _set_timers(
    port: Port, model: dict[str, Any], before: dict[str, Any] | None, after: dict[str, Any]
) -> None:
    for name, rule in model["schema"]["properties"].items():
        if rule.get("format") != "timer":
            continue
        value = after["properties"].get(name)
        if before is not None and before["properties"].get(name) == value:
            continue
        key = (after["blueprint"], after["identifier"], name)
        due = parse_time(value) if isinstance(value, str) else None
        # A moment that is already over when it is written does not expire any more.
        if due is None or due.timestamp() <= time.time():
            port.store.run("DELETE FROM timers WHERE blueprint = ? AND identifier = ? AND property = ?", key)
        else:
            port.store.run("INSERT OR REPLACE INTO timers VALUES (?, ?, ?, ?)", (*key, due.timestamp()))


def _query(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise invalid_request("the query: must be of type object")
    return body
