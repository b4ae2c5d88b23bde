"""Templates of an invocation: `{{ <jq> }}` in strings and keys, as Port evaluates them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from port_webhook_localport.expressions import ExpressionError, evaluate

SPREAD = "spreadValue()"

_SECRET = re.compile(r"""\.secrets\s*(?:\.?\s*\[\s*"([^"\\]+)"\s*\]|\.\s*"([^"\\]+)"|\.\s*([A-Za-z_]\w*))""")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')

Evaluate = Callable[[str], Any]


class MissingSecretError(ExpressionError):
    """An expression reads a secret that the organisation does not have."""


def render(template: Any, context: dict[str, Any]) -> Any:
    """Evaluates every expression in a JSON value.

    A string that is one expression becomes the expression's result with its JSON type; an expression
    inside a longer string becomes text (null as `null`, objects and arrays as compact JSON). A key that
    yields null removes its pair; the key `{{ spreadValue() }}` puts the pairs of its value in its place.

    Raises:
        MissingSecretError: an expression reads a secret that `context` lacks, and gives no alternative by `//`.
        ExpressionError: an expression fails, a key is not text, or a spread value is not an object.
    """

    def compute(expression: str) -> Any:
        if ".secrets" in expression:
            _check_secrets(expression, context)
        return evaluate(expression, context)

    return _render(template, compute)


def render_masked(template: Any, context: dict[str, Any], mask: str) -> Any:
    """Like `render`, for showing: an expression that fails, as it may on masked secrets, shows the mask."""

    def tolerant(expression: str) -> Any:
        try:
            return evaluate(expression, context)
        except ExpressionError:
            return mask

    return _render(template, tolerant, tolerate_spread=True)


def _render(template: Any, compute: Evaluate, tolerate_spread: bool = False) -> Any:
    if isinstance(template, str):
        return _render_text(template, compute)
    if isinstance(template, list):
        return [_render(item, compute, tolerate_spread) for item in template]
    if not isinstance(template, dict):
        return template
    rendered: dict[str, Any] = {}
    for key, value in template.items():
        if "{{" not in key:
            rendered[key] = _render(value, compute, tolerate_spread)
            continue
        parts = split(key)
        if parts == ((True, SPREAD),):
            spread = _render(value, compute, tolerate_spread)
            if isinstance(spread, dict):
                rendered |= spread
            elif spread is not None and not tolerate_spread:
                raise ExpressionError(f"{SPREAD} needs an object, its value is not one")
            continue
        name = _render_text(key, compute)
        if name is None:
            continue
        if not isinstance(name, str):
            raise ExpressionError(f"the key {key!r} yields no text")
        rendered[name] = _render(value, compute, tolerate_spread)
    return rendered


def _render_text(text: str, compute: Evaluate) -> Any:
    if "{{" not in text:
        return text
    parts = split(text)
    if len(parts) == 1 and parts[0][0]:
        return compute(parts[0][1])
    return "".join(_as_text(compute(part)) if is_expression else part for is_expression, part in parts)


def _check_secrets(expression: str, context: dict[str, Any]) -> None:
    if "//" in _STRING.sub("", expression):
        return
    for names in _SECRET.findall(expression):
        name = next(filter(None, names))
        if name not in (context.get("secrets") or {}):
            raise MissingSecretError(
                f"the secret {name} does not exist in Port; create it, or correct its name"
            )


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@lru_cache(maxsize=8192)
def split(text: str) -> tuple[tuple[bool, str], ...]:
    """Literal and expression parts of a string as pairs (is an expression, text), expressions stripped.

    Raises:
        ExpressionError: an expression is not closed.
    """
    parts: list[tuple[bool, str]] = []
    position = 0
    while (start := text.find("{{", position)) >= 0:
        if start > position:
            parts.append((False, text[position:start]))
        end = _end_of_expression(text, start + 2)
        parts.append((True, text[start + 2 : end].strip()))
        position = end + 2
    if position < len(text):
        parts.append((False, text[position:]))
    return tuple(parts)


def _end_of_expression(text: str, position: int) -> int:
    """Index of the `}}` that closes an expression: not one of jq's own braces, not inside a jq string."""
    # Open constructs: { for an object, " for a string, ( for an interpolation or a group.
    stack: list[str] = []
    while position < len(text):
        character = text[position]
        if stack and stack[-1] == '"':
            if character == "\\":
                position += 1
                if text[position : position + 1] == "(":
                    stack.append("(")
            elif character == '"':
                stack.pop()
        elif character in '{("':
            stack.append(character)
        elif character == ")" and stack and stack[-1] == "(":
            stack.pop()
        elif character == "}":
            if stack and stack[-1] == "{":
                stack.pop()
            elif not stack and text.startswith("}}", position):
                return position
        position += 1
    raise ExpressionError(f"an expression is not closed with }}}}: {text[:80]!r}")
