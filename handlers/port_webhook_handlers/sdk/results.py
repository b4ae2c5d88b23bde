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


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Another system goes on with the run, and ends it in Port; only asynchronous handlers may return it.

    The listener has done its part then: the run stays open until that system sets its status
    (`PATCH /v1/actions/runs/<run id>`), and a repeated delivery of it is still refused.

    Attributes:
        summary: to whom; shown on the run's page; Markdown.
        link: address or addresses to look at; replaces links set before.
    """

    summary: str
    link: str | Sequence[str] | None = None

    @property
    def response(self) -> None:
        """Nothing: nobody waits for an answer of the listener."""


Result = Success | Failure | HandedOver
