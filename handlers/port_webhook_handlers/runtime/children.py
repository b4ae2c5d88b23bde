"""Child processes as the parent sees them: started ahead, reused by the same route, killed for real."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.process import ProcessIdentity
from port_webhook_handlers.runtime.execution import Outcome
from port_webhook_handlers.runtime.launch import CHILD_LIBRARIES, python_command, scrubbed_environment
from port_webhook_handlers.runtime.logs import Log

_MAX_LINE_BYTES: Final = 4 * 1024 * 1024
_MAX_OUTPUT_BYTES: Final = 64 * 1024
_IDLE_SECONDS: Final = 60.0
_MAX_IDLE: Final = 8
_MAX_RUNS: Final = 100


OnMessage = Callable[[dict[str, Any]], Awaitable[None]]
OnStart = Callable[[str], Awaitable[None]]


class _Child:
    def __init__(
        self, process: subprocess.Popen[bytes], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.process = process
        self.reader = reader
        self.writer = writer
        self.identity = ProcessIdentity.of(process.pid)
        self.route = ""
        self.run = ""
        self.runs = 0
        self.printed = 0
        self.idle_since = time.monotonic()
        self.output: asyncio.Task[None] | None = None


class ChildPool:
    """Runs requests in child processes.

    Args:
        bundle: folder of the bundle.
        digest: its digest; children refuse another.
        work: folder in which children run and compiled files are kept.
        log: takes what handlers print.
    """

    def __init__(self, bundle: Path, digest: str, work: Path, log: Log) -> None:
        self._bundle = bundle
        self._digest = digest
        self._work = work
        self._log = log
        self._idle: list[_Child] = []
        self._spare: asyncio.Task[_Child] | None = None
        self._alive: set[_Child] = set()
        self._closed = False

    def warm(self) -> None:
        """Starts a child ahead, so that the next run need not wait for an interpreter."""
        if self._spare is None and not self._closed:
            self._spare = asyncio.ensure_future(self._spawn())
            self._spare.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def run(
        self,
        run_id: str,
        route: str,
        request: Mapping[str, Any],
        seconds: float,
        on_start: OnStart,
        on_message: OnMessage,
    ) -> Outcome:
        """Executes one request.

        Args:
            run_id: for the log.
            route: children are reused by the same route only, since they have seen its secrets.
            request: what the child's side of the protocol expects.
            seconds: the child's process group is killed after this time.
            on_start: awaited with the child's name before it gets the request.
            on_message: awaited for each message but the result, in order.
        """
        try:
            child = await self._take(route)
        except OSError as error:
            self._log.error("child not started", error, run=run_id)
            return Outcome(
                "FAILURE", "The listener could not start a process for the handler.", retryable=True
            )
        child.route, child.run, child.printed = route, run_id, 0
        child.runs += 1
        reusable = False
        try:
            await on_start(f"{child.identity.pid}:{child.identity.start_time}")
            async with asyncio.timeout(seconds):
                child.writer.write(json.dumps(request, separators=(",", ":")).encode() + b"\n")
                await child.writer.drain()
                outcome = await self._converse(child, on_message)
            reusable = not outcome.interrupted
        except TimeoutError:
            outcome = Outcome(
                "FAILURE", f"The handler was ended after {seconds:g} s, its time limit.", timed_out=True
            )
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            self._log.error("child failed", error, run=run_id)
            outcome = Outcome(
                "FAILURE", "The handler's process sent something unreadable.", error_type="ProtocolError"
            )
        finally:
            if reusable and child.runs < _MAX_RUNS and not self._closed:
                child.idle_since = time.monotonic()
                self._idle.append(child)
            else:
                await asyncio.shield(self._kill(child))
        if outcome.interrupted:
            outcome = Outcome("FAILURE", _death(child.process.returncode), interrupted=True)
        await self.trim()
        return outcome

    async def trim(self) -> None:
        """Ends children that have been idle for long, or are too many."""
        oldest = time.monotonic() - _IDLE_SECONDS
        while self._idle and (len(self._idle) > _MAX_IDLE or self._idle[0].idle_since < oldest):
            await self._kill(self._idle.pop(0))

    async def close(self) -> None:
        """Kills every child."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await asyncio.wait([spare])
        for child in list(self._alive):
            await self._kill(child)
        self._idle.clear()

    async def _take(self, route: str) -> _Child:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].route == route:
                child = self._idle.pop(index)
                if child.process.poll() is None and not child.reader.at_eof():
                    return child
                await self._kill(child)
        spare, self._spare = self._spare, None
        child = await (spare or self._spawn())
        self.warm()
        if child.process.poll() is not None:
            await self._kill(child)
            return await self._spawn()
        return child

    async def _spawn(self) -> _Child:
        ours, theirs = socket.socketpair()
        output, printed = os.pipe()
        try:
            command = python_command(
                self._bundle,
                self._work / "pycache",
                CHILD_LIBRARIES,
                "port_webhook_handlers.runtime.child",
                str(theirs.fileno()),
                self._digest,
            )
            process = await asyncio.to_thread(
                subprocess.Popen,
                command,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                env=scrubbed_environment(),
                cwd=self._work,
                start_new_session=True,
                pass_fds=(theirs.fileno(),),
            )
        except BaseException:
            ours.close()
            os.close(output)
            raise
        finally:
            theirs.close()
            os.close(printed)
        reader, writer = await asyncio.open_connection(sock=ours, limit=_MAX_LINE_BYTES)
        child = _Child(process, reader, writer)
        self._alive.add(child)
        child.output = asyncio.ensure_future(self._capture(child, output))
        return child

    async def _converse(self, child: _Child, on_message: OnMessage) -> Outcome:
        while line := await child.reader.readline():
            message = json.loads(line)
            if "result" not in message:
                await on_message(message)
                continue
            result = message["result"]
            return Outcome(
                status="SUCCESS" if result.get("status") == "SUCCESS" else "FAILURE",
                summary=result.get("summary"),
                link=result.get("link"),
                response=result.get("response"),
                retryable=bool(result.get("retryable")),
                error_type=str(result.get("error_type") or ""),
            )
        return Outcome("FAILURE", interrupted=True)

    async def _capture(self, child: _Child, descriptor: int) -> None:
        """Puts what the handler prints into the log, bounded for each run."""
        reader = asyncio.StreamReader(limit=_MAX_OUTPUT_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
        )
        try:
            while True:
                try:
                    line = await reader.readuntil(b"\n")
                except asyncio.IncompleteReadError as error:
                    line = error.partial
                except asyncio.LimitOverrunError:
                    line = await reader.read(_MAX_OUTPUT_BYTES)
                if not line:
                    return
                if child.printed <= _MAX_OUTPUT_BYTES:
                    child.printed += len(line)
                    text = line.decode("utf-8", "replace").rstrip("\r\n")
                    cut = child.printed > _MAX_OUTPUT_BYTES
                    self._log(
                        "output",
                        run=child.run,
                        text="further output of this run is left out" if cut else text,
                    )
        finally:
            transport.close()

    async def _kill(self, child: _Child) -> None:
        self._alive.discard(child)
        try:
            # The group, so that what the handler started ends too; a deployed service has its own session.
            os.killpg(child.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.writer.close()
        await asyncio.to_thread(child.process.wait)
        if child.output is not None:
            # A process that left the group may hold the pipe open.
            await asyncio.wait([child.output], timeout=0.5)
            child.output.cancel()


def kill_orphan(child: str) -> None:
    """Kills the process group of a child that a former server recorded, if it is still that process."""
    pid, _, start_time = child.partition(":")
    if pid.isdigit() and ProcessIdentity(int(pid), float(start_time)).is_alive():
        try:
            os.killpg(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


def _death(code: int | None) -> str:
    signalled = code is not None and code < 0
    how = f"by signal {signal.Signals(-code).name}" if signalled and code else f"with code {code}"
    return f"The handler's process ended {how} before it gave a result; what it did is unknown."
