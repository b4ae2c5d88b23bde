"""Commands about runs that wait for somebody: list, approve, decline, withdraw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from port_webhook_stack.cli.app import Stack, app
from port_webhook_stack.cli.console import fail, note

if TYPE_CHECKING:
    from port_webhook_handlers.port.client import PortClient

RunId = Annotated[str, typer.Argument(help="Id of the run, r_….")]
Reason = Annotated[str | None, typer.Option(help="Shown with the decision.")]
As = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="EMAIL", help="Decide as this approver (local Port); else as the credentials."
    ),
]


@app.command("runs")
def list_runs(
    action: Annotated[str | None, typer.Option(help="Only runs of this action or automation.")] = None,
    status: Annotated[
        str | None, typer.Option(help="Only this status, such as FAILURE or WAITING_FOR_APPROVAL.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many to look at, newest first.")] = 20,
    stack: Stack = "local",
) -> None:
    """List the latest runs."""
    from port_webhook_stack.cli.connection import connect

    params = {"limit": str(limit), "version": "v2", **({"action": action} if action else {})}
    found = connect(Path.cwd(), stack).request("GET", "/v1/actions/runs", params=params)["runs"]
    for item in found:
        if status is None or item["status"] == status.upper():
            note(_line(item))


@app.command()
def approve(run_id: RunId, reason: Reason = None, user: As = None, stack: Stack = "local") -> None:
    """Approve a run; once enough approvers have, it is sent."""
    _decide(run_id, "APPROVE", reason, user, stack)


@app.command()
def decline(run_id: RunId, reason: Reason = None, user: As = None, stack: Stack = "local") -> None:
    """Decline a run; it ends as DECLINED and is never sent."""
    _decide(run_id, "DECLINE", reason, user, stack)


@app.command()
def withdraw(run_id: RunId, reason: Reason = None, stack: Stack = "local") -> None:
    """Take back a run that still waits for approval; it ends as FAILURE."""
    from port_webhook_handlers.port.client import quote
    from port_webhook_stack.cli import runs
    from port_webhook_stack.cli.connection import connect

    client = connect(Path.cwd(), stack)
    present = runs.get(client, run_id)
    if present["status"] != "WAITING_FOR_APPROVAL":
        fail(f"run {run_id} does not wait for approval: its status is {present['status']}")
        raise typer.Exit(1)
    body = {"status": "FAILURE", "summary": reason or "Withdrawn by the requester."}
    changed = client.request(
        "PATCH", f"/v1/actions/runs/{quote(run_id)}", params={"version": "v2"}, json=body
    )
    note(_line(changed["run"]))


def _decide(run_id: str, decision: str, reason: str | None, user: str | None, stack: str) -> None:
    from port_webhook_handlers.port.client import quote
    from port_webhook_stack.cli.connection import connect

    client = connect(Path.cwd(), stack)
    path = f"/v1/actions/runs/{quote(run_id)}"
    params = {"version": "v2", **({"run_as": user} if user else {})}
    body = {"status": decision, **({"description": reason} if reason else {})}
    run = client.request("PATCH", f"{path}/approval", params=params, json=body)["run"]
    note(_line(run))
    if run["status"] == "WAITING_FOR_APPROVAL":
        note(f"  waits for {', '.join(_pending(client, path))}")
    elif run["status"] == "IN_PROGRESS":
        note(f"  follow it with: port-webhook logs {run_id} --follow")


def _pending(client: PortClient, path: str) -> list[str]:
    reply = client.request("GET", f"{path}/approvers", params={"include_pending_approvers": "true"})
    return [item["userId"] for item in reply["approvers"] if item["state"] == "PENDING"]


def _line(item: dict[str, Any]) -> str:
    entity = (item.get("entity") or {}).get("identifier")
    label = f"{(item.get('action') or {}).get('identifier', '?')}{f' on {entity}' if entity else ''}"
    summary = next(iter(str(item.get("summary") or "").splitlines()), "")
    return f"{item['id']}  {item['status']:<20}  {label}  {item.get('createdAt', '')}  {summary}".rstrip()
