"""The process that runs handlers. It holds no credential of Port and gets only the secrets a handler declared.

It is started with the numbers of an inherited socket and of a pipe, and the digest of the bundle. One request is one
JSON line from the parent through the socket; the answers are JSON lines to it through the pipe. Requests may be sent ahead; they are executed one after the
other, and a result is sent before the next one starts, so that the parent knows which of them may have started.

| from the parent | answer |
|---|---|
| a request | its messages, the result last |
| `{"prepare": "module:function"}` | `{"ready": true}` once the handler is loaded |
| `{"withdraw":true}` | `{"withdrawn": n}`: the last n requests will not be started |

When the parent goes away, the whole process group ends: a
later server decides what becomes of the run, so this one must not go on working on it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.port.json_codec import lines_codec
from port_webhook_handlers.runtime.manifest import ManifestError, load, verify_files

WITHDRAW: Final = b'{"withdraw":true}'

_read_line, _write_line = lines_codec()

_READ_BYTES: Final = 1024 * 1024
_RING_SECONDS: Final = 0.002


class Wire:
    """The way to the parent: results and messages through a pipe, and a bell that makes the parent look.

    Each result is in the pipe before the next request starts, so that the parent knows which may have started,
    whatever becomes of this process. But waking the parent costs more than running a quick handler, so results of
    one batch ring once; the parent looks by itself every now and then.

    Args:
        bell: connection to the parent.
        descriptor: write end of the pipe; does not block.
    """

    def __init__(self, bell: socket.socket, descriptor: int) -> None:
        self.lock = threading.Lock()
        self._bell = bell
        self._descriptor = descriptor
        self._rung = 0.0

    def send(self, line: bytes, *, more: bool = False) -> None:
        """Sends a line; the caller holds the lock.

        Args:
            line: with its end.
            more: another result is likely to follow at once.
        """
        try:
            sent = os.write(self._descriptor, line)
        except BlockingIOError:
            sent = 0
        while sent < len(line):
            # The parent has to read before there is room.
            self.ring()
            select.select([], [self._descriptor], [])
            with contextlib.suppress(BlockingIOError):
                sent += os.write(self._descriptor, line[sent:])
        if not more or time.monotonic() - self._rung > _RING_SECONDS:
            self.ring()

    def ring(self) -> None:
        """Makes the parent look."""
        self._rung = time.monotonic()
        # A bell that cannot be rung is ringing.
        with contextlib.suppress(BlockingIOError):
            self._bell.send(b"!", socket.MSG_DONTWAIT)


class Channel:
    """Sends the messages of one run; those that come after its end are dropped."""

    def __init__(self, wire: Wire, pending: Sequence[bytes]) -> None:
        self._wire = wire
        self._pending = pending
        self._began = time.perf_counter()
        self.ended = False

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; the first result ends the run.

        Raises:
            TypeError: a value is not JSON.
        """
        ends = "result" in message
        if ends:
            # Rounded, because the quick reader leaves numbers of many digits to the standard library.
            message = {**message, "seconds": round(time.perf_counter() - self._began, 6)}
        line = _write_line(message) + b"\n"
        with self._wire.lock:
            if self.ended:
                return
            self.ended = ends
            if ends:
                # What the handler printed must be with the parent before it takes the run as ended.
                sys.stdout.flush()
                sys.stderr.flush()
            self._wire.send(line, more=ends and bool(self._pending))


def verified(bundle: Path, digest: str) -> None:
    """Checks the bundle before code of it is imported.

    Raises:
        ManifestError: it is not the bundle with that digest, or a file was changed.
    """
    manifest, found = load(bundle)
    if found != digest:
        raise ManifestError(
            f"bundle {bundle.name} is not the one the listener serves; deploy the stack again"
        )
    verify_files(bundle, manifest)


def main() -> None:
    """Serves requests until the parent closes the connection."""
    bundle, connection = Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    results, digest = int(sys.argv[3]), sys.argv[4]
    # Processes that a handler starts must not keep the connection open.
    connection.set_inheritable(False)
    os.set_inheritable(results, False)
    os.set_blocking(results, False)
    wire = Wire(connection, results)
    pending: deque[bytes] = deque()
    arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, pending, arrived, wire), daemon=True).start()
    _load_ahead(bundle, digest)
    # What is loaded stays; handlers make little that has to be looked through for garbage.
    gc.freeze()
    gc.set_threshold(10_000, 10, 50)
    checked = False
    while True:
        try:
            request = _read_line(pending.popleft())
        except IndexError:
            arrived.get()
            continue
        channel = Channel(wire, pending)
        if not checked:
            # Once more: the start may have been long ago, and the next thing is the import.
            try:
                verified(bundle, digest)
            except ManifestError as error:
                channel.send(_failure(str(error), "ManifestError"))
                continue
            checked = True
        if "body" in request:
            request = completed(request)
        if "prepare" in request:
            _prepare(request["prepare"])
            channel.send({"ready": True})
        else:
            _run(request, channel)


def completed(request: dict[str, Any]) -> dict[str, Any]:
    """A request as handlers are run with, from one that holds the body as it was signed."""
    body = request["body"]
    if "payload" in request:
        return _from_another_form(request, body)
    entity = body.get("entity") or None
    request["run"].update(
        blueprint=entity.get("blueprint") if isinstance(entity, dict) else None,
        entity=entity,
        trigger=body.get("trigger"),
        event=body.get("event"),
        idempotency_key=request["run"]["id"],
    )
    request["inputs"] = body.get("inputs") or {}
    return request


def _from_another_form(request: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    from port_webhook_handlers.port.payload import Payload

    payload = Payload(**request["payload"])
    request["run"].update(**payload.context_of(body), idempotency_key=request["run"]["id"])
    request["inputs"] = payload.inputs_of(body) or {}
    return request


def _load_ahead(bundle: Path, digest: str) -> None:
    """Loads what every handler needs while nobody waits for it."""
    try:
        verified(bundle, digest)
        importlib.import_module("port_webhook_handlers.sdk.invoke")
    except Exception:  # noqa: BLE001
        # The first request finds the same and reports it.
        return


def _prepare(handler: str) -> None:
    try:
        importlib.import_module(handler.partition(":")[0])
    except BaseException:  # noqa: BLE001
        # The first run finds the same and reports it.
        return


def _run(request: dict[str, Any], channel: Channel) -> None:
    try:
        _invoke()(request, channel.send)
    except BaseException as error:  # noqa: BLE001
        # SystemExit as well: a handler must not be able to end a run without a result.
        channel.send(_failure(f"The handler raised {type(error).__name__}.", type(error).__name__))
    else:
        if not channel.ended:
            channel.send(_failure("The handler ended without a result.", "MissingResult"))


@functools.cache
def _invoke() -> Callable[[Mapping[str, Any], Callable[[dict[str, Any]], None]], None]:
    from port_webhook_handlers.sdk.invoke import run_request

    return run_request


def _failure(summary: str, error_type: str) -> dict[str, Any]:
    return {
        "result": {
            "status": "FAILURE",
            "summary": summary,
            "link": None,
            "response": None,
            "retryable": False,
            "error_type": error_type,
        }
    }


def _read(
    connection: socket.socket, pending: deque[bytes], arrived: queue.SimpleQueue[None], wire: Wire
) -> None:
    rest = b""
    try:
        while data := connection.recv(_READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line == WITHDRAW:
                    count = _withdraw(pending)
                    with wire.lock:
                        wire.send(b'{"withdrawn":%d}\n' % count)
                else:
                    pending.append(line)
            arrived.put(None)
    except OSError:
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _withdraw(pending: deque[bytes]) -> int:
    count = 0
    with contextlib.suppress(IndexError):
        while True:
            pending.pop()
            count += 1
    return count


if __name__ == "__main__":
    main()
