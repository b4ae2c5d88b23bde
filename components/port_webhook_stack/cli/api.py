"""One call of Port's API, with the credentials of a stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from port_webhook_stack.cli.app import Stack, app
from port_webhook_stack.cli.console import fail, note


@app.command()
def api(
    method: Annotated[str, typer.Argument(help="GET, POST, PUT, PATCH or DELETE.")],
    path: Annotated[str, typer.Argument(help="From /v1/ on, with its query.")],
    body: Annotated[str | None, typer.Option("--json", help="Body, as JSON.")] = None,
    stack: Stack = "local",
) -> None:
    """Call Port's API and print the answer: `api GET /v1/actions`."""
    from port_webhook_stack.cli.connection import connect

    if not path.startswith("/v1/"):
        fail(f"{path} is no path of Port's API: begin it with /v1/")
        raise typer.Exit(1)
    try:
        content = None if body is None else json.loads(body)
    except ValueError as error:
        fail(f"--json is not JSON: {error}")
        raise typer.Exit(1) from None
    reply = connect(Path.cwd(), stack).request(method.upper(), path, json=content)
    note(json.dumps(reply, indent=2, ensure_ascii=False))
