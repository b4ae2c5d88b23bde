"""The polling protocol of Port's execution agent."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from port_webhook_localport import invocations, runstate, schemas
from port_webhook_localport.delivery import fail_unevaluable
from port_webhook_localport.port import Port
from port_webhook_localport.schemas import check
from port_webhook_localport.web import ApiError, Call, Reply, not_found

AGENT = "_PORT_EXEC_AGENT"
_DEFAULT_VISIBILITY_MS = 60_000


def claim(port: Port, call: Call) -> Reply:
    """Hands out pending runs with `agent: true`, oldest first; a claim lapses when it is not acknowledged."""
    _check_reserved(call)
    check(schemas.CLAIM, call.body)
    wanted = call.body.get("invocationMethod", "WEBHOOK")
    if call.body["installationId"] != AGENT or wanted != "WEBHOOK":
        return Reply({"runs": []})
    excluded = set(call.body.get("exclude", []))
    moment = time.time()
    seconds = call.body.get("visibilityTimeoutMs", _DEFAULT_VISIBILITY_MS) / 1000
    until = moment + min(seconds, port.settings.claim_seconds)
    claimed: list[dict[str, object]] = []
    for run in runstate.waiting_for_agents(port):
        if len(claimed) >= call.body.get("limit", 100):
            break
        if run.action in excluded or run.internal.get("claimedUntil", 0) > moment:
            continue
        try:
            evaluated = _with_secrets(port, run)
        except ApiError as error:
            # One run that cannot be sent must not keep the others from the agent.
            fail_unevaluable(port, run, error)
            continue
        run.internal["claimedUntil"] = until
        run.doc["claimedUntil"] = (
            datetime.fromtimestamp(until, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )
        run.doc["installationId"] = call.body["installationId"]
        runstate.save(port, run)
        claimed.append({**runstate.view(port, run, "v2"), "payload": evaluated})
    return Reply({"runs": claimed})


def acknowledge(port: Port, call: Call) -> Reply:
    """Takes claimed runs off the queue: `runIds` counts, `runId` refuses a second time with 409."""
    _check_reserved(call)
    check(schemas.ACKNOWLEDGE, call.body)
    single = "runId" in call.body
    count = 0
    for run_id in [call.body["runId"]] if single else call.body["runIds"]:
        run = runstate.load(port, run_id) if single else runstate.find(port, run_id)
        if run is None or run.delivery != "agent":
            continue
        run.delivery = "acknowledged"
        run.doc["pendingExecution"] = False
        runstate.save(port, run)
        count += 1
    if single and not count:
        raise ApiError(409, "already_acknowledged", f'Run "{call.body["runId"]}" is not pending')
    return Reply({"ackedCount": count})


def claim_workflows(port: Port, call: Call) -> Reply:
    """Local Port has no workflows, so none of their nodes is ever pending."""
    _check_reserved(call)
    check(schemas.CLAIM, call.body)
    return Reply({"nodeRuns": []})


def acknowledge_workflow(port: Port, call: Call) -> Reply:
    _check_reserved(call)
    check(schemas.closed("nodeRunIdentifier", nodeRunIdentifier=schemas.STRING), call.body)
    raise not_found("WorkflowNodeRun", call.body["nodeRunIdentifier"])


def _with_secrets(port: Port, run: runstate.Run) -> dict[str, object]:
    """The invocation as the agent gets it: it sends the request, so it needs the secrets' values."""
    payload: dict[str, object] = invocations.evaluate(
        port, run.internal["method"], run.internal["context"]
    ).payload()
    return payload


def _check_reserved(call: Call) -> None:
    if call.headers.get("x-port-reserved-usage") != "true":
        raise ApiError(403, "missing_permissions", "this route needs the header x-port-reserved-usage: true")
