"""Commands that handle secrets. Values come from a hidden prompt or a variable, never from arguments."""

from __future__ import annotations

import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from port_webhook_stack.cli.app import Stack, _operate, app
from port_webhook_stack.cli.console import fail, note, step, warn

if TYPE_CHECKING:
    from port_webhook_stack.cli.account import Account
    from port_webhook_stack.cli.cluster import Cluster
    from port_webhook_stack.driver import Outcome, StackDriver

FromEnv = Annotated[
    str | None,
    typer.Option("--from-env", metavar="VARIABLE", help="Take the value from a variable instead of asking."),
]
_OVERLAP = "24h"
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


@app.command("rotate-secret")
def rotate_secret(
    overlap: Annotated[
        str, typer.Option(help="How long the former secret stays valid: 90s, 30m, 24h, 7d.")
    ] = _OVERLAP,
    retire: Annotated[
        bool, typer.Option("--retire", help="End the former secret now, instead of rotating.")
    ] = False,
    from_env: FromEnv = None,
    stack: Stack = "local",
) -> None:
    """Change Port's client secret without a restart and without losing a run.

    Local Port makes a new one, which the listener learns before it signs. With a real Port, rotate the secret there
    first; this command asks for the new one. If it is interrupted, run it again.
    """
    from port_webhook_handlers.runtime.secret_file import SecretFileError
    from port_webhook_localport.control import LocalPortError
    from port_webhook_stack.cli.account import account_of
    from port_webhook_stack.cli.cluster import cluster_of
    from port_webhook_stack.cli.connection import provider_configuration, state_folder

    project = Path.cwd()
    local = provider_configuration(project, stack).get("region") == "local"
    state = state_folder(project, stack)
    seconds = _seconds(overlap)
    try:
        if retire and (account := account_of(project, stack)) is not None:
            _retire_in(account)
        elif retire and (cluster := cluster_of(project, stack)) is not None:
            _retire_in_cluster(cluster)
        elif retire:
            _retire(state, local=local)
        elif local:
            if from_env:
                raise _failed("local Port makes its new secret itself: leave --from-env out")
            _rotate_local(stack, state, seconds)
        else:
            _rotate(project, stack, state, seconds, from_env)
    except (LocalPortError, SecretFileError) as error:
        raise _failed(str(error)) from error


@app.command("set-secret")
def set_secret(
    name: Annotated[str, typer.Argument(help="Name, as handlers declare it or templates use it.")],
    in_port: Annotated[
        bool, typer.Option("--port", help="For Port: {{ .secrets.NAME }} in URLs, headers and bodies.")
    ] = False,
    from_env: FromEnv = None,
    stack: Stack = "local",
) -> None:
    """Store a secret, encrypted, in the stack file; the next `up` deploys it."""
    from port_webhook_handlers.port.names import is_secret_name
    from port_webhook_stack.driver import LOCAL_STACK, Outcome
    from port_webhook_stack.settings import MODULE

    if not is_secret_name(name):
        raise _failed(f"{name!r} is no name of a secret: use letters, digits, _ and -, 100 at most")
    value = _read(f"Value of {name}", from_env)
    setting = "portSecrets" if in_port else "secrets"

    def store(driver: StackDriver) -> Outcome:
        driver.set_secret(f"{MODULE}:{setting}.{name}", value, path=True)
        return Outcome()

    _operate(stack, store)
    note(f"  {MODULE}:{setting}.{name} is set; deploy it with: port-webhook up -s {stack}")
    if stack == LOCAL_STACK:
        warn("the passphrase of stack local is published: keep real secrets in {fromEnv: VARIABLE} instead")


def _rotate_local(stack: str, state: Path, seconds: float) -> None:
    from port_webhook_localport import control
    from port_webhook_stack.port.local_port import FOLDER

    home = state / FOLDER
    with step("new secret") as current:
        control.rotate_secret(home, "stage")
        current.result = "made; local Port still signs with the former one"
    # From here on the listener accepts both.
    _operate(stack, lambda driver: driver.up())
    _activate(state, seconds)


def finish_rotation(stack: str) -> None:
    """After an `up`: has local Port sign with a secret that an interrupted rotation has left unused."""
    from port_webhook_localport import control
    from port_webhook_stack.cli.connection import provider_configuration, state_folder
    from port_webhook_stack.port.local_port import FOLDER

    local = provider_configuration(Path.cwd(), stack).get("region") == "local"
    state = state_folder(Path.cwd(), stack)
    if local and control.is_rotating(state / FOLDER):
        _activate(state, _seconds(_OVERLAP))


def _activate(state: Path, seconds: float) -> None:
    from port_webhook_localport import control
    from port_webhook_stack.port.local_port import FOLDER

    with step("rotation") as current:
        control.rotate_secret(state / FOLDER, "activate", seconds)
        current.result = _ended(state, seconds)


def _rotate(project: Path, stack: str, state: Path, seconds: float, from_env: str | None) -> None:
    from port_webhook_handlers.port.client import PortAuthenticationError, PortClient
    from port_webhook_handlers.port.regions import API_BASE_URLS
    from port_webhook_stack.cli import cluster
    from port_webhook_stack.cli.account import account_of
    from port_webhook_stack.cli.connection import provider_configuration, stack_configuration
    from port_webhook_stack.settings import MODULE, PROVIDER

    own = stack_configuration(project, stack)
    if f"{MODULE}:signingSecrets" in own:
        raise _failed(
            f"stack {stack} lists its {MODULE}:signingSecrets itself: put the new one first, and give the former "
            "one a notAfter"
        )
    values = provider_configuration(project, stack)
    base_url = values.get("baseUrl") or API_BASE_URLS.get(values.get("region", "eu"), "")
    client_id = values.get("clientId")
    if not client_id:
        raise _failed(f"stack {stack} has no client id: set {PROVIDER}:clientId or PORT_CLIENT_ID")
    secret = _read("New client secret", from_env)
    with step("new secret") as current, PortClient(base_url, client_id, secret) as client:
        try:
            client.check_credentials()
        except PortAuthenticationError as error:
            raise _failed(
                f"{base_url} refuses this secret for {client_id}: rotate it in Port first, then copy the whole of it"
            ) from error
        current.result = f"accepted by {base_url}"
    end = time.time() + seconds
    own_cluster = cluster.cluster_of(project, stack)
    # What counts besides is mounted before the new secret is, so that there is no moment without the former one.
    kept = own_cluster is not None and cluster.keep_former(own_cluster, secret, end)
    in_environment = f"{PROVIDER}:clientSecret" not in own and "PORT_CLIENT_SECRET" in os.environ

    def deploy(driver: StackDriver) -> Outcome:
        if in_environment:
            os.environ["PORT_CLIENT_SECRET"] = secret
        else:
            driver.set_secret(f"{PROVIDER}:clientSecret", secret)
        return driver.up()

    _operate(stack, deploy)
    with step("rotation") as current:
        own_account = account_of(project, stack)
        if own_cluster is not None:
            current.result = _shown(kept, end)
        else:
            current.result = _ended_in(own_account, seconds) if own_account else _ended(state, seconds)
    if in_environment:
        warn("export PORT_CLIENT_SECRET with the new secret from now on")


def _retire(state: Path, *, local: bool) -> None:
    from port_webhook_localport import control
    from port_webhook_stack.port.local_port import FOLDER
    from port_webhook_stack.secrets_store.local_handler import end_previous

    with step("rotation") as current:
        if local:
            control.rotate_secret(state / FOLDER, "retire")
        found = end_previous(state, 0)
        current.result = "the former secret is refused from now on" if found else "there is no former secret"


def _retire_in(account: Account) -> None:
    from port_webhook_stack.cli.account import retire

    with step("rotation") as current:
        found = retire(account)
        current.result = (
            "the former secret is refused as soon as functions read their secrets again (5 minutes)"
            if found
            else "there is no former secret"
        )


def _retire_in_cluster(cluster: Cluster) -> None:
    from port_webhook_stack.cli.cluster import end_former

    with step("rotation") as current:
        found = end_former(cluster)
        current.result = (
            "the former secret is refused as soon as nodes have seen that it is gone (about a minute)"
            if found
            else "there is no former secret"
        )


def _ended(state: Path, seconds: float) -> str:
    from port_webhook_stack.secrets_store.local_handler import end_previous

    end = time.time() + seconds
    return _shown(end_previous(state, end) > 0, end)


def _ended_in(account: Account, seconds: float) -> str:
    from port_webhook_stack.cli.account import keep_former

    end = time.time() + seconds
    return _shown(keep_former(account, end), end)


def _shown(found: bool, end: float) -> str:
    until = datetime.fromtimestamp(end).astimezone().isoformat(sep=" ", timespec="seconds")
    return f"Port signs with the new secret{f'; the former one is valid until {until}' if found else ''}"


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+)([smhd]?)", text.strip())
    if match is None:
        raise _failed(f"--overlap {text}: write a number and s, m, h or d, such as 30m")
    return float(match[1]) * _UNITS[match[2]]


def _read(label: str, from_env: str | None) -> str:
    if from_env is not None:
        value = os.environ.get(from_env, "")
        if not value:
            raise _failed(f"--from-env {from_env}: the variable is not set")
        return value
    if not sys.stdin.isatty():
        raise _failed("there is no terminal to ask on: give the value by --from-env VARIABLE")
    import getpass

    value = getpass.getpass(f"{label}: ").strip()
    if not value:
        raise _failed("nothing was entered, and nothing was changed")
    return value


def _failed(message: str) -> typer.Exit:
    fail(message)
    return typer.Exit(1)
