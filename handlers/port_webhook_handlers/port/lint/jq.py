"""Whether an expression is jq, in Port's dialect or in the real one.

Port's documentation shows working expressions that jq itself refuses: array positions as `.a.0.b`, single quotes,
`||`, functions of Port's own, and blocks of Go templates. Such an expression may be fine in Port.
"""

import functools
import json
import re
from dataclasses import dataclass
from typing import Literal

from port_webhook_handlers.port.definitions.node import nearest

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SINGLE_QUOTED = re.compile(r"'([^'\"]*)'")
_POSITIONS = re.compile(r"(?<=[\w\]\"])((?:\.\d+)+)(?![\w])")
_OR = re.compile(r"\|\|")
_AND = re.compile(r"&&")
_STASHED = re.compile(r'"(\d+)"')
# `{{ if eq .a "b" }}…{{ else }}…{{ end }}`, the control blocks of Go templates.
_BLOCK = re.compile(r"(?:if|else if) (?:eq|ne|lt|gt|le|ge|not|and|or) .*|else|end", re.DOTALL)
_PLACEHOLDER = re.compile(r"<[A-Z][A-Z0-9_ -]*>")
_UNDEFINED = re.compile(r"(?<![\w$])([A-Za-z_]\w*)/\d+ is not defined")


class JqMissingError(ImportError):
    """The package `jq` is not installed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with an expression.

    Attributes:
        kind: `syntax` (no reader takes it), `dialect` (perhaps Port does), or `placeholder` (text to be replaced).
    """

    kind: Literal["syntax", "dialect", "placeholder"]
    message: str
    remedy: str


def strings(expression: str) -> list[tuple[int, int]]:
    """Where the string literals of an expression are."""
    return [match.span() for match in _STRING.finditer(expression)]


@functools.lru_cache(maxsize=4096)
def judge(expression: str) -> Verdict | None:
    """What is wrong with an expression; None if it is jq.

    Raises:
        JqMissingError: `jq` is not installed.
    """
    problem = _compile(expression)
    if problem is None:
        return None
    if _BLOCK.fullmatch(expression):
        return Verdict(
            "dialect", "is a block of another template language", "write one jq if … then … else … end"
        )
    if placeholders := _PLACEHOLDER.findall(expression):
        filled = judge(_PLACEHOLDER.sub("X", expression))
        if filled is None or filled.kind != "syntax":
            return Verdict(
                "placeholder", f"holds the placeholder {placeholders[0]}", "put the real name there"
            )
    if undefined := _UNDEFINED.search(problem):
        return _unknown_function(expression, undefined[1])
    rewritten, differences = _rewrite(expression)
    if differences:
        again = _compile(rewritten)
        if again is None or _UNDEFINED.search(again):
            return Verdict("dialect", f"is not jq ({problem})", f"write {', '.join(differences)}")
    return Verdict("syntax", f"is not jq ({problem})", "correct the expression")


def _unknown_function(expression: str, name: str) -> Verdict:
    hyphenated = re.search(rf"\.([A-Za-z_]\w*(?:-\w+)*-{re.escape(name)}(?:-\w+)*)", expression)
    if hyphenated:
        key = hyphenated[1]
        return Verdict(
            "syntax", f"reads .{key} as a subtraction", f'write ["{key}"] for a name with a hyphen'
        )
    near = nearest(name, _builtins())
    remedy = f"did you mean {near}?" if near else "check that Port has this function"
    return Verdict("dialect", f"calls {name}, which jq does not have", remedy)


def _rewrite(expression: str) -> tuple[str, list[str]]:
    """An expression of Port's dialect as jq, and what was changed."""
    literals: list[str] = []

    def stash(literal: str) -> str:
        literals.append(literal)
        return f'"{len(literals) - 1}"'

    text = _STRING.sub(lambda match: stash(match[0]), expression)
    differences = []
    for pattern, replacement, advice in (
        (_POSITIONS, lambda match: re.sub(r"\.(\d+)", r"[\1]", match[0]), "array positions as [0]"),
        (_OR, lambda _: " or ", "or instead of ||"),
        (_AND, lambda _: " and ", "and instead of &&"),
        (_SINGLE_QUOTED, lambda match: stash(json.dumps(match[1])), "strings in double quotes"),
    ):
        text, count = pattern.subn(replacement, text)
        if count:
            differences.append(advice)
    return _STASHED.sub(lambda match: literals[int(match[1])], text), differences


def _compile(expression: str) -> str | None:
    """jq's complaint, in one line; None if it has none."""
    try:
        import jq
    except ImportError as error:
        raise JqMissingError("the package jq is not installed") from error
    try:
        jq.compile(expression)
    except ValueError as error:
        lines = str(error).strip().splitlines()
        first = next((line for line in lines if line.startswith("jq: error")), lines[0] if lines else "")
        return re.sub(r" at <top-level>|^jq: error:? ?|:$", "", first).strip()
    return None


@functools.cache
def _builtins() -> tuple[str, ...]:
    import jq

    names: list[str] = jq.compile("builtins").input_value(None).first()
    return tuple({name.partition("/")[0] for name in names})
