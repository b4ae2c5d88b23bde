"""The process that runs handlers. It holds no credential of Port and gets only the secrets a handler declared.

It is started with the number of an inherited socket and the digest of the bundle. One request is one JSON line
from the parent; the answers are JSON lines to it. When the parent goes away, the whole process group ends: a
later server decides what becomes of the run, so this one must not go on working on it.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime.manifest import ManifestError, load, verify_files


class Channel:
    """Sends the messages of one run; those that come after its end are dropped."""

    def __init__(self, connection: socket.socket, lock: threading.Lock) -> None:
        self._connection = connection
        self._lock = lock
        self.ended = False

    def send(self, message: dict[str, Any]) -> None:
        """Sends one message; the first result ends the run.

        Raises:
            TypeError: a value is not JSON.
        """
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with self._lock:
            if self.ended:
                return
            self.ended = "result" in message
            if self.ended:
                # What the handler printed must be with the parent before it takes the run as ended.
                sys.stdout.flush()
                sys.stderr.flush()
            self._connection.sendall(line)


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
    bundle, descriptor, digest = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    connection = socket.socket(fileno=descriptor)
    # Processes that a handler starts must not keep the connection open.
    connection.set_inheritable(False)
    requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, requests), daemon=True).start()
    lock = threading.Lock()
    checked = False
    while (request := requests.get()) is not None:
        channel = Channel(connection, lock)
        if not checked:
            # Now and not at the start, which may have been long ago: the next thing is the import.
            try:
                verified(bundle, digest)
            except ManifestError as error:
                channel.send(_failure(str(error), "ManifestError"))
                continue
            checked = True
        _run(request, channel)


def _run(request: dict[str, Any], channel: Channel) -> None:
    try:
        from port_webhook_handlers.sdk.invoke import run_request

        run_request(request, channel.send)
    except BaseException as error:  # noqa: BLE001
        # SystemExit as well: a handler must not be able to end a run without a result.
        channel.send(_failure(f"The handler raised {type(error).__name__}.", type(error).__name__))
    else:
        channel.send(_failure("The handler ended without a result.", "MissingResult"))


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


def _read(connection: socket.socket, requests: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    try:
        with connection.makefile("rb") as stream:
            for line in stream:
                requests.put(json.loads(line))
    except OSError:
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
