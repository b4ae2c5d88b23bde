"""`port-webhook dead-letters`: runs that ran out of tries, on the targets that keep them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from port_webhook_stack.cli.app import Stack, app
from port_webhook_stack.cli.console import fail, note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from port_webhook_handlers.port.payload import Payload
    from port_webhook_stack.cli.account import DeadLetter as AccountLetter
    from port_webhook_stack.cli.cluster import DeadLetter as ClusterLetter

_commands = typer.Typer(help="Runs that ran out of tries and were reported as FAILURE.")
app.add_typer(_commands, name="dead-letters")


@_commands.callback(invoke_without_command=True)
def dead_letters(context: typer.Context, stack: Stack = "local") -> None:
    """Runs that ran out of tries and were reported as FAILURE; without a command they are listed."""
    if context.invoked_subcommand is None:
        list_(stack)


@_commands.command("list")
def list_(stack: Stack = "local") -> None:
    """List them, the oldest first."""
    from port_webhook_stack.cli import account, cluster

    project = Path.cwd()
    if (own := account.account_of(project, stack)) is not None:
        letters = account.dead_letters(own)
        for letter in letters:
            note(f"{letter.at}  {letter.run_id}  {letter.route}\n  {letter.reason}")
        note(f"{len(letters)} dead letters")
    elif (found := cluster.cluster_of(project, stack)) is not None:
        ended = cluster.dead_letters(found)
        for item in ended:
            taken = "" if item.state == "done" else "  (Port has not taken this yet)"
            note(f"{item.accepted_at}  {item.run_id}  {item.route}{taken}\n  {item.summary}")
        note(f"{len(ended)} dead letters")
    else:
        fail(f"stack {stack}: targets aws and kubernetes keep dead letters, this one is another")
        raise typer.Exit(1)


@_commands.command("redrive")
def redrive(
    run_ids: Annotated[
        list[str] | None, typer.Argument(help="Runs, as listed.", metavar="RUN", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    reports: Annotated[
        bool,
        typer.Option("--reports", help="Instead: reports that Port has refused until they were given up."),
    ] = False,
    stack: Stack = "local",
) -> None:
    """Run them again: as new runs of the same action with the same inputs, since Port keeps an ended run as it is.

    Port signs and delivers them, so they are verified and validated like any other.
    """
    from port_webhook_stack.cli import account, cluster

    project = Path.cwd()
    own, found = account.account_of(project, stack), cluster.cluster_of(project, stack)
    if own is None and found is None:
        fail(f"stack {stack}: targets aws and kubernetes keep dead letters, this one is another")
        raise typer.Exit(1)
    if sum((bool(run_ids), everything, reports)) != 1:
        fail("redrive takes RUN, once or more, or --all, or --reports")
        raise typer.Exit(2)
    if own is not None and reports:
        note(f"{account.redrive_reports(own)} messages are on the queue of reports again")
    elif reports:
        fail(
            f"stack {stack}: on target kubernetes reports are not given up, the dispatcher goes on for 14 days"
        )
        raise typer.Exit(1)
    elif own is not None:
        _redrive(account.dead_letters(own), partial(account.forget, own), stack, set(run_ids or ()))
    elif found is not None:
        # A run whose end Port has not taken yet is not over.
        ended = [letter for letter in cluster.dead_letters(found) if letter.state == "done"]
        _redrive(ended, partial(cluster.forget, found), stack, set(run_ids or ()))


def _redrive(
    ended: Sequence[AccountLetter | ClusterLetter],
    forget: Callable[[Any], None],
    stack: str,
    wanted: set[str],
) -> None:
    from port_webhook_handlers.port.client import PortError, quote
    from port_webhook_stack.cli.connection import connect, stack_configuration
    from port_webhook_stack.settings import MODULE

    suffix = str(stack_configuration(Path.cwd(), stack).get(f"{MODULE}:identifierSuffix") or "")
    letters = {letter.run_id: letter for letter in ended}
    if unknown := sorted(wanted - letters.keys()):
        fail(
            f"{unknown[0]} is no dead letter of stack {stack}; see: port-webhook dead-letters list -s {stack}"
        )
        raise typer.Exit(1)
    failed = 0
    with connect(Path.cwd(), stack) as client:
        for run_id in wanted or letters:
            letter = letters[run_id]
            path = f"/v1/actions/{quote(letter.route + suffix)}"
            try:
                trigger = client.request("GET", path)["action"].get("trigger") or {}
                form = (trigger.get("userInputs") or {}).get("properties") or {}
                begun = client.request(
                    "POST", f"{path}/runs", params={"version": "v2"}, json=_body(letter.body, form)
                )["run"]
            except _NotRepeatableError as error:
                failed += 1
                fail(f"{run_id}: {error}")
                continue
            except PortError as error:
                failed += 1
                fail(f"{run_id}: {error}" + _hint(letter.body))
                continue
            # First, because it runs now whether or not its letter can be taken away.
            note(f"{run_id} → {begun['id']}  {letter.route}  {begun['status']}")
            forget(letter)
    if failed:
        raise typer.Exit(1)


class _NotRepeatableError(Exception):
    pass


def _body(request: Any, form: Mapping[str, Any]) -> dict[str, Any]:
    """What Port takes for a run with the inputs that a request had.

    Raises:
        _NotRepeatableError: one is encrypted, and Port would encrypt it once more; or they are not to be found.
    """
    payload = _payload(request)
    inputs = {}
    for name, value in (payload.inputs_of(request) or {}).items():
        rule: dict[str, Any] = form.get(name) or {}
        if "encryption" in rule and value is not None:
            raise _NotRepeatableError(
                f"the input {name} is encrypted, so it cannot be given to Port again; run the action anew"
            )
        items: Any = rule.get("items")
        # A request has the whole entity where a form has its identifier.
        if rule.get("format") == "entity":
            value = _identifier(value)
        elif isinstance(items, dict) and items.get("format") == "entity" and isinstance(value, list):
            value = [_identifier(item) for item in value]
        inputs[name] = value
    body: dict[str, Any] = {"properties": inputs}
    entity = _identifier(payload.context_of(request)["entity"])
    if isinstance(entity, str):
        body["entity"] = entity
    return body


def _payload(request: Any) -> Payload:
    """The form of a request, as far as it can be told from it."""
    from port_webhook_handlers.port import payload as forms

    for form, mark in (
        (forms.ENVELOPE, forms.ENVELOPE.action),
        (forms.LEGACY, forms.LEGACY.inputs),
        (forms.UI, forms.UI.run_id),
        (forms.SNAKE_CASE, forms.SNAKE_CASE.run_id),
    ):
        if forms.at(request, mark) is not None:
            return form
    raise _NotRepeatableError(
        "its request has a form of its own, so its inputs are not known; run the action anew"
    )


def _identifier(value: Any) -> Any:
    return value["identifier"] if isinstance(value, dict) and "identifier" in value else value


def _hint(request: Any) -> str:
    return "; an automation runs when its event happens again" if request.get("event") else ""
