"""JQ expressions in Port's dialect, on real jq.

Expressions run inside the server: an expression that never ends holds it up, and the remedy is to stop it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_PATH = re.compile(r"\s*(?:\.[A-Za-z_][A-Za-z0-9_]*)+\s*")
# Port's guides write `.incidents.0.status`, which jq itself rejects.
# Port's guides write `.incidents.0.status`, which jq itself rejects.
_DOTTED_PATH = re.compile(r"\.[A-Za-z_]\w*(?:\.\w+|\[[^\]]*\])*")
_DOTTED_INDEX = re.compile(r"\.(\d+)(?!\w)")
_STRING = re.compile(r'"(?:\\.|[^"\\])*"')


class ExpressionError(ValueError):
    """An expression does not compile or fails on its input; the message never holds the input."""


def evaluate(expression: str, context: Any) -> Any:
    """First result of an expression; None when it has none.

    Raises:
        ExpressionError: see there.
    """
    if _PATH.fullmatch(expression):
        return _follow(expression, context)
    program = _compile(expression)
    try:
        return program.input_value(context).first()
    except StopIteration:
        return None
    except ValueError as error:
        raise ExpressionError(f"{expression.strip()}: {_kind(str(error))}") from None


def _follow(expression: str, context: Any) -> Any:
    """A plain path without the cost of a trip through jq."""
    value = context
    for name in expression.strip().removeprefix(".").split("."):
        if value is None:
            return None
        if not isinstance(value, dict):
            raise ExpressionError(f"{expression.strip()}: cannot take .{name} of a {_type_name(value)}")
        value = value.get(name)
    return value


@lru_cache(maxsize=4096)
def _compile(expression: str) -> Any:
    import jq

    try:
        return jq.compile(expression)
    except ValueError as error:
        first = str(error).splitlines()[0].removeprefix("jq: error: ")
    try:
        return jq.compile(_with_bracketed_indices(expression))
    except ValueError:
        raise ExpressionError(f"{expression.strip()}: {first}") from None


def _with_bracketed_indices(expression: str) -> str:
    def bracket(text: str) -> str:
        return _DOTTED_PATH.sub(lambda path: _DOTTED_INDEX.sub(r"[\1]", path.group()), text)

    parts: list[str] = []
    end = 0
    for quoted in _STRING.finditer(expression):
        parts += [bracket(expression[end : quoted.start()]), quoted.group()]
        end = quoted.end()
    return "".join([*parts, bracket(expression[end:])])


def _kind(message: str) -> str:
    """jq's message without the values it quotes, which may be secret; a message in no known form is dropped."""
    bare = re.sub(r"\s*(?:\(.*\)|\"[^\"]*\")", "", message, flags=re.DOTALL)
    known = re.fullmatch(r"(?:Cannot|Invalid|null|boolean|number|string|array|object)\b[A-Za-z ,:-]*", bare)
    return bare[:200] if known else "fails on its input"


def _type_name(value: object) -> str:
    if isinstance(value, bool):
        return "boolean"
    return {str: "string", int: "number", float: "number", list: "array"}.get(type(value), "value")
