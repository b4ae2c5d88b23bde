"""Runs: reading, reporting, approval."""

from __future__ import annotations

import json
from typing import Any

from port_webhook_localport import actions, automations, invocations, runstate, schemas
from port_webhook_localport.execution import run_version
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check
from port_webhook_localport.web import ApiError, Call, Reply, invalid_request


def get(port: Port, call: Call) -> Reply:
    version = run_version(call)
    return Reply({"run": runstate.view(port, runstate.load(port, call.path["run"]), version)})


def list_all(port: Port, call: Call) -> Reply:
    """Runs that pass every filter, newest first."""
    version = run_version(call)
    limit = call.number("limit", 100, 1, 1000)
    query = call.query
    conditions: list[str] = []
    values: list[object] = []

    def add(condition: str, value: object) -> None:
        conditions.append(condition)
        values.append(value)

    for name, path in (
        ("entity", "$.entity.identifier"),
        ("blueprint", "$.blueprint.identifier"),
        ("user_id", "$.createdBy"),
    ):
        if name in query:
            add(f"json_extract(doc, '{path}') = ?", query[name])
    if "user_email" in query:
        add("json_extract(internal, '$.context.trigger.by.user.email') = ?", query["user_email"])
    if "external_run_id" in query:
        add("json_extract(internal, '$.externalRunId') = ?", query["external_run_id"])
    if "action" in query:
        add("action = ?", query["action"])
    if "active" in query:
        operator = "IN" if call.flag("active") else "NOT IN"
        conditions.append(f"status {operator} ('IN_PROGRESS', 'WAITING_FOR_APPROVAL')")
    for name, column in (("exclude", "action"), ("source", "json_extract(doc, '$.source')")):
        if name in call.lists:
            listed = call.lists[name]
            operator = "NOT IN" if name == "exclude" else "IN"
            conditions.append(f"{column} {operator} ({', '.join('?' * len(listed))})")
            values += listed
    where = " WHERE " + " AND ".join(conditions) if conditions else ""
    rows = port.store.rows(
        f"SELECT id, action, doc, delivery, internal FROM runs{where} "  # noqa: S608 - fixed conditions
        "ORDER BY seq DESC LIMIT ?",
        (*values, limit),
    )
    found = [runstate.Run(row[0], row[1], json.loads(row[2]), row[3], json.loads(row[4])) for row in rows]
    return Reply({"runs": [runstate.view(port, run, version) for run in found]})


def patch(port: Port, call: Call) -> Reply:
    """Reports on a run; each key replaces its former value. A run that has ended stays as it is."""
    version = run_version(call)
    run = runstate.load(port, call.path["run"])
    check(schemas.RUN_CHANGE, call.body)
    status = call.body.get("status")
    if run.status in runstate.FINAL:
        raise invalid_request(f'Run "{run.id}" has ended with {run.status} and cannot be changed')
    if status is not None:
        _check_status_by_hand(run)
        if run.status == "WAITING_FOR_APPROVAL" and status != "FAILURE":
            raise invalid_request(
                f'Run "{run.id}" waits for approval: only FAILURE can be set, to withdraw it'
            )
    before = runstate.view(port, run, "v2")
    for name, value in call.body.items():
        if name == "externalRunId":
            run.internal["externalRunId"] = value
        elif name == "link":
            run.doc["link"] = value if isinstance(value, list) else [value]
        elif name != "status":
            run.doc[name] = value
    if status is not None:
        runstate.end(run, status)
    runstate.touch(run, port.user_id)
    runstate.save(port, run)
    automations.run_changed(port, run, before)
    return Reply({"run": runstate.view(port, run, version)})


def patch_response(port: Port, call: Call) -> Reply:
    """Stores the reply of a synchronous webhook; the execution agent calls this."""
    version = run_version(call)
    run = runstate.load(port, call.path["run"])
    check(schemas.RUN_RESPONSE, call.body)
    before = runstate.view(port, run, "v2")
    run.doc["response"] = call.body["response"]
    runstate.touch(run, port.user_id)
    runstate.save(port, run)
    automations.run_changed(port, run, before)
    return Reply({"run": runstate.view(port, run, version)})


def add_log(port: Port, call: Call) -> Reply:
    """Appends a log line; with `terminationStatus` it also ends the run."""
    run = runstate.load(port, call.path["run"])
    check(schemas.RUN_LOG, call.body)
    if run.status in runstate.FINAL:
        raise ApiError(422, "run_exhausted", f'Run "{run.id}" has ended with {run.status}')
    status = call.body.get("terminationStatus")
    if status is not None:
        _check_status_by_hand(run)
    line = runstate.add_log(port, run.id, call.body["message"], port.user_id)
    if status is not None or "statusLabel" in call.body:
        before = runstate.view(port, run, "v2")
        run.doc["statusLabel"] = call.body.get("statusLabel", run.doc["statusLabel"])
        if status is not None:
            runstate.end(run, status)
        runstate.touch(run, port.user_id)
        runstate.save(port, run)
        # A log line alone fires no event (Port's rule); the end of a run is a change of the run.
        if status is not None:
            automations.run_changed(port, run, before)
    return Reply({"runLog": line}, 201)


def list_logs(port: Port, call: Call) -> Reply:
    run = runstate.load(port, call.path["run"])
    limit, offset = call.number("limit", 50, 1, 50), call.number("offset", 0, 0, 10**9)
    lines = port.store.documents(
        "SELECT doc FROM run_logs WHERE run = ? ORDER BY seq LIMIT ? OFFSET ?", (run.id, limit, offset)
    )
    return Reply({"runLogs": lines})


def approve(port: Port, call: Call) -> Reply:
    """Approves or declines. The token's user may decide; `run_as` names another approver (local only)."""
    version = run_version(call)
    run = runstate.load(port, call.path["run"])
    check(schemas.APPROVAL, call.body)
    if run.status != "WAITING_FOR_APPROVAL":
        raise ApiError(422, "run_not_waiting_for_approval", f'Run "{run.id}" does not wait for approval')
    needed = _needed_approvers(port, run)
    user = call.query.get("run_as", port.user_id)
    everyone = run.doc["requiredApproval"] == {"type": "ALL"}
    if user not in needed and (everyone or user != port.user_id):
        raise ApiError(403, "missing_permissions", f"{user} is not an approver of this action")
    before = runstate.view(port, run, "v2")
    decision = {
        "userId": user,
        "state": "APPROVED" if call.body["status"] == "APPROVE" else "DECLINED",
        "description": call.body.get("description", ""),
    }
    decisions = run.internal.setdefault("approvals", {})
    decisions[user] = decision
    run.doc["approval"] = decision
    runstate.touch(run, user)
    if decision["state"] == "DECLINED":
        runstate.end(run, "DECLINED")
        runstate.save(port, run)
    elif everyone and not all(decisions.get(name, {}).get("state") == "APPROVED" for name in needed):
        runstate.save(port, run)
    else:
        run.doc["status"] = "IN_PROGRESS"
        invocations.launch(port, run)
    automations.run_changed(port, run, before)
    return Reply({"run": runstate.view(port, run, version)}, 201)


def approvers(port: Port, call: Call) -> Reply:
    run = runstate.load(port, call.path["run"])
    decisions: dict[str, dict[str, Any]] = run.internal.get("approvals", {})
    shown = list(decisions.values())
    if call.flag("include_pending_approvers"):
        shown += [
            {"userId": user, "state": "PENDING", "description": ""}
            for user in _needed_approvers(port, run)
            if user not in decisions
        ]
    return Reply({"approvers": shown})


def _needed_approvers(port: Port, run: runstate.Run) -> list[str]:
    named: list[str] = actions.permissions_of(port, run.action)["approve"]["users"]
    return named or [port.user_id]


def _check_status_by_hand(run: runstate.Run) -> None:
    """Port itself ends a synchronous run, unless the execution agent delivers it."""
    if run.synchronized and not run.agent and run.status != "WAITING_FOR_APPROVAL":
        raise ApiError(
            422,
            "run_synchronized_error",
            f'Run "{run.id}" is synchronous: its status follows the reply of the webhook',
        )
