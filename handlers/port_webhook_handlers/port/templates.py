"""Port's `{{ … }}` templates: where the JQ expressions of a text are.

Port evaluates them in URLs, header values, and keys and values of bodies. A text that is one expression takes the
JSON type of its result; inside a longer text the result is written as text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from port_webhook_handlers.port.definitions.node import Json, join

# A jq string, or what opens or closes an object or the expression itself.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|\{|\}\}|\}', re.DOTALL)


class TemplateError(ValueError):
    """A text with `{{` that is never closed, or with nothing inside."""


@dataclass(frozen=True, slots=True)
class Expression:
    """The JQ between `{{` and `}}`, without surrounding blanks."""

    jq: str


@dataclass(frozen=True, slots=True)
class Template:
    """A text, cut into literal parts and expressions."""

    parts: tuple[str | Expression, ...]

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """The expressions, in order."""
        return tuple(part for part in self.parts if isinstance(part, Expression))

    @property
    def is_single(self) -> bool:
        """Whether the whole text is one expression, so that its result keeps its JSON type."""
        return len(self.parts) == 1 and isinstance(self.parts[0], Expression)


def has_template(text: str) -> bool:
    """Whether the text holds, or at least begins, an expression."""
    return "{{" in text


def parse_template(text: str) -> Template:
    """Cut a text at its expressions.

    Raises:
        TemplateError: an expression is empty or not closed.
    """
    parts: list[str | Expression] = []
    position = 0
    while (start := text.find("{{", position)) >= 0:
        if start > position:
            parts.append(text[position:start])
        end = _end(text, start + 2)
        jq = text[start + 2 : end].strip()
        if not jq:
            raise TemplateError("an expression is empty")
        parts.append(Expression(jq))
        position = end + 2
    if position < len(text):
        parts.append(text[position:])
    return Template(tuple(parts))


class TemplateAt(NamedTuple):
    """A text with expressions, and where it stands: as a value, or as the key that ends the path."""

    path: str
    text: str
    is_key: bool


def templates(value: Json, path: str = "") -> Iterator[TemplateAt]:
    """The texts with expressions in a JSON value."""
    match value:
        case str():
            if has_template(value):
                yield TemplateAt(path, value, is_key=False)
        case dict():
            for key, item in value.items():
                if has_template(key):
                    yield TemplateAt(join(path, key), key, is_key=True)
                yield from templates(item, join(path, key))
        case list():
            for index, item in enumerate(value):
                yield from templates(item, join(path, index))


def _end(text: str, start: int) -> int:
    """Where the `}}` of the expression at `start` is; braces of jq objects and strings do not end it."""
    depth = 0
    position = start
    while token := _TOKEN.search(text, position):
        position = token.end()
        if token[0] == "{":
            depth += 1
        elif token[0] == "}":
            depth -= 1
        elif token[0] == "}}":
            if depth <= 0:
                return token.start()
            # Both braces may close objects, or the first one an object and the rest the expression.
            depth -= 1
            position -= 1
    # Unbalanced jq: let the first closing mark end it, so that lint can show the expression.
    end = text.find("}}", start)
    if end < 0:
        raise TemplateError("an expression is not closed with }}")
    return end
