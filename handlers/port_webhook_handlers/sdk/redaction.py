"""Keeps the values of secrets out of what a handler reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MASK = "***"
# Shorter values would mask ordinary words; no real secret is that short.
_SHORTEST = 4


class Redactor:
    """Replaces known secret values in texts and JSON.

    Args:
        values: the secrets; every line of a longer one counts by itself, since logs go out line by line.
    """

    def __init__(self, values: Iterable[str]) -> None:
        parts = {part.strip() for value in values for part in (value, *value.splitlines())}
        self._values = sorted((part for part in parts if len(part) >= _SHORTEST), key=len, reverse=True)

    def text(self, text: str) -> str:
        """`text` with every known value masked."""
        for value in self._values:
            text = text.replace(value, MASK)
        return text

    def json(self, value: Any) -> Any:
        """A JSON value with every known value masked in its texts and keys."""
        if not self._values:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(key): self.json(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.json(item) for item in value]
        return value
