"""docs/bundled-handlers-in-port.md shows the definitions that the handlers generate, and a run of each."""

from __future__ import annotations

import pytest
from tests.engine.bundled_page import definitions, sections


def test_every_handler_is_on_the_page() -> None:
    assert list(sections()) == list(definitions())


@pytest.mark.parametrize("name", definitions())
def test_the_definition_is_the_generated_one(name: str) -> None:
    shown, transcript = sections()[name]
    assert shown == definitions()[name], "run `python -m tests.engine.bundled_page`"
    assert name in transcript
    assert "SUCCESS" in transcript or name == "what_runs_where"
