"""What the README says is what there is."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from port_webhook_handlers.sdk import Success
from port_webhook_handlers.sdk.testing import invoke
from port_webhook_stack.cli.app import app
from port_webhook_stack.errors import SettingsError
from port_webhook_stack.settings import parse

ROOT = Path(__file__).resolve().parents[3]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_every_command_that_the_documentation_shows_exists() -> None:
    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    shown = {
        command
        for page in PAGES
        for command in re.findall(
            r"^\s*(?:\$ )?(?:\.venv/bin/)?port-webhook ([a-z][a-z-]*)",
            page.read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    }
    assert shown - known == set()
    assert {"run", "status", "logs", "down"} <= shown


def test_every_target_that_the_documentation_shows_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    shown = {
        target
        for page in PAGES
        for target in re.findall(
            r"^\s*(?:\$ )?make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    }
    assert shown - targets == set()
    assert {"up", "test"} <= shown


def test_the_table_of_settings_is_complete() -> None:
    with pytest.raises(SettingsError) as caught:
        parse(
            "dev", {"port-webhook:region": "local", "port-webhook-stack:nonsense": "1"}, frozenset(), {}, ROOT
        )
    known = set(str(caught.value).partition("Known settings: ")[2].rstrip(".").split(", "))
    documented = {key.split(".")[0] for key in re.findall(r"^\| `([A-Za-z.]+)` \|", README, re.MULTILINE)}
    assert documented & known == known, f"not in the README: {sorted(known - documented)}"


def test_the_first_example_is_a_handler_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    head = (
        "from typing import Annotated\n"
        "from port_webhook_handlers.sdk import Field, Inputs, Result, Run, Success, action\n"
    )
    file = tmp_path / "readme_example.py"
    file.write_text(head + example.group(1), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("readme_example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "readme_example", module)
    spec.loader.exec_module(module)
    invocation = invoke(
        module.deploy, inputs={"version": "1.2.3"}, entity={"identifier": "cart", "title": "Cart"}
    )
    assert invocation.result == Success(summary="Cart 1.2.3 is live")
    assert "deploying 1.2.3 of cart" in invocation.logs
