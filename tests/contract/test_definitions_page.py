"""docs/definitions.md: every example is executed."""

from __future__ import annotations

import asyncio
import atexit
import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pulumi
import pytest

from port_webhook_handlers.port import Action, Automation
from port_webhook_handlers.port.lint import Known, lint
from port_webhook_stack.definition_files import read
from port_webhook_stack.port.provider import handler

PAGE = (Path(__file__).parents[2] / "docs" / "definitions.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", PAGE, re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list[str]:
    found = [text for name, text in BLOCKS if name == language]
    assert found
    return found


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


def _need_event_loop() -> None:
    """Pulumi's mocks run on the thread's event loop, which other tests take away when they end."""
    try:
        asyncio.get_event_loop_policy().get_event_loop()
    except RuntimeError:
        asyncio.set_event_loop(_loop())


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """What the Python examples define, executed in their order."""
    _need_event_loop()
    names: dict[str, Any] = {}
    for text in blocks("python"):
        exec(compile(text, "definitions.md", "exec"), names)  # noqa: S102 - our own page
    return names


@pytest.fixture(scope="module")
def written(namespace: dict[str, Any]) -> list[Action | Automation | dict[str, Any]]:
    made: list[Action | Automation | dict[str, Any]] = namespace["definitions"]
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project with the files that the page shows, each named in its first line."""
    for text in blocks("yaml"):
        path = tmp_path / text.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_the_examples_have_no_findings(written: list[Any], folder: Path) -> None:
    files = [definition.body for path in folder.rglob("*.yaml") for definition in read(path)]
    properties = {"passed": {"type": "string"}}
    blueprint = {"identifier": "service", "title": "Service", "schema": {"properties": properties}}
    known = Known(secrets={"CHAT_PATH"}, blueprints=Known.shapes([blueprint]), actions=(), routes=())
    assert [str(finding) for finding in lint([*written, *files], known=known)] == []
    assert [item["identifier"] if isinstance(item, dict) else item.identifier for item in written] == [
        "restart_service",
        "restart_on_failing_checks",
        "notify",
    ]


def test_port_takes_what_the_page_shows(written: list[Any]) -> None:
    automation = written[1].to_body()["invocationMethod"]
    assert automation["url"] == "port-api:/v1/actions/restart_service/runs"
    assert automation["synchronized"] is True
    assert automation["body"]["entity"] == "{{ .event.context.entityIdentifier }}"


class Checked(pulumi.runtime.Mocks):
    """Gives every resource to its handler's check, as the engine would."""

    def __init__(self) -> None:
        self.failures: dict[str, Any] = {}

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        inputs = {name: plain(value) for name, value in args.inputs.items()}
        self.failures[args.name] = handler(args.typ).check(None, inputs, {}).failures  # type: ignore[arg-type]
        return args.name, {**args.inputs, "identifier": inputs.get("identifier")}

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:
        return {}


def plain(value: Any) -> Any:
    """A value without its mark of secrecy."""
    return (
        value["value"] if isinstance(value, dict) and "4dabf18193072939515e22adb298388d" in value else value
    )


def test_the_resources_of_the_page_are_valid(namespace: dict[str, Any]) -> None:
    _need_event_loop()
    mocks = Checked()
    pulumi.runtime.set_mocks(mocks, preview=False)
    pulumi.runtime.test(namespace["catalogue"])()
    assert mocks.failures == {"team": [], "payments": [], "chat": [], "repositories": []}


def commands() -> list[list[str]]:
    lines = [line.split(" #")[0].strip() for text in blocks("sh") for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line]


@pytest.mark.parametrize(
    "command", [c for c in commands() if c[:2] == ["port-webhook", "lint"]], ids=" ".join
)
def test_lint_commands_work(command: list[str], folder: Path) -> None:
    executable = Path(sys.executable).with_name(command[0])
    done = subprocess.run(
        [executable, *command[1:]], cwd=folder, capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_exist_with_these_options(command: list[str]) -> None:
    """What needs a deployed stack is shown by the engine's tests; here its words are checked."""
    if command[0] != "port-webhook":
        assert command[:3] == ["pulumi", "config", "set"]
        return
    from typer.main import get_command

    from port_webhook_stack.cli.app import app

    group: Any = get_command(app)
    sub = group.commands[command[1]]
    # Parses and refuses unknown words without running anything.
    with sub.make_context(command[1], list(command[2:])):
        pass
