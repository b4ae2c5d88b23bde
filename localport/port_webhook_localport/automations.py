"""Events, and the automations that they start."""

from __future__ import annotations

import logging
import time
from typing import Any

from port_webhook_localport import invocations, runstate
from port_webhook_localport.expressions import ExpressionError, evaluate
from port_webhook_localport.port import Port
from port_webhook_localport.web import ApiError, make_id, now

_LOG = logging.getLogger("port_webhook_localport")
MAX_DEPTH = 8


def entity_changed(
    port: Port,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    chain: tuple[str, ...],
    causing_run: str | None,
) -> None:
    """Fires ENTITY_CREATED, ENTITY_UPDATED or ENTITY_DELETED and ANY_ENTITY_CHANGE."""
    action = "CREATE" if before is None else "DELETE" if after is None else "UPDATE"
    subject = after or before
    if subject is None:
        return
    event = {
        "action": action,
        "resourceType": "entity",
        "trigger": trigger(port, chain),
        "context": {
            "blueprintIdentifier": subject["blueprint"],
            "entityIdentifier": subject["identifier"],
            "propertyIdentifier": None,
        },
        "diff": {"before": before, "after": after},
    }
    types = (f"ENTITY_{action}D", "ANY_ENTITY_CHANGE")
    _fire(port, types, "blueprintIdentifier", subject["blueprint"], event, chain, causing_run)


def timer_expired(port: Port, entity: dict[str, Any], property_id: str) -> None:
    """Fires TIMER_PROPERTY_EXPIRED of one property."""
    event = {
        # The sources about Port do not name this value.
        "action": "TIMER_EXPIRED",
        "resourceType": "entity",
        "trigger": trigger(port, ()),
        "context": {
            "blueprintIdentifier": entity["blueprint"],
            "entityIdentifier": entity["identifier"],
            "propertyIdentifier": property_id,
        },
        "diff": {"after": entity},
    }
    types = ("TIMER_PROPERTY_EXPIRED",)
    _fire(port, types, "blueprintIdentifier", entity["blueprint"], event, (), None, property_id)


def run_changed(port: Port, run: runstate.Run, before: dict[str, Any] | None) -> None:
    """Fires RUN_CREATED or RUN_UPDATED and ANY_RUN_CHANGE.

    Args:
        before: the run's v2 object before the change; None when the run is new.
    """
    action = "CREATE" if before is None else "UPDATE"
    definition = port.store.document("SELECT doc FROM actions WHERE identifier = ?", (run.action,))
    event = {
        "id": make_id("event"),
        "action": action,
        "resourceType": "run",
        "trigger": trigger(port, run.chain),
        "context": {"action": definition or {"identifier": run.action}},
        "diff": {"before": before, "after": runstate.view(port, run, "v2")},
    }
    types = (f"RUN_{action}D", "ANY_RUN_CHANGE")
    _fire(port, types, "actionIdentifier", run.action, event, run.chain, run.id)


def expire_timers(port: Port) -> int:
    """Fires the timers that are due; returns how many."""
    due = port.store.rows(
        "SELECT blueprint, identifier, property FROM timers WHERE due <= ? ORDER BY due LIMIT 100",
        (time.time(),),
    )
    for key in due:
        port.store.run("DELETE FROM timers WHERE blueprint = ? AND identifier = ? AND property = ?", key)
        entity = port.store.document(
            "SELECT doc FROM entities WHERE blueprint = ? AND identifier = ?", (key[0], key[1])
        )
        if entity is not None:
            timer_expired(port, entity, key[2])
    return len(due)


def trigger(port: Port, chain: tuple[str, ...]) -> dict[str, Any]:
    """Who caused an event, and when."""
    return {
        "by": {"orgId": port.organization_id, "userId": port.user_id},
        "origin": "AUTOMATION" if chain else "API",
        "at": now(),
    }


class _Cache:
    """Active automations by event type and subject; built again when a definition changes."""

    def __init__(self) -> None:
        self.revision = -1
        self.store: object = None
        self.by_event: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def find(self, port: Port, event_type: str, subject: str) -> list[dict[str, Any]]:
        if self.revision != port.revision or self.store is not port.store:
            self.by_event = {}
            for document in port.store.documents(
                "SELECT doc FROM actions WHERE json_extract(doc, '$.trigger.type') = 'automation' ORDER BY rowid"
            ):
                event = document["trigger"]["event"]
                about = event.get("blueprintIdentifier") or event.get("actionIdentifier")
                # Absent means active: Port's documentation only says that false keeps it inactive.
                if document.get("publish", True):
                    self.by_event.setdefault((event["type"], about), []).append(document)
            self.revision, self.store = port.revision, port.store
        return self.by_event.get((event_type, subject), [])


_cache = _Cache()


def _fire(
    port: Port,
    types: tuple[str, ...],
    subject_key: str,
    subject: str,
    event: dict[str, Any],
    chain: tuple[str, ...],
    causing_run: str | None,
    property_id: str | None = None,
) -> None:
    for event_type in types:
        for automation in list(_cache.find(port, event_type, subject)):
            trigger = automation["trigger"]
            if property_id is not None and trigger["event"].get("propertyIdentifier") != property_id:
                continue
            if _condition_holds(automation, event):
                _start(port, automation, event, chain, causing_run)


def _condition_holds(automation: dict[str, Any], event: dict[str, Any]) -> bool:
    condition = automation["trigger"].get("condition")
    if not condition or not condition["expressions"]:
        return True
    results = []
    for expression in condition["expressions"]:
        try:
            results.append(evaluate(expression, event) is True)
        except ExpressionError as error:
            _LOG.warning("automation %s: condition %s", automation["identifier"], error)
            results.append(False)
    return any(results) if condition.get("combinator", "and") == "or" else all(results)


def _start(
    port: Port,
    automation: dict[str, Any],
    event: dict[str, Any],
    chain: tuple[str, ...],
    causing_run: str | None,
) -> None:
    identifier = automation["identifier"]
    refusal = None
    if chain and chain[-1] == identifier:
        refusal = f"Automation {identifier} was not started: its own run caused the event."
    elif len(chain) >= MAX_DEPTH:
        refusal = (
            f"Automation {identifier} was not started: {MAX_DEPTH} automations in a row led to the event."
        )
    if refusal is not None:
        _LOG.warning("%s", refusal)
        if causing_run is not None:
            runstate.add_log(port, causing_run, refusal)
        return
    doc = runstate.new(port, automation, source="AUTOMATION", requiredApproval=False)
    context = {
        "inputs": None,
        "trigger": {**event["trigger"], "origin": "AUTOMATION"},
        "event": event,
        "entity": None,
        # Not the automation's identifier: Port puts this word here.
        "action": {"identifier": "automation"},
        "run": {"id": doc["id"]},
    }
    method = automation["invocationMethod"]
    internal = {
        "chain": [*chain, identifier],
        "context": context,
        "method": method,
        "synchronized": False,
        "agent": False,
    }
    run = runstate.Run(doc["id"], identifier, doc, "none", internal)
    runstate.insert(port, run)
    try:
        evaluated = invocations.evaluate(port, method, context)
    except ApiError as error:
        runstate.add_log(port, run.id, f"The invocation could not be evaluated: {error.message}")
        doc["summary"] = error.message
        runstate.end(run, "FAILURE")
        runstate.save(port, run)
    else:
        if isinstance(evaluated, invocations.Webhook):
            internal |= {"synchronized": evaluated.synchronized, "agent": evaluated.agent}
        doc["payload"] = invocations.masked(port, method, context)
        invocations.launch(port, run)
    run_changed(port, run, None)
