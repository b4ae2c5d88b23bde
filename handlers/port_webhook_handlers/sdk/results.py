"""What a handler returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Success:
    """The run ended well.

    Attributes:
        summary: shown on the run's page; Markdown.
        link: address or addresses of what was made; replaces links set before.
        response: JSON value; the answer of a synchronous run.
    """

    summary: str | None = None
    link: str | Sequence[str] | None = None
    response: Any = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The run ended badly, in a way that the handler foresaw.

    Attributes:
        summary: why, and what to do; shown on the run's page; Markdown.
        link: address or addresses to look at; replaces links set before.
        response: JSON value; the answer of a synchronous run.
    """

    summary: str
    link: str | Sequence[str] | None = None
    response: Any = None


Result = Success | Failure
