"""Makes docs/bundled-handlers-in-port.md: each bundled handler's definition as Port sees it, and runs of it on local.

    python -m tests.engine.bundled_page

The definitions are those that the handlers generate, the transcripts are what the command line printed. Tests hold
the page against both.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.engine.bundled_stack import BUNDLED, MODULES, Stack, deployed
from tests.engine.project import ROOT, eventually

from port_webhook_handlers.port.names import resolve_urls, route_path
from port_webhook_handlers.sdk.definition import definition

PAGE = ROOT / "docs" / "bundled-handlers-in-port.md"
BASE = "https://hooks.example.com"
"""Where the page's listener is."""

HEAD = """\
# Bundled handlers in Port

What the handlers of [bundled-handlers.md](bundled-handlers.md) are in Port, and runs of each on target `local`. Made by
`python -m tests.engine.bundled_page`: the definitions are generated from the handlers, the transcripts are what a stack
printed that a test deploys; tests hold this page against both. `https://hooks.example.com` stands for the listener.
"""

# What differs from run to run.
_CHANGING = (
    (re.compile(r"\br_[A-Za-z0-9]{16}"), "r_6n2WJQhDCJ7zruJ6"),
    (re.compile(r"127\.0\.0\.1:\d+"), "127.0.0.1:40123"),
    (re.compile(r"on port \d+"), "on port 40123"),
    (re.compile(r"(\d\.\d\.\d)-[0-9a-f]{8}\b"), r"\1-9f31c0aa"),
    (re.compile(r"\b\d+\.\d s\b"), "0.4 s"),
    (re.compile(r"^ *\d+\.\d\d s ", re.MULTILINE), "    0.20 s "),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)"), "2026-01-31T10:00:00Z"),
    (re.compile(r"\(\d+(\.\d+)?s\)"), "(0s)"),
    (re.compile(r"Duration: \d+s"), "Duration: 1s"),
    (re.compile(r"^.*@ (updating|destroying).*\n", re.MULTILINE), ""),
    (re.compile(r"[ \t]+$", re.MULTILINE), ""),
)


def definitions() -> dict[str, dict[str, Any]]:
    """Definitions of all bundled handlers, by identifier."""
    found = {}
    for name in MODULES:
        for value in vars(import_module(f"{BUNDLED}.{name}")).values():
            handler = getattr(value, "__port_handler__", None)
            if handler is not None and handler.function.__module__ == f"{BUNDLED}.{name}":
                body = definition(handler)
                found[handler.identifier] = resolve_urls(
                    body,
                    route=lambda route: BASE + route_path(route),
                    port_api=lambda path: f"https://api.getport.io{path}",
                )
    return found


def steady(text: str) -> str:
    """A transcript without what differs from run to run."""
    for pattern, replacement in _CHANGING:
        text = pattern.sub(replacement, text)
    return text


def essence(transcript: str) -> list[str]:
    """Lines of a steady transcript without their times, and without the progress of an engine."""
    lines = [re.sub(r"^ *(0\.20 s)? *", "", line) for line in transcript.splitlines()]
    return [line for line in lines if line and not re.match(r"[+-]? *(thing|pulumi):", line)]


class _Terminal:
    """Runs commands as a person would, and keeps what they print."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.text = ""

    def run(self, *arguments: str, quiet: bool = False) -> str:
        result = self._stack.project.cli(*arguments, check=False)
        shown = " ".join(["port-webhook", *(shlex.quote(item) for item in arguments)])
        self.text += f"$ {shown} >/dev/null\n{result.stderr}" if quiet else f"$ {shown}\n{result.text}"
        return result.text


def transcripts(stack: Stack, observe: Callable[[str], None] = lambda name: None) -> dict[str, str]:
    """Runs every handler; what was printed, by identifier.

    Args:
        stack: where.
        observe: called after each handler, in another thread.
    """
    stack.web.status, stack.web.reply = 200, b'{"key": "OPS-1", "MessageId": "m-1"}'
    stack.project.port(
        "POST", "/v1/blueprints/service/entities", json={"identifier": "shop", "title": "Shop"}
    )
    text = "message=Cart is slow"
    groups: list[dict[str, Callable[[_Terminal], None]]] = [
        {
            "deploy_microservice": _both(
                _run("deploy_microservice", "version=1.0.0", entity="shop"),
                _run("deploy_microservice", "version=1.1.0", entity="shop"),
            ),
            "scale_service": _run("scale_service", "replicas=2", entity="shop"),
            "restart_service": _run("restart_service", entity="shop"),
            "what_runs_where": _run("what_runs_where", "service=shop"),
            "call_http_api": _run("call_http_api", "method=POST", f"url={stack.web.url}/tickets"),
            "notify_by_slack": _run("notify_by_slack", text),
            "notify_by_teams": _run("notify_by_teams", text),
        },
        {
            "create_resource": _run("create_resource", "identifier=reports", "kind=thing"),
            "delete_resource": _run("delete_resource", entity="reports"),
            "notify_by_mail": _run("notify_by_mail", 'to=["ann@example.com"]', "subject=Cart", text),
        },
        {
            "expire_resource": _expires(stack),
            **{
                name: _hands_over(name, stack)
                for name in ("enqueue_on_sqs", "enqueue_on_kafka", "enqueue_by_http")
            },
        },
    ]

    def all_of(steps: Mapping[str, Callable[[_Terminal], None]]) -> dict[str, str]:
        found = {}
        for name, step in steps.items():
            terminal = _Terminal(stack)
            step(terminal)
            found[name] = terminal.text
            observe(name)
        return found

    with ThreadPoolExecutor(len(groups)) as pool:
        return {name: shown for found in pool.map(all_of, groups) for name, shown in found.items()}


def _run(action: str, *inputs: str, entity: str | None = None) -> Callable[[_Terminal], None]:
    on = ("--entity", entity) if entity else ()
    flags = [part for item in inputs for part in ("-i", item)]

    def start(terminal: _Terminal) -> None:
        terminal.run("run", action, *on, *flags, "--follow")

    return start


def _both(*steps: Callable[[_Terminal], None]) -> Callable[[_Terminal], None]:
    def start(terminal: _Terminal) -> None:
        for step in steps:
            step(terminal)

    return start


def _expires(stack: Stack) -> Callable[[_Terminal], None]:
    def start(terminal: _Terminal) -> None:
        # Later than the command takes.
        soon = (datetime.now(UTC) + timedelta(seconds=10)).isoformat().replace("+00:00", "Z")
        properties = {"kind": "thing", "status": "Ready", "owner": "ann@example.com", "expiresAt": soon}
        body = json.dumps({"identifier": "trial", "properties": properties})
        terminal.run("api", "POST", "/v1/blueprints/resource/entities", "--json", body, quiet=True)

        def over() -> list[Any]:
            runs = stack.project.port("GET", "/v1/actions/runs")["runs"]
            return [
                item
                for item in runs
                if item["action"] == "expire_resource" and item["status"] != "IN_PROGRESS"
            ]

        eventually(over, 60)
        terminal.run("logs", over()[-1]["id"])
        terminal.run("runs", "--action", "expire_resource")

    return start


def _hands_over(action: str, stack: Stack) -> Callable[[_Terminal], None]:
    def start(terminal: _Terminal) -> None:
        printed = terminal.run("run", action, "-i", "task=rotate-keys")
        path = f"/v1/actions/runs/{printed.partition('run ')[2].split()[0]}"

        def handed_over() -> bool:
            run = stack.project.port("GET", path)["run"]
            return (run["status"], run.get("statusLabel")) == ("IN_PROGRESS", "Handed over")

        eventually(handed_over, 60)
        terminal.run("runs", "--action", action)
        end = json.dumps({"status": "SUCCESS", "summary": "keys are rotated"})
        terminal.run("api", "PATCH", path, "--json", end, quiet=True)
        terminal.run("runs", "--action", action)

    return start


def render(shown: Mapping[str, str]) -> str:
    """The page."""
    parts = [HEAD]
    for name, body in definitions().items():
        parts.append(
            f"## `{name}`\n\n```json\n{json.dumps(body, indent=2, ensure_ascii=False)}\n```\n\n"
            f"```console\n{steady(shown[name]).strip()}\n```\n"
        )
    return "\n".join(parts)


def sections() -> dict[str, tuple[dict[str, Any], str]]:
    """Definition and transcript of each handler, as the page shows them."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## `")[1:]:
        blocks = re.findall(r"```\w+\n(.*?)\n```", section, re.DOTALL)
        found[section.partition("`")[0]] = (json.loads(blocks[0]), blocks[1])
    return found


def main() -> None:
    """Writes the page."""
    with tempfile.TemporaryDirectory() as folder, deployed(Path(folder)) as stack:
        PAGE.write_text(render(transcripts(stack)), encoding="utf-8")


if __name__ == "__main__":
    main()
