"""Admin routes under `/_local`, for tests and demonstrations.

| route | what |
|---|---|
| `GET`, `PUT /settings` | switches, see `port.Settings`: tokenLifetimeSeconds, rateLimit, holdDeliveries … |
| `GET`, `PUT`, `DELETE /faults` | failing calls (`api`) and odd deliveries (`delivery`), see `faults` |
| `GET`, `DELETE /calls` | calls by route |
| `GET /deliveries?run=&action=` | attempts to deliver, oldest first |
| `GET /runs/{run}` | a run with its chain of automations, its entities and the state of its delivery |
| `POST /edit` | a change or deletion behind the API's back, as in Port's UI |
| `POST /expire-token` | ends the live token |
| `POST /rotate-secret` | one `step` of a rotation of the client secret: `stage`, `activate`, `retire` |
| `PUT`, `DELETE /kafka` | broker of the topics: what `GET /v1/kafka-credentials` answers, and `caFile` to trust |
| `POST /reset` | forgets everything but who it is |
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from port_webhook_localport import __version__, automations, entities, runstate, schemas
from port_webhook_localport.faults import Faults
from port_webhook_localport.port import Port, RateWindow, Settings
from port_webhook_localport.schemas import BOOLEAN, STRING, Schema, check, closed, one_of
from port_webhook_localport.web import ApiError, Call, Reply, compact, invalid_request, not_found, now

_POSITIVE: Schema = {"type": "number", "exclusiveMinimum": 0}
_SETTINGS = {
    "tokenLifetimeSeconds": ("token_lifetime_seconds", _POSITIVE),
    "rateLimit": ("rate_limit", {"type": "integer", "minimum": 0}),
    "rateLimitPeriodSeconds": ("rate_limit_period_seconds", _POSITIVE),
    "rateLimitReset": ("rate_limit_reset", one_of("delay", "epoch")),
    "destinationCheck": ("destination_check", BOOLEAN),
    "deliveryTimeoutSeconds": ("delivery_timeout_seconds", _POSITIVE),
    "holdDeliveries": ("hold_deliveries", BOOLEAN),
    "claimSeconds": ("claim_seconds", _POSITIVE),
    "permissionsDelaySeconds": ("permissions_delay_seconds", {"type": "number", "minimum": 0}),
}
_SETTINGS_SCHEMA = closed("", **{name: schema for name, (_, schema) in _SETTINGS.items()})
_EDIT = closed(
    "kind identifier",
    kind=one_of("action", "blueprint", "entity", "secret"),
    identifier=STRING,
    blueprint=STRING,
    patch=schemas.OBJECT,
    delete=BOOLEAN,
)
_ROTATION = closed(
    "step",
    step=one_of("stage", "activate", "retire"),
    overlapSeconds={"type": "number", "minimum": 0},
)
_KAFKA = closed(
    "brokers username password", brokers=schemas.STRINGS, username=STRING, password=STRING, caFile=STRING
)


def get_settings(port: Port, call: Call) -> Reply:
    values = asdict(port.settings)
    return Reply({"settings": {name: values[field] for name, (field, _) in _SETTINGS.items()}})


def put_settings(port: Port, call: Call) -> Reply:
    """Changes the named switches. A new token lifetime ends the live token."""
    check(_SETTINGS_SCHEMA, call.body)
    for name, value in call.body.items():
        setattr(port.settings, _SETTINGS[name][0], value)
    if "tokenLifetimeSeconds" in call.body:
        port.tokens.expire()
    if {"rateLimit", "rateLimitPeriodSeconds"} & set(call.body):
        port.window = RateWindow()
    return get_settings(port, call)


def expire_token(port: Port, call: Call) -> Reply:
    port.tokens.expire()
    return Reply({})


def get_faults(port: Port, call: Call) -> Reply:
    return Reply({"faults": port.faults.describe()})


def put_faults(port: Port, call: Call) -> Reply:
    port.faults.replace(call.body)
    return get_faults(port, call)


def delete_faults(port: Port, call: Call) -> Reply:
    port.faults = Faults()
    return Reply({})


def get_calls(port: Port, call: Call) -> Reply:
    return Reply({"calls": dict(port.calls), "total": port.calls.total()})


def delete_calls(port: Port, call: Call) -> Reply:
    port.calls.clear()
    return Reply({})


def get_deliveries(port: Port, call: Call) -> Reply:
    """Attempts so far, oldest first; `run` and `action` select."""
    wanted = {
        field: call.query[name]
        for name, field in (("run", "runId"), ("action", "action"))
        if name in call.query
    }
    return Reply(
        {
            "deliveries": [
                record
                for record in port.deliveries
                if all(record[field] == value for field, value in wanted.items())
            ]
        }
    )


def get_run(port: Port, call: Call) -> Reply:
    """A run with what Port keeps to itself: chain, entities, state of the delivery."""
    run = runstate.load(port, call.path["run"])
    return Reply(
        {
            "run": runstate.view(port, run, "v2"),
            "delivery": run.delivery,
            "chain": list(run.chain),
            "entities": run.internal.get("entities", []),
            "externalRunId": run.internal.get("externalRunId"),
        }
    )


def put_kafka(port: Port, call: Call) -> Reply:
    """Brokers that `GET /v1/kafka-credentials` names; from now on agent runs go to the topic of runs there."""
    check(_KAFKA, call.body)
    port.kafka = call.body
    return Reply({})


def rotate_secret(port: Port, call: Call) -> Reply:
    """Changes the client secret in steps, so that a listener can know the new one before it signs.

    The reply holds no secret: the starter reads it from the folder of this local Port.
    """
    check(_ROTATION, call.body)
    known = port.credentials
    match call.body["step"]:
        case "stage":
            port.change_credentials(known.stage())
        case "activate":
            port.change_credentials(known.activate(call.body.get("overlapSeconds", 0)))
        case _ if known.is_staged:
            raise ApiError(
                409, "rotation_under_way", "the former secret still signs: activate the new one first"
            )
        case _:
            port.change_credentials(known.retire())
    return Reply({"staged": port.credentials.is_staged})


def delete_kafka(port: Port, call: Call) -> Reply:
    """Agent runs are offered to polling again."""
    port.kafka = None
    return Reply({})


def reset(port: Port, call: Call) -> Reply:
    """Forgets all state, faults, counters and switches; credentials, port and organisation stay.

    The live token stays too, unless its lifetime had been changed.
    """
    port.forget_deliveries()
    if port.settings.token_lifetime_seconds != Settings().token_lifetime_seconds:
        port.tokens.expire()
    token, organization = port.store.meta("token"), port.organization()
    port.store.clear()
    if token is not None:
        port.store.set_meta("token", token)
    port.store.set_meta("organization", {**organization, "name": "Local Port", "settings": {}})
    port.settings = Settings()
    port.faults = Faults()
    port.window = RateWindow()
    port.calls.clear()
    port.deliveries.clear()
    port.definitions_changed()
    port.secrets_changed()
    return Reply({})


def edit(port: Port, call: Call) -> Reply:
    """Changes or deletes an object behind the API's back, as somebody in Port's UI would.

    `patch` is a JSON merge patch: null removes a key.
    """
    check(_EDIT, call.body)
    kind, identifier = call.body["kind"], call.body["identifier"]
    if ("patch" in call.body) == bool(call.body.get("delete")):
        raise invalid_request("give either patch or delete: true")
    if kind == "entity":
        return _edit_entity(port, call)
    table, column = {
        "action": ("actions", "identifier"),
        "blueprint": ("blueprints", "identifier"),
        "secret": ("secrets", "name"),
    }[kind]
    document = port.store.document(
        f"SELECT doc FROM {table} WHERE {column} = ?",  # noqa: S608 - names of our own tables
        (identifier,),
    )
    if document is None:
        raise not_found(kind.capitalize(), identifier)
    port.definitions_changed()
    if call.body.get("delete"):
        port.store.run(f"DELETE FROM {table} WHERE {column} = ?", (identifier,))  # noqa: S608
        return Reply({})
    changed = {**_merged(document, call.body["patch"]), "updatedAt": now()}
    if kind != "secret":
        changed["updatedBy"] = "ui"
    port.store.run(
        f"UPDATE {table} SET doc = ? WHERE {column} = ?",  # noqa: S608 - names of our own tables
        (compact(changed), identifier),
    )
    return Reply({kind: changed})


def health(port: Port, nonce: str) -> dict[str, Any]:
    return {"ok": True, "nonce": nonce, "version": __version__}


def _edit_entity(port: Port, call: Call) -> Reply:
    blueprint, identifier = call.body.get("blueprint", ""), call.body["identifier"]
    entity = entities.existing(port, blueprint, identifier)
    if call.body.get("delete"):
        entities.remove(port, blueprint, identifier, call, force=True)
        return Reply({})
    changed = {**_merged(entity, call.body["patch"]), "updatedAt": now(), "updatedBy": "ui"}
    entities.save(port, entities.blueprint(port, blueprint), entity, changed, call)
    return Reply({"entity": changed})


def _merged(document: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    result = dict(document) if isinstance(document, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def tick(port: Port) -> None:
    """What local Port does by itself as time goes by."""
    with port.change():
        automations.expire_timers(port)
