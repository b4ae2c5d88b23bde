"""What the command line prints: steps with their time, signs of life, one-line errors."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_LABEL_WIDTH = 14


class Step:
    """One line of progress that ends as a result."""

    def __init__(self, label: str, show: Callable[[str], None]) -> None:
        self._label = label
        self._show = show
        self._started = time.monotonic()
        self.result = ""

    def progress(self, message: str) -> None:
        """Shows what is being done right now."""
        self._show(f"{self._label:<{_LABEL_WIDTH}} {message}")

    @property
    def seconds(self) -> float:
        """Time since the step began."""
        return time.monotonic() - self._started


@contextmanager
def step(label: str) -> Iterator[Step]:
    """Shows a step while it runs, then its result and how long it took.

    On a terminal the progress is one changing line; elsewhere every message is a line of its own.
    """
    if out.is_terminal:
        with out.status("") as status:
            current = Step(label, lambda text: status.update(escape(text)))
            current.progress("")
            yield current
    else:
        current = Step(label, lambda text: out.print(escape(f"  {text}")))
        yield current
    mark = "[green]✓[/green]"
    out.print(f"{mark} {label:<{_LABEL_WIDTH}} {escape(current.result)} [dim]({current.seconds:.1f} s)[/dim]")


def note(message: str) -> None:
    """Prints one plain line."""
    out.print(escape(message))


def warn(message: str) -> None:
    """Prints a warning on standard error."""
    err.print(f"[yellow]![/yellow] {escape(message)}")


def fail(message: str) -> None:
    """Prints an error on standard error."""
    err.print(f"[red]✗[/red] {escape(message)}")
