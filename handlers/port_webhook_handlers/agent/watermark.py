"""How far a partition may be committed."""

from __future__ import annotations

import threading

from port_webhook_handlers.agent.messages import Lease


class Watermark:
    """Offsets of one partition that were handed over: everything below `position` is settled.

    Begun by the thread that reads the topic and settled on the event loop.

    Attributes:
        lease: the right to work on the partition's messages.
    """

    def __init__(self) -> None:
        self.lease = Lease()
        self._lock = threading.Lock()
        # A dictionary keeps the order, and the topic hands offsets over in theirs.
        self._open: dict[int, None] = {}
        self._next: int | None = None

    def begin(self, offset: int) -> None:
        """An offset was read."""
        with self._lock:
            self._open[offset] = None
            self._next = offset + 1

    def settle(self, offset: int) -> None:
        """Its message needs nothing more."""
        with self._lock:
            self._open.pop(offset, None)

    @property
    def open(self) -> int:
        """How many offsets are not settled."""
        return len(self._open)

    @property
    def position(self) -> int | None:
        """The next offset to commit: the lowest one that is not settled; None before the first message."""
        with self._lock:
            return next(iter(self._open), self._next)
