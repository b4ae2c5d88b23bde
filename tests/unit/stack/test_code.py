"""Generated Python says what Port has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from tests.contract.definitions import ODD, VALID
from tests.contract.test_definitions import corpus, shaped

from port_webhook_stack.code import module
from port_webhook_stack.port.normalise import canonical_action, same, with_order


def run(text: str) -> list[dict[str, Any]]:
    """The bodies that a generated module declares."""
    namespace: dict[str, Any] = {}
    exec(compile(text, "generated.py", "exec"), namespace)  # noqa: S102 - generated here
    return [item if isinstance(item, dict) else item.to_body() for item in namespace["DEFINITIONS"]]


def assert_same(body: dict[str, Any], made: dict[str, Any]) -> None:
    assert same(canonical_action(made), canonical_action(with_order(body))), json.dumps(made)


@pytest.mark.parametrize("body", corpus())
def test_every_documented_definition_is_written_typed(body: dict[str, Any]) -> None:
    text = module([body])
    assert "    Action(" in text or "    Automation(" in text
    (made,) = run(text)
    assert_same(body, made)


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in {**VALID, **ODD}.items()])
def test_every_form_comes_back(body: dict[str, Any]) -> None:
    (made,) = run(module([body]))
    assert_same(body, made)


@given(shaped())
def test_damaged_definitions_come_back(body: dict[str, Any]) -> None:
    (made,) = run(module([body]))
    assert_same(body, made)


def test_text_in_a_definition_never_becomes_code() -> None:
    evil = '"); import os; os.abort()  # \' \\" \n {{ .x }} \u2028'
    body = {**VALID["webhook"], "title": evil, "description": evil[::-1]}
    (made,) = run(module([body]))
    assert (made["title"], made["description"]) == (evil, evil[::-1])


def test_the_module_is_formatted_and_imports_only_what_it_uses(tmp_path: Path) -> None:
    file = tmp_path / "port_definitions.py"
    file.write_text(module(VALID.values()), encoding="utf-8")
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F,I", str(file)]
    done = subprocess.run(ruff, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_builders_are_used_where_they_exist() -> None:
    text = module(
        [VALID["ENTITY_UPDATED"], VALID["TIMER_PROPERTY_EXPIRED"], VALID["jq condition"], VALID["steps"]]
    )
    assert 'trigger=entity_updated("service")' in text
    assert 'trigger=timer_expired("service", "ttl")' in text
    assert 'combinator="or"' in text
    assert 'self_service(\n            "CREATE",' in text
