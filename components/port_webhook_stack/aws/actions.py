"""Which actions AWS has, from the list that cfn-lint carries where it is installed (requirements/dev.txt brings it).

AWS offers no interface that lists them, and a role with a misspelt action is made without a complaint: the handler fails
when it runs.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_LIST: Final = ("data", "AdditionalSpecs", "Policies.json")


def problem_with(statements: Sequence[Mapping[str, Sequence[str]]]) -> str | None:
    """What is wrong with the actions of declared statements; None if nothing is, or no list is at hand."""
    known = _actions()
    for statement in statements:
        for action in statement["actions"]:
            service, _, name = action.partition(":")
            names = known.get(service)
            if names is None or name.lower() in names:
                continue
            close = difflib.get_close_matches(name.lower(), names, 1)
            hint = f"; did you mean {service}:{_cased(close[0], name)}?" if close else ""
            return (
                f"unknown permission {action}: AWS has no such action of {service}{hint} "
                "(if it is new, install a newer cfn-lint)"
            )
    return None


@functools.cache
def _actions() -> Mapping[str, frozenset[str]]:
    """Names of actions in lower case by service."""
    found = importlib.util.find_spec("cfnlint")
    if found is None or found.origin is None:
        return {}
    try:
        listed: dict[str, Any] = json.loads(Path(found.origin).parent.joinpath(*_LIST).read_bytes())
        return {service: frozenset(entry["Actions"]) for service, entry in listed.items()}
    except (OSError, ValueError, KeyError, TypeError):
        # Another layout of another version: then only what is known for sure is checked, elsewhere.
        return {}


def _cased(close: str, written: str) -> str:
    """A name of the list with the capitals of what was written, as far as both are the same."""
    blocks = difflib.SequenceMatcher(None, close, written.lower()).get_matching_blocks()
    letters = list(close)
    for at, other, size in blocks:
        letters[at : at + size] = written[other : other + size]
    return "".join(letters)
