"""Runs as they are stored: Port's run object, and beside it what Port keeps to itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from port_webhook_localport.port import Port
from port_webhook_localport.web import compact, make_id, not_found, now

FINAL = ("SUCCESS", "FAILURE", "DECLINED")


@dataclass(slots=True)
class Run:
    """One run.

    Attributes:
        doc: Port's run object in its v2 shape.
        delivery: none, pending, sending (a direct invocation); agent, acknowledged (one for the agent that
            polls); pending, published (one for the topic).
        internal: never shown: evaluation context without secrets, invocation method, chain, kind.
    """

    id: str
    action: str
    doc: dict[str, Any]
    delivery: str
    internal: dict[str, Any]

    @property
    def status(self) -> str:
        return str(self.doc["status"])

    @property
    def chain(self) -> tuple[str, ...]:
        """Automations that led to what this run does, oldest first, itself included."""
        return tuple(self.internal["chain"])

    @property
    def synchronized(self) -> bool:
        return bool(self.internal["synchronized"])

    @property
    def agent(self) -> bool:
        return bool(self.internal["agent"])


def new(port: Port, action: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A run object (v2) of an action; `fields` replace the neutral values."""
    moment = now()
    return {
        "id": make_id("r"),
        "status": "IN_PROGRESS",
        "statusLabel": None,
        "action": {
            "identifier": action["identifier"],
            "title": action.get("title"),
            "icon": action.get("icon"),
            "deleted": False,
        },
        "blueprint": None,
        "entity": None,
        "properties": {},
        "rawProperties": {},
        "source": "API",
        "requiredApproval": action.get("requiredApproval", False),
        "approval": None,
        "link": [],
        "summary": "",
        "payload": None,
        "response": None,
        "endedAt": None,
        "pendingExecution": False,
        "claimedUntil": None,
        "installationId": None,
        "createdBy": port.user_id,
        "createdAt": moment,
        "updatedBy": port.user_id,
        "updatedAt": moment,
        "impersonatedBy": None,
        **fields,
    }


def insert(port: Port, run: Run) -> None:
    port.store.run(
        "INSERT INTO runs (id, action, status, delivery, doc, internal) VALUES (?, ?, ?, ?, ?, ?)",
        (run.id, run.action, run.status, run.delivery, compact(run.doc), compact(run.internal)),
    )


def save(port: Port, run: Run) -> None:
    port.store.run(
        "UPDATE runs SET status = ?, delivery = ?, doc = ?, internal = ? WHERE id = ?",
        (run.status, run.delivery, compact(run.doc), compact(run.internal), run.id),
    )


def find(port: Port, run_id: str) -> Run | None:
    row = port.store.row("SELECT id, action, doc, delivery, internal FROM runs WHERE id = ?", (run_id,))
    return None if row is None else _from_row(row)


def load(port: Port, run_id: str) -> Run:
    """A run.

    Raises:
        ApiError: 404.
    """
    run = find(port, run_id)
    if run is None:
        raise not_found("Run", run_id, "id")
    return run


def with_delivery(port: Port, *states: str) -> list[Run]:
    """Runs in these delivery states, oldest first."""
    marks = ", ".join("?" * len(states))
    rows = port.store.rows(
        f"SELECT id, action, doc, delivery, internal FROM runs "  # noqa: S608 - question marks only
        f"WHERE delivery <> 'none' AND delivery IN ({marks}) ORDER BY seq",
        states,
    )
    return [_from_row(row) for row in rows]


def waiting_for_agents(port: Port) -> Iterator[Run]:
    """Runs that agents may claim or have claimed, oldest first; thousands may wait, so they are read in pages."""
    last = 0
    while rows := port.store.rows(
        "SELECT id, action, doc, delivery, internal, seq FROM runs WHERE delivery = 'agent' AND seq > ? "
        "AND delivery <> 'none' ORDER BY seq LIMIT 100",
        (last,),
    ):
        last = rows[-1][5]
        yield from map(_from_row, rows)


def touch(run: Run, user: str) -> None:
    run.doc["updatedAt"] = now()
    run.doc["updatedBy"] = user


def end(run: Run, status: str) -> None:
    """Puts a run into a final state."""
    run.doc["status"] = status
    run.doc["endedAt"] = now()
    run.doc["pendingExecution"] = False
    if run.delivery != "sending":
        run.delivery = "none"


def add_log(port: Port, run_id: str, message: str, user: str = "local-port") -> dict[str, Any]:
    """Appends a log line to a run."""
    line = {
        "id": make_id("rl"),
        "runId": run_id,
        "message": port.mask(message),
        "createdBy": user,
        "createdAt": now(),
    }
    port.store.run("INSERT INTO run_logs (run, doc) VALUES (?, ?)", (run_id, compact(line)))
    return line


def view(port: Port, run: Run, version: str) -> dict[str, Any]:
    """A run as the API shows it: v2, or v1 with the action as plain text (Port's default)."""
    doc = run.doc
    action = doc["action"]
    deleted = not port.store.row("SELECT 1 FROM actions WHERE identifier = ?", (run.action,))
    blueprint, entity = doc["blueprint"], doc["entity"]
    blueprint_exists = blueprint is not None and bool(
        port.store.row("SELECT 1 FROM blueprints WHERE identifier = ?", (blueprint["identifier"],))
    )
    entity_exists = (
        entity is not None
        and blueprint is not None
        and bool(
            port.store.row(
                "SELECT 1 FROM entities WHERE blueprint = ? AND identifier = ?",
                (blueprint["identifier"], entity["identifier"]),
            )
        )
    )
    shown = {
        **doc,
        "action": {**action, "identifier": run.action, "deleted": deleted},
        "blueprint": None if blueprint is None else {**blueprint, "deleted": not blueprint_exists},
        "entity": None if entity is None else {**entity, "deleted": not entity_exists},
    }
    if version == "v1":
        shown |= {
            "action": run.action,
            "relatedEntityExists": entity_exists,
            "relatedBlueprintExists": blueprint_exists,
        }
    return shown


def _from_row(row: tuple[Any, ...]) -> Run:
    return Run(row[0], row[1], json.loads(row[2]), row[3], json.loads(row[4]))
