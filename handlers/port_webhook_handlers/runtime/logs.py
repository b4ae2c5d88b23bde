"""The listener's log: one JSON object a line, on standard error, without bodies and without secrets."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.port.json_codec import lines_codec
from port_webhook_handlers.runtime.redact import Redactor

if TYPE_CHECKING:
    import asyncio

_MAX_TEXT: Final = 8_192
_ROTATE_BYTES: Final = 10 * 1024 * 1024


def _text(line: dict[str, Any]) -> str:
    try:
        return compact(line)
    except (TypeError, ValueError):
        return json.dumps(line, default=str)


def _quick_text() -> Callable[[dict[str, Any]], str]:
    """As `_text`, with the quicker writer where that is installed and writes the same."""
    _, write = lines_codec()

    def text(line: dict[str, Any]) -> str:
        try:
            data = write(line)
        except (TypeError, ValueError):
            return _text(line)
        return data.decode() if data.isascii() else _text(line)

    return text


class Log:
    """Writes lines to a file descriptor.

    Args:
        descriptor: where to; standard error by default.
        path: the file behind standard output and error; at 10 MiB it is renamed to `<name>.1`.
    """

    def __init__(self, descriptor: int = 2, path: Path | None = None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._lines: list[str] = []
        self._due = False
        self._second = -1
        self._text: Callable[[dict[str, Any]], str] = _text
        self._time = ""
        self.redact = Redactor()

    def gather(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on lines of one turn of the event loop are written together."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._text = _quick_text()

    def flush(self) -> None:
        """Writes what was gathered."""
        self._due = False
        lines = self._lines[:]
        del self._lines[: len(lines)]
        if lines:
            self._write("".join(lines).encode())

    def __call__(self, event: str, **fields: Any) -> None:
        """Writes a line: time, event and the fields; text is redacted and cut at 8 KiB."""
        second = int(time.time())
        if second != self._second:
            self._second, self._time = second, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(second))
        line: dict[str, Any] = {"time": self._time, "event": event, **fields}
        text = self._text(line)
        if len(text) > _MAX_TEXT or self.redact.finds(text):
            for name, value in fields.items():
                line[name] = self.redact(value)[:_MAX_TEXT] if isinstance(value, str) else value
            text = self._text(line)
        text += "\n"
        if self._loop is None or self._loop.is_closed():
            self._write(text.encode())
            return
        self._lines.append(text)
        if not self._due:
            self._due = True
            here = threading.get_ident() == self._thread
            (self._loop.call_soon if here else self._loop.call_soon_threadsafe)(self.flush)

    def _write(self, data: bytes) -> None:
        try:
            os.write(self._descriptor, data)
            self._rotate()
        except OSError:
            # A full disk must not stop the listener from answering.
            pass

    def error(self, event: str, error: BaseException, **fields: Any) -> None:
        """Writes a line about an unexpected error: its type, text and innermost place, no stack."""
        place = ""
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}"
            trace = trace.tb_next
        self(event, error=f"{type(error).__name__}: {error}", place=place, **fields)

    def _rotate(self) -> None:
        if self._path is None or (mine := os.fstat(self._descriptor)).st_size < _ROTATE_BYTES:
            return
        # Another process with the same log may have put it aside already.
        if os.stat(self._path).st_ino == mine.st_ino:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        for standard in (1, 2):
            os.dup2(fresh, standard)
        os.close(fresh)
