"""Commands and their options; the work is done elsewhere."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from port_webhook_stack.cli.console import fail, note, out, step, warn
from port_webhook_stack.cli.formats import Format

if TYPE_CHECKING:
    from collections.abc import Callable

    from port_webhook_stack.driver import Outcome, StackDriver

app = typer.Typer(
    help="A webhook backend for Port: deploy it, run actions, look at it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Stack = Annotated[
    str, typer.Option("--stack", "-s", help="Stack, named after its file stacks/Pulumi.<stack>.yaml.")
]


def main() -> None:
    """Entry point: known failures are one message on standard error and exit code 1."""
    from port_webhook_handlers.port.client import PortError
    from port_webhook_stack.cli.account import AccountError
    from port_webhook_stack.cli.cluster import ClusterError
    from port_webhook_stack.cli.connection import ConnectionUnavailableError
    from port_webhook_stack.cli.runs import InputError

    start = Path.cwd()
    os.chdir(_project())
    try:
        # Commands that take paths need to know where the user is.
        app(obj=start)
    except (PortError, AccountError, ClusterError, ConnectionUnavailableError, InputError) as error:
        fail(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def up(stack: Stack = "local") -> None:
    """Deploy the stack: create what is missing, update what differs, heal what has died."""
    from port_webhook_stack.cli.secrets import finish_rotation

    outcome = _operate(stack, lambda driver: driver.up())
    finish_rotation(stack)
    for name, value in outcome.outputs.items():
        note(f"  {name:<14} {value if isinstance(value, str) else ', '.join(map(str, value))}")


@app.command()
def preview(stack: Stack = "local") -> None:
    """Show what `up` would change, without changing anything."""
    _operate(stack, lambda driver: driver.preview())


@app.command()
def refresh(stack: Stack = "local") -> None:
    """Read the present state of every resource, edits in Port's UI included."""
    _operate(stack, lambda driver: driver.refresh())


@app.command()
def down(stack: Stack = "local") -> None:
    """Remove everything that `up` created; the stack file stays."""
    from port_webhook_stack.cli.connection import state_folder
    from port_webhook_stack.driver import LOCAL_STACK, forget_backend

    _operate(stack, lambda driver: driver.destroy())
    _remove_local_port(stack)
    shutil.rmtree(state_folder(Path.cwd(), stack), ignore_errors=True)
    if stack == LOCAL_STACK:
        forget_backend(Path.cwd())


@app.command()
def env() -> None:
    """Print the variables under which plain `pulumi` works on the local stack: eval "$(port-webhook env)"."""
    from port_webhook_stack.driver import LOCAL_STACK, DriverError, StackDriver, environment_for
    from port_webhook_stack.engine import EngineError, resolve

    try:
        engine = resolve(lambda message: None)
        # Plain pulumi does not create a stack that is only a file.
        StackDriver(Path.cwd(), LOCAL_STACK, engine, lambda message: None)
    except (EngineError, DriverError) as error:
        fail(str(error))
        raise typer.Exit(1) from error
    for name, value in environment_for(Path.cwd(), LOCAL_STACK, engine).items():
        print(f"export {name}={shlex.quote(value)}")  # noqa: T201  # for the shell, not for people
    if not engine.language_host:
        warn(
            "this Pulumi CLI has no Python language host, so plain `pulumi up` cannot run the program: "
            "use `port-webhook up`, or install the official CLI"
        )


@app.command()
def run(
    action: Annotated[str, typer.Argument(help="Identifier of the action.")],
    entity: Annotated[
        str | None, typer.Option("--entity", help="Entity to run it on (DAY-2 and DELETE).")
    ] = None,
    input: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="Input as key=value; repeatable.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print the run's log until it ends.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds to follow at most.")] = 900,
    stack: Stack = "local",
) -> None:
    """Run a self-service action, as a developer would from Port's UI."""
    from port_webhook_stack.cli import runs
    from port_webhook_stack.cli.connection import connect

    started = time.time()
    client = connect(Path.cwd(), stack)
    begun = runs.execute(client, action, entity, input or [])
    on = f" on {entity}" if entity else ""
    note(f"▶ run {begun['id']}  {action}{on}")
    if not follow:
        note(f"  {begun['status']}; see it with: port-webhook logs {begun['id']}")
        return
    for item in runs.follow(client, begun["id"], timeout):
        if "message" in item:
            lines = str(item["message"]).splitlines() or [""]
            out.print(f"  [dim]{_since(item.get('createdAt'), started)}[/dim] {escape(lines[0])}")
            for line in lines[1:]:
                out.print(f"  {'':8} {escape(line)}")
            continue
        _print_end(item, action, started)
        if item["status"] != "SUCCESS":
            raise typer.Exit(1)


@app.command()
def logs(
    run_id: Annotated[str | None, typer.Argument(help="A run; without it, the listener's own log.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until the run ends, or Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option(help="How many lines of the listener's log.")] = 40,
    stack: Stack = "local",
) -> None:
    """Print the log of a run, or of the listener."""
    from port_webhook_stack.cli import runs
    from port_webhook_stack.cli.account import account_of, log_lines
    from port_webhook_stack.cli.cluster import cluster_of, print_logs
    from port_webhook_stack.cli.connection import connect, state_folder

    if run_id is not None:
        client = connect(Path.cwd(), stack)
        if not follow:
            for line in runs.logs(client, run_id):
                note(f"{line.get('createdAt', '')} {line['message']}")
            return
        for item in runs.follow(client, run_id, float("inf")):
            note(f"{item.get('createdAt', '')} {item['message']}" if "message" in item else item["status"])
        return
    if (cluster := cluster_of(Path.cwd(), stack)) is not None:
        raise typer.Exit(print_logs(cluster, lines, follow))
    if (account := account_of(Path.cwd(), stack)) is not None:
        for text in log_lines(account, lines, follow):
            note(text)
        return
    files = sorted(
        (state_folder(Path.cwd(), stack) / "listener").glob("*.log"), key=lambda f: f.stat().st_mtime
    )
    if not files:
        fail(f"no listener of stack {stack} has written a log on this machine: run `port-webhook up`")
        raise typer.Exit(1)
    _print_files(files, lines, follow)


@app.command()
def lint(
    context: typer.Context,
    paths: Annotated[
        list[str], typer.Argument(help="JSON or YAML files, folders, or globs.", metavar="PATH")
    ],
    disable: Annotated[
        list[str] | None, typer.Option("--disable", help="Rule to leave out; repeatable, or with commas.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="How to print findings.")] = Format.text,
) -> None:
    """Check definitions of actions and automations; exit code 1 if there is an error."""
    from port_webhook_stack.cli.lint import examine, render
    from port_webhook_stack.definition_files import DefinitionFileError

    disabled = {rule for item in disable or () for rule in item.split(",")}
    try:
        report = examine(paths, disabled, context.obj)
    except (DefinitionFileError, ValueError) as error:
        fail(str(error))
        raise typer.Exit(2) from None
    text = render(report, form)
    if text:
        print(text)  # noqa: T201  # for machines too, so without colours and wrapping
    if form is Format.text:
        note(report.summary())
    if report.errors:
        raise typer.Exit(1)


@app.command(name="import")
def import_(
    context: typer.Context,
    type: Annotated[
        str | None, typer.Argument(help="Action, Automation, Blueprint, …, or a whole type token.")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="Pulumi's name, as the program declares it.")] = None,
    id: Annotated[
        str | None, typer.Argument(help="Identifier in Port; of an entity <blueprint>|<identifier>.")
    ] = None,
    parent: Annotated[
        str | None, typer.Option("--parent", help="Name of the component that declares it, such as webhook.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="File of import-code, in place of the arguments.")
    ] = None,
    stack: Stack = "local",
) -> None:
    """Take existing objects of Port into the stack's state, without changing them."""
    from port_webhook_stack.cli import imports

    given = [value is not None for value in (type, name, id)]
    if (file is None and not all(given)) or (file is not None and any(given)):
        fail("import takes TYPE NAME ID, or --file with a file of import-code")
        raise typer.Exit(2)

    def work(driver: StackDriver) -> Outcome:
        from port_webhook_stack.importing import ImportedResource

        if file is not None:
            return driver.import_resources(imports.from_file(context.obj / file, driver))
        around = driver.path_to(parent) if parent else ()
        return driver.import_resources(
            [ImportedResource(imports.full_type(str(type)), str(name), str(id), around)]
        )

    try:
        _operate(stack, work)
    except imports.ImportFileError as error:
        fail(str(error))
        raise typer.Exit(1) from None


@app.command(name="import-code")
def import_code(
    context: typer.Context,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    action: Annotated[
        list[str] | None, typer.Option("--action", help="Identifier of an action or automation; repeatable.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All actions and automations.")] = False,
    component: Annotated[
        str, typer.Option("--component", help="Name of the WebhookStack that will declare them.")
    ] = "webhook",
    stack: Stack = "local",
) -> None:
    """Write Python for actions and automations that exist in Port, and the file that imports them."""
    import yaml

    from port_webhook_stack.cli import imports
    from port_webhook_stack.cli.connection import connect

    if everything == bool(action):
        fail("import-code takes --action ID, once or more, or --all")
        raise typer.Exit(2)
    with connect(Path.cwd(), stack) as client:
        found = imports.fetch(client, action or ())
    project = yaml.safe_load(Path("Pulumi.yaml").read_text(encoding="utf-8"))["name"]
    urn = f"urn:pulumi:{stack}::{project}::{imports.COMPONENT_TYPE}::{component}"
    written = imports.write(found, context.obj / out_folder, urn)
    for warning in written.warnings:
        warn(warning)
    note(f"{written.count} definitions in {written.module}")
    note(f"next: pass its DEFINITIONS to WebhookStack, then port-webhook import --file {written.resources}")


@app.command()
def status(stack: Stack = "local") -> None:
    """Show what is deployed and how it is, and the latest runs."""
    from port_webhook_handlers.port.client import PortError
    from port_webhook_stack.cli.account import account_of
    from port_webhook_stack.cli.cluster import cluster_of
    from port_webhook_stack.cli.connection import ConnectionUnavailableError, connect

    if (account := account_of(Path.cwd(), stack)) is not None:
        from port_webhook_stack.cli.overview import overview

        for word, text in overview(account):
            note(f"{word:<12} {text}")
    elif (cluster := cluster_of(Path.cwd(), stack)) is not None:
        from port_webhook_stack.cli.cluster_overview import overview as cluster_overview

        for word, text in cluster_overview(cluster):
            note(f"{word:<12} {text}")
    else:
        _print_local(stack)
    try:
        latest = connect(Path.cwd(), stack).request(
            "GET", "/v1/actions/runs", params={"limit": "5", "version": "v2"}
        )
    except (ConnectionUnavailableError, PortError) as error:
        note(f"runs         {error}")
        return
    for item in latest["runs"]:
        label = (item.get("action") or {}).get("identifier", "?")
        note(f"run          {item['id']}  {label}  {item['status']}  {item.get('summary') or ''}")


def _print_local(stack: str) -> None:
    """What runs on this machine."""
    from port_webhook_handlers.runtime import control as listener_control
    from port_webhook_localport import control as port_control
    from port_webhook_stack.cli.agent_status import agent_lines
    from port_webhook_stack.cli.connection import state_folder

    state = state_folder(Path.cwd(), stack)
    endpoint = port_control.status(state / "localport")
    note(f"local Port   {f'{endpoint.url}  (pid {endpoint.pid})' if endpoint else 'not running'}")
    listener = listener_control.status(state / "listener")
    if listener:
        health = "healthy" if listener.healthy else "NOT HEALTHY: see `port-webhook logs`"
        note(f"listener     {listener.url}  (pid {listener.pid}, {health})")
        note(f"bundle       {listener.digest}")
    else:
        note("listener     not running")
    for word, text in agent_lines(state, listener):
        note(f"{word:<12} {text}")
    for current in sorted((state / "deployments").glob("*/current.json")):
        record = json.loads(current.read_text(encoding="utf-8"))
        note(
            f"deployed     {current.parent.name} {record.get('version')}  http://127.0.0.1:{record.get('port')}"
        )


def _project() -> Path:
    from port_webhook_stack.settings import project_folder

    return project_folder()


def _operate(stack: str, operation: Callable[[StackDriver], Outcome]) -> Outcome:
    """Runs an operation of the engine as two steps; its failure is one message and exit code 1."""
    from port_webhook_stack.driver import DriverError, StackDriver
    from port_webhook_stack.engine import EngineError, resolve

    try:
        with step("engine") as current:
            engine = resolve(current.progress)
            current.result = f"pulumi v{engine.version} ({engine.source})"
        with step(f"stack {stack}") as current:
            outcome = operation(StackDriver(Path.cwd(), stack, engine, current.progress))
            current.result = _changes(outcome.changes)
    except (DriverError, EngineError) as error:
        fail(str(error))
        raise typer.Exit(1) from error
    for warning in outcome.warnings:
        warn(warning)
    return outcome


def _remove_local_port(stack: str) -> None:
    """A preview starts local Port but creates no resource that would end it."""
    from port_webhook_localport import control
    from port_webhook_stack.cli.connection import state_folder

    control.remove(state_folder(Path.cwd(), stack) / "localport")


def _changes(changes: Any) -> str:
    words = {
        "create": "created",
        "update": "updated",
        "delete": "deleted",
        "same": "unchanged",
        "replace": "replaced",
    }
    parts = [
        f"{count} {words.get(operation, operation)}" for operation, count in sorted(changes.items()) if count
    ]
    return ", ".join(parts) or "nothing to do"


def _print_end(item: dict[str, Any], action: str, started: float) -> None:
    ended = _epoch(item.get("endedAt")) or time.time()
    colour = "green" if item["status"] == "SUCCESS" else "yellow" if "WAITING" in item["status"] else "red"
    mark = "✓" if item["status"] == "SUCCESS" else "…" if "WAITING" in item["status"] else "✗"
    out.print(
        f"[{colour}]{mark}[/{colour}] run {item['id']}  {escape(action)} → "
        f"[{colour}]{item['status']}[/{colour}] in {max(0.0, ended - started):.1f} s"
    )
    for name in ("statusLabel", "summary"):
        if item.get(name):
            note(f"  {item[name]}")
    link = item.get("link")
    for address in [link] if isinstance(link, str) else link or []:
        note(f"  {address}")
    if item.get("response") is not None:
        for line in json.dumps(item["response"], indent=2, ensure_ascii=False).splitlines():
            note(f"  {line}")
    if item["status"] == "IN_PROGRESS":
        warn(f"still running; go on with: port-webhook logs {item['id']} --follow")


def _epoch(text: object) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


def _since(created: object, started: float) -> str:
    at = _epoch(created)
    return f"{max(0.0, at - started):6.2f} s" if at else "        "


def _print_files(files: list[Path], lines: int, follow: bool) -> None:
    from port_webhook_handlers.process import tail

    newest = files[-1]
    note(tail(newest, lines))
    if not follow:
        return
    with newest.open(encoding="utf-8", errors="replace") as stream:
        stream.seek(0, os.SEEK_END)
        while True:
            line = stream.readline()
            if line:
                note(line.rstrip())
            else:
                time.sleep(0.2)
