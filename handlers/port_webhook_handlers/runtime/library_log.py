"""Messages of libraries in the listener's log."""

from __future__ import annotations

import logging

from port_webhook_handlers.runtime.logs import Log


class LibraryLog(logging.Handler):
    """Puts the warnings of libraries into the log as lines like the others, without stacks."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            self._log.error("library", error, logger=record.name)
        else:
            self._log("library", logger=record.name, text=record.getMessage())
