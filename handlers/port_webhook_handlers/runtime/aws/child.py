"""One handler in one child process: started for a run, killed at its deadline.

The parent's credentials of AWS reach it only where the privilege group has permissions of its own. The request is
a JSON line on its standard input; messages come back as JSON lines over a pipe of their own, the result last. What
a handler prints goes to the function's log.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.runtime.execution import STATUSES, Outcome
from port_webhook_handlers.runtime.logs import Log

_KEPT: Final = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "LD_LIBRARY_PATH")
_AWS: Final = (
    "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
)  # fmt: skip
_MAX_OUTPUT_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 64 * 1024
_SET_DUMPABLE: Final = 4
_OUTPUT_GRACE_SECONDS: Final = 0.5
# Compiled files must not lie beside the sources that are checked.
_BOOT: Final = """\
import sys
sys.dont_write_bytecode = True
sys.path[:0] = sys.argv[2].split("\\n")
from port_webhook_handlers.runtime.aws.child import main
main()
"""

OnMessage = Callable[[dict[str, Any]], None]


def run(
    bundle: Path,
    digest: str,
    request: Mapping[str, Any],
    seconds: float,
    on_message: OnMessage,
    on_idle: Callable[[], None],
    log: Log,
    *,
    credentials: bool,
    further_paths: Sequence[str] = (),
) -> Outcome:
    """Runs a handler.

    Args:
        bundle: folder of the bundle.
        digest: its digest; the child refuses another.
        request: what `sdk.invoke` takes.
        seconds: the child's process group is killed after this time.
        on_message: gets each message but the result, in order.
        on_idle: called a few times a second.
        log: gets what the handler prints.
        credentials: the handler gets the credentials of AWS that this function has.
        further_paths: folders of libraries.
    """
    _shield()
    names = (*_KEPT, *(_AWS if credentials else ()))
    environment = {name: value for name in names if (value := os.environ.get(name)) is not None}
    reading, writing = os.pipe()
    output, printed = os.pipe()
    paths = "\n".join([str(bundle), *further_paths])
    command = [sys.executable, "-I", "-c", _BOOT, str(bundle), paths, str(writing), digest]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=printed,
            env=environment,
            cwd=os.environ.get("TMPDIR", "/tmp"),  # noqa: S108  # the one folder that a function may write to
            start_new_session=True,
            pass_fds=(writing,),
        )
    except OSError as error:
        os.close(reading)
        os.close(output)
        log.error("child not started", error)
        return Outcome("FAILURE", "The listener could not start a process for the handler.", retryable=True)
    finally:
        os.close(writing)
        os.close(printed)
    capture = threading.Thread(target=_capture, args=(output, log, str(request["run"]["id"])), daemon=True)
    capture.start()
    try:
        return _converse(process, reading, request, time.monotonic() + seconds, seconds, on_message, on_idle)
    finally:
        os.close(reading)
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        capture.join(_OUTPUT_GRACE_SECONDS)


def _shield() -> None:
    """Keeps children, which have the same user, from reading this process: its environment holds credentials."""
    import ctypes

    try:
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)
    except (OSError, AttributeError):
        # Not Linux, so not Lambda.
        pass


def _converse(
    process: subprocess.Popen[bytes],
    reading: int,
    request: Mapping[str, Any],
    deadline: float,
    seconds: float,
    on_message: OnMessage,
    on_idle: Callable[[], None],
) -> Outcome:
    assert process.stdin is not None  # noqa: S101
    try:
        with process.stdin as stream:
            stream.write(json.dumps(request, separators=(",", ":")).encode() + b"\n")
    except BrokenPipeError:
        pass
    try:
        for message in _messages(reading, deadline, on_idle):
            if "result" not in message:
                on_message(message)
                continue
            result = message["result"]
            return Outcome(
                status=result["status"] if result.get("status") in STATUSES else "FAILURE",
                summary=result.get("summary"),
                link=result.get("link"),
                response=result.get("response"),
                retryable=bool(result.get("retryable")),
                error_type=str(result.get("error_type") or ""),
            )
    except TimeoutError:
        return Outcome(
            "FAILURE", f"The handler was ended after {seconds:g} s, its time limit.", timed_out=True
        )
    except ValueError:
        return Outcome(
            "FAILURE", "The handler's process sent something unreadable.", error_type="ProtocolError"
        )
    code = process.wait()
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
    return Outcome(
        "FAILURE",
        f"The handler's process ended {how} before it gave a result; what it did is unknown.",
        interrupted=True,
    )


def _messages(reading: int, deadline: float, on_idle: Callable[[], None]) -> Iterator[dict[str, Any]]:
    waiting = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        ready, _, _ = select.select([reading], [], [], min(left, 0.25))
        on_idle()
        if not ready:
            continue
        part = os.read(reading, _READ_BYTES)
        if not part:
            return
        *lines, waiting = (waiting + part).split(b"\n")
        for line in lines:
            yield json.loads(line)


def _capture(output: int, log: Log, run_id: str) -> None:
    """Puts what the handler prints into the log, bounded."""
    size = 0
    with os.fdopen(output, "rb") as stream:
        for line in stream:
            if size <= _MAX_OUTPUT_BYTES:
                size += len(line)
                cut = size > _MAX_OUTPUT_BYTES
                text = line.decode("utf-8", "replace").rstrip("\r\n")
                log("output", run=run_id, text="further output of this run is left out" if cut else text)


def main() -> None:
    """The child's side: one request from standard input."""
    from port_webhook_handlers.runtime.manifest import ManifestError, load, verify_files

    bundle, descriptor, digest = Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4]
    request = json.loads(sys.stdin.buffer.readline())
    os.set_inheritable(descriptor, False)
    lock = threading.Lock()
    ended = False

    def send(message: dict[str, Any]) -> None:
        nonlocal ended
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        with lock:
            if not ended:
                ended = "result" in message
                if ended:
                    sys.stdout.flush()
                    sys.stderr.flush()
                while line:
                    line = line[os.write(descriptor, line) :]

    try:
        manifest, found = load(bundle)
        if found != digest:
            raise ManifestError(
                f"bundle {bundle.name} is not the one the listener serves; deploy the stack again"
            )
        verify_files(bundle, manifest)
        from port_webhook_handlers.sdk.invoke import run_request

        run_request(request, send)
    except BaseException as error:  # noqa: BLE001
        # SystemExit as well: a handler must not be able to end a run without a result.
        summary = (
            str(error) if isinstance(error, ManifestError) else f"The handler raised {type(error).__name__}."
        )
        send({"result": {"status": "FAILURE", "summary": summary, "error_type": type(error).__name__}})
