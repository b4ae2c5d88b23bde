"""Runs of actions, as Port's API shows them: execute, follow, print."""

from __future__ import annotations

import difflib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from port_webhook_handlers.port.client import PortClient, quote

FINAL = ("SUCCESS", "FAILURE", "DECLINED")
_LOG_PAGE = 50


class InputError(ValueError):
    """An input on the command line that the action's form does not take."""


def execute(client: PortClient, action: str, entity: str | None, pairs: Sequence[str]) -> dict[str, Any]:
    """Starts a run and returns it as Port shows it.

    Args:
        client: where.
        action: identifier of the action.
        entity: identifier of the entity to run it on; None for operation CREATE.
        pairs: inputs as `key=value`; the action's form says how a value is read.

    Raises:
        InputError: a pair is malformed, or the form has no such input.
        PortError: Port refused the run.
    """
    definition = client.request("GET", f"/v1/actions/{quote(action)}")["action"]
    form = definition.get("trigger", {}).get("userInputs", {}).get("properties", {})
    body: dict[str, Any] = {"properties": inputs(pairs, form)}
    if entity is not None:
        body["entity"] = entity
    run: dict[str, Any] = client.request(
        "POST", f"/v1/actions/{quote(action)}/runs", params={"version": "v2"}, json=body
    )["run"]
    return run


def inputs(pairs: Sequence[str], form: Mapping[str, Any]) -> dict[str, Any]:
    """Reads `key=value` pairs by the types of an action's form.

    Raises:
        InputError: see `execute`.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"-i {pair}: write it as key=value")
        if key not in form:
            close = difflib.get_close_matches(key, list(form), n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(
                f"-i {key}: the form has no such input{hint} (it has: {', '.join(form) or 'none'})"
            )
        kind = form[key].get("type")
        if kind == "string":
            values[key] = text
            continue
        try:
            values[key] = json.loads(text)
        except ValueError as error:
            raise InputError(f"-i {key}: {text!r} is no JSON {kind}") from error
    return values


def get(client: PortClient, run_id: str) -> dict[str, Any]:
    """A run as Port shows it now."""
    run: dict[str, Any] = client.request(
        "GET", f"/v1/actions/runs/{quote(run_id)}", params={"version": "v2"}
    )["run"]
    return run


def logs(client: PortClient, run_id: str, offset: int = 0) -> list[dict[str, Any]]:
    """Log lines of a run from an offset on."""
    lines: list[dict[str, Any]] = []
    while True:
        page = client.request(
            "GET",
            f"/v1/actions/runs/{quote(run_id)}/logs",
            params={"limit": str(_LOG_PAGE), "offset": str(offset + len(lines))},
        )["runLogs"]
        lines += page
        if len(page) < _LOG_PAGE:
            return lines


def follow(client: PortClient, run_id: str, timeout_seconds: float) -> Iterator[dict[str, Any]]:
    """Yields log lines as they come, and in the end the run itself (it has `status`).

    It ends when the run is final or waits for approval, or after the timeout.
    """
    deadline = time.monotonic() + timeout_seconds
    seen, pause = 0, 0.05
    while True:
        run = get(client, run_id)
        fresh = logs(client, run_id, seen)
        seen += len(fresh)
        yield from fresh
        waiting = run["status"] == "WAITING_FOR_APPROVAL"
        if run["status"] in FINAL or waiting or time.monotonic() > deadline:
            yield run
            return
        time.sleep(pause)
        pause = min(pause * 1.5, 1.0)
