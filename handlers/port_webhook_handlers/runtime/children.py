"""Child processes as the parent sees them: started ahead, reused by the same route, killed for real.

A child executes one request after the other, in the order in which it got them. Requests of a synchronous route
whose handler is quick are sent ahead, many at a time, so that a whole batch costs a few system calls. What that
must not cost: the first request without a result is the only one that may have started, so when a child dies or
is killed, the others go to another child; and those behind a request that turns out slow are taken back.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from port_webhook_handlers.port.json_codec import lines_codec
from port_webhook_handlers.process import ProcessIdentity, resident_bytes
from port_webhook_handlers.runtime.child import WITHDRAW
from port_webhook_handlers.runtime.execution import STATUSES, Outcome
from port_webhook_handlers.runtime.launch import CHILD_LIBRARIES, python_command, scrubbed_environment
from port_webhook_handlers.runtime.logs import Log

_read_line, _ = lines_codec()

_READ_BYTES: Final = 256 * 1024
_MAX_LINE_BYTES: Final = 4 * 1024 * 1024
_MAX_OUTPUT_BYTES: Final = 64 * 1024
_IDLE_SECONDS: Final = 60.0
_MAX_IDLE: Final = 8
# A child is replaced after so many runs, or once it has grown by so much, because handlers may leak; its successor is
# made ready before.
_MAX_RUNS: Final = 1_000_000
_PREPARE_RUNS: Final = 999_000
_SETTLED_RUNS: Final = 100
_MAX_GROWTH_BYTES: Final = 128 * 1024 * 1024
# Requests in one child, waiting and running.
_DEPTH: Final = 64
_QUICK_SECONDS: Final = 0.005
_STUCK_SECONDS: Final = 0.1
_WATCH_SECONDS: Final = 0.02

OnMessage = Callable[[dict[str, Any]], None]
OnSpawn = Callable[[str], Awaitable[None]]
Then = Callable[[Outcome | None], None]


class NotStartedError(Exception):
    """No child was free for the request in time; it was not executed."""


class _Job:
    __slots__ = ("deadline", "from_start", "line", "on_message", "run_id", "seconds", "then")

    def __init__(
        self,
        run_id: str,
        line: bytes,
        seconds: float,
        on_message: OnMessage,
        now: float,
        then: Then,
        from_start: bool = False,
    ) -> None:
        self.run_id = run_id
        self.line = line
        self.seconds = seconds
        self.from_start = from_start
        self.deadline = float("inf") if from_start else now + seconds
        self.on_message = on_message
        self.then: Then | None = then

    def end(self, outcome: Outcome | None) -> None:
        """Tells how it ended, once; None: it was not started in time."""
        then, self.then = self.then, None
        if then is not None:
            then(outcome)


class _Child(asyncio.Protocol):
    """One process and its connection."""

    def __init__(
        self, process: subprocess.Popen[bytes], results: int, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.process = process
        self._results = results
        self.identity = ProcessIdentity.of(process.pid)
        self.name = f"{self.identity.pid}:{self.identity.start_time}"
        self.route = ""
        self.run = ""
        self.jobs: deque[_Job] = deque()
        self.runs = 0
        self.printed = 0
        self.idle_since = loop.time()
        self.head_since = 0.0
        self.withdrawing = False
        self.settled_bytes = 0
        self.grown = False
        self.replaced = False
        self.late: _Job | None = None
        self.garbled: Exception | None = None
        self.output: asyncio.Task[None] | None = None
        self.ready = loop.create_future()
        self.closed = loop.create_future()
        self.on_result: Callable[[_Child, float], None] = lambda child, seconds: None
        self.on_withdrawn: Callable[[_Child, list[_Job]], None] = lambda child, jobs: None
        self._loop = loop
        self._outgoing: list[bytes] = []
        self._rest = b""

    @property
    def old(self) -> bool:
        """Whether it needs a successor."""
        return self.grown or self.runs >= _PREPARE_RUNS

    @property
    def retired(self) -> bool:
        """Whether it gets no more requests."""
        return self.runs >= _MAX_RUNS or (self.grown and self.replaced)

    def measure(self) -> None:
        """Looks at how much it has grown since its first runs."""
        if self.runs < _SETTLED_RUNS:
            return
        size = resident_bytes(self.process.pid)
        self.settled_bytes = self.settled_bytes or size
        self.grown = self.grown or size > self.settled_bytes + _MAX_GROWTH_BYTES

    # Requests

    def send(self, job: _Job) -> None:
        """Gives it one more request; requests of one turn of the loop leave together."""
        if not self.jobs:
            self._begin(job)
        self.jobs.append(job)
        self.runs += 1
        self.write(job.line)

    def write(self, line: bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(line)

    def _flush(self) -> None:
        data, self._outgoing = b"".join(self._outgoing), []
        if not self.transport.is_closing():
            self.transport.write(data)

    def _begin(self, job: _Job) -> None:
        self.run = job.run_id
        self.printed = 0
        self.head_since = self._loop.time()
        if job.from_start:
            job.deadline = self.head_since + job.seconds

    def withdraw(self) -> None:
        """Asks for the requests back that have not started."""
        self.withdrawing = True
        self.write(WITHDRAW + b"\n")

    # Messages

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        # It rings; what it has to say is in the pipe.
        self.look()

    def look(self) -> None:
        """Reads what the child has sent so far."""
        while self._results >= 0:
            try:
                data = os.read(self._results, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                return
            self._read(data)
            if len(data) < _READ_BYTES:
                return

    def _read(self, data: bytes) -> None:
        if self.garbled is not None:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            if len(self._rest) > _MAX_LINE_BYTES:
                raise ValueError("a message is too large")
            for line in lines:
                self._take(_read_line(line))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self.garbled = error
            self.kill()

    def _take(self, message: dict[str, Any]) -> None:
        result = message.get("result")
        if result is not None:
            job = self.jobs.popleft()
            if self.jobs:
                self._begin(self.jobs[0])
            outcome = Outcome(
                result["status"] if result.get("status") in STATUSES else "FAILURE",
                result.get("summary"),
                result.get("link"),
                result.get("response"),
                bool(result.get("retryable")),
                str(result.get("error_type") or ""),
            )
            job.end(outcome)
            self.on_result(self, float(message.get("seconds") or 0))
        elif "withdrawn" in message:
            count = int(message["withdrawn"])
            self.withdrawing = False
            back = [self.jobs.pop() for _ in range(count)][::-1]
            self.on_withdrawn(self, back)
        elif "ready" in message:
            if not self.ready.done():
                self.ready.set_result(None)
        else:
            self.jobs[0].on_message(message)

    def connection_lost(self, exc: Exception | None) -> None:
        self.look()
        os.close(self._results)
        self._results = -1
        if not self.closed.done():
            self.closed.set_result(None)

    def kill(self) -> None:
        """Ends the process and what the handler started; a deployed service has a session of its own."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class _Route:
    """What the pool knows about a route."""

    def __init__(self, handler: str, limit: int) -> None:
        self.handler = handler
        self.limit = limit
        self.waiting: deque[_Job] = deque()
        self.children: list[_Child] = []
        self.spawning = 0
        # Until it is known how long the handler takes, every request gets a child of its own.
        self.seconds = 1.0


class ChildPool:
    """Runs requests in child processes.

    Args:
        bundle: folder of the bundle.
        digest: its digest; children refuse another.
        work: folder in which children run and compiled files are kept.
        log: takes what handlers print.
        max_shared: how many children the routes may have together.
        on_spawn: awaited with the name of a child before it gets its first request.
        on_end: called with the name of a child that has ended.
    """

    def __init__(
        self,
        bundle: Path,
        digest: str,
        work: Path,
        log: Log,
        *,
        max_shared: int = 16,
        on_spawn: OnSpawn | None = None,
        on_end: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._bundle = bundle
        self._digest = digest
        self._work = work
        self._log = log
        self._max_shared = max_shared
        self._on_spawn = on_spawn
        self._on_end = on_end
        self._idle: list[_Child] = []
        self._spare: asyncio.Task[_Child] | None = None
        self._alive: set[_Child] = set()
        self._routes: dict[str, _Route] = {}
        self._cores = (
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        )
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watching: asyncio.TimerHandle | None = None
        self._assigning = False
        # Children that have no process yet.
        self._starting = 0
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
        request: Mapping[str, Any] | bytes,
        seconds: float,
        on_message: OnMessage,
    ) -> Outcome:
        """Executes one request in a child that does nothing else meanwhile.

        Args:
            run_id: for the log.
            route: children are reused by the same route only, since they have seen its secrets.
            request: what the child's side of the protocol expects, or that as a line of JSON.
            seconds: the child's process group is killed after this time.
            on_message: called with each message but the result, in order.
        """
        try:
            child = await self._take(route)
        except OSError as error:
            return self._not_spawned(error, run_id)
        text = request if isinstance(request, bytes) else line(request)
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Outcome] = loop.create_future()
        child.send(_Job(run_id, text, seconds, on_message, loop.time(), _into(ended)))
        self._watch()
        try:
            outcome = await ended
        except asyncio.CancelledError:
            child.kill()
            raise
        return outcome

    async def run_shared(
        self,
        run_id: str,
        route: str,
        handler: str,
        request: bytes,
        seconds: float,
        limit: int,
        on_message: OnMessage,
    ) -> Outcome:
        """Executes one request of a synchronous route, in a child that may have others to do before it.

        Args:
            run_id, route, on_message: as in `run`.
            handler: `module:function`, which a further child may load ahead.
            request: as a line of JSON.
            seconds: from now on, waiting included.
            limit: how many requests of the route may be executed at once.

        Raises:
            NotStartedError: it waited so long.
        """
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.submit(run_id, route, handler, request, seconds, limit, on_message, _into(ended))
        return await ended

    def submit(
        self,
        run_id: str,
        route: str,
        handler: str,
        request: bytes,
        seconds: float,
        limit: int,
        on_message: OnMessage,
        then: Then,
        *,
        from_start: bool = False,
    ) -> None:
        """As `run_shared`, without a coroutine.

        Args:
            run_id, route, handler, request, seconds, limit, on_message: as in `run_shared`.
            then: called with the outcome, or with None if it was not started; must not raise.
            from_start: the seconds count from its start, for which it may wait as long as it takes.
        """
        known = self._routes.get(route)
        if known is None:
            known = self._routes[route] = _Route(handler, limit)
        now = asyncio.get_running_loop().time()
        known.waiting.append(_Job(run_id, request, seconds, on_message, now, then, from_start))
        self._assign_soon()

    async def trim(self) -> None:
        """Ends children that have been idle for long, or are too many."""
        oldest = asyncio.get_running_loop().time() - _IDLE_SECONDS
        for child in self._alive:
            child.measure()
        for route in self._routes.values():
            for child in [c for c in route.children if not c.jobs and (c.retired or c.idle_since < oldest)]:
                route.children.remove(child)
                await self._kill(child)
        while self._idle and (len(self._idle) > _MAX_IDLE or self._idle[0].idle_since < oldest):
            await self._kill(self._idle.pop(0))

    async def close(self) -> None:
        """Kills every child."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            await asyncio.wait([spare])
        if self._watching is not None:
            self._watching.cancel()
        # One that is being started has to end as well, and one that ends gives back the requests it had not begun.
        while self._alive or self._tasks:
            for child in list(self._alive):
                await self._kill(child)
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_WATCH_SECONDS)
        self._idle.clear()
        self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        for route in self._routes.values():
            while route.waiting:
                route.waiting.popleft().end(None)

    # Shared children

    def _assign_soon(self) -> None:
        if not self._assigning:
            self._assigning = True
            asyncio.get_running_loop().call_soon(self._assign)

    def _assign(self) -> None:
        self._assigning = False
        if self._closed:
            # A child that is started now would only have to be ended as well, and so on without end.
            self._refuse_waiting()
            return
        for name, route in self._routes.items():
            while route.waiting:
                child = self._free(route)
                if child is None:
                    break
                room = _DEPTH - len(child.jobs) if route.seconds < _QUICK_SECONDS else 1
                for _ in range(min(room, len(route.waiting))):
                    child.send(route.waiting.popleft())
            if route.waiting or any(child.old for child in route.children):
                self._grow(name, route)
        self._watch()

    def _free(self, route: _Route) -> _Child | None:
        quick = route.seconds < _QUICK_SECONDS
        usable = [child for child in route.children if not child.retired and not child.withdrawing]
        if not quick:
            return next((child for child in usable if not child.jobs), None)
        # More children than cores only cost more system calls.
        child = min(usable[: self._cores], key=lambda item: len(item.jobs), default=None)
        return child if child is not None and len(child.jobs) < _DEPTH else None

    def _grow(self, name: str, route: _Route) -> None:
        """Starts children for what waits, and successors of those that have done enough."""
        count = len(route.children) + route.spawning
        total = sum(len(item.children) + item.spawning for item in self._routes.values())
        quick = route.seconds < _QUICK_SECONDS
        allowed = min(route.limit, self._cores) if quick else route.limit
        wanted = min(count + len(route.waiting) - route.spawning, allowed)
        while total - count + wanted > self._max_shared and self._let_go():
            total -= 1
        wanted = min(wanted, self._max_shared - total + count)
        old = sum(child.old for child in route.children[: self._cores])
        if old and not route.spawning:
            wanted = max(wanted, count + 1)
        # More at once than there are cores would only make the first one ready later, and with it the news of how long
        # the handler takes.
        for _ in range(min(wanted - count, self._cores - self._starting)):
            self._starting += 1
            route.spawning += 1
            self._background(self._join(name, route))

    def _let_go(self) -> bool:
        """Ends the child that has been idle the longest, so that another route gets one."""
        idle = [
            (child.idle_since, route, child)
            for route in self._routes.values()
            for child in route.children
            if not child.jobs
        ]
        if not idle:
            return False
        _, route, child = min(idle, key=lambda item: item[0])
        route.children.remove(child)
        self._background(self._kill(child))
        return True

    async def _join(self, name: str, route: _Route) -> None:
        try:
            child = await self._take(name)
        except OSError as error:
            route.spawning -= 1
            # Each failure answers one request, so that they do not wait for a machine without memory.
            if route.waiting:
                job = route.waiting.popleft()
                job.end(self._not_spawned(error, job.run_id))
            self._assign_soon()
            return
        finally:
            self._starting -= 1
        if route.children:
            self._assign_soon()
            # A successor is not needed yet, so it loads the handler first.
            child.write(line({"prepare": route.handler}))
            await asyncio.wait([child.ready, child.closed], return_when=asyncio.FIRST_COMPLETED)
        route.spawning -= 1
        if child.closed.done() or self._closed:
            self._assign_soon()
            return
        # The newest first: it takes over from one that has done enough.
        for other in route.children:
            other.replaced = other.replaced or other.old
        route.children.insert(0, child)
        self._assign_soon()

    def _ended_one(self, child: _Child, seconds: float) -> None:
        child.idle_since = asyncio.get_running_loop().time()
        route = self._routes.get(child.route)
        if route is None:
            if not child.old and not self._closed:
                self._idle.append(child)
            else:
                self._background(self._kill(child))
            return
        route.seconds = seconds if route.seconds >= 1 else 0.9 * route.seconds + 0.1 * min(seconds, 1)
        if child.retired and not child.jobs and child in route.children:
            route.children.remove(child)
            self._background(self._kill(child))
        if route.waiting or child.runs == _PREPARE_RUNS or (child.old and not route.spawning):
            self._assign_soon()

    def _withdrawn(self, child: _Child, jobs: list[_Job]) -> None:
        route = self._routes[child.route]
        route.waiting.extendleft(reversed(jobs))
        # Not quick, at least not now.
        route.seconds = max(route.seconds, 2 * _QUICK_SECONDS)
        self._assign_soon()

    # Time limits

    def _watch(self) -> None:
        if self._watching is None and not self._closed:
            self._watching = asyncio.get_running_loop().call_later(_WATCH_SECONDS, self._look)

    def _look(self) -> None:
        self._watching = None
        now = asyncio.get_running_loop().time()
        busy = False
        for child in list(self._alive):
            if child.jobs:
                child.look()
            if not child.jobs:
                continue
            busy = True
            head = child.jobs[0]
            if now >= head.deadline and child.late is None:
                child.late = head
                child.kill()
            elif len(child.jobs) > 1 and not child.withdrawing and now - child.head_since > _STUCK_SECONDS:
                child.withdraw()
        for route in self._routes.values():
            busy = busy or bool(route.waiting)
            while route.waiting and now >= route.waiting[0].deadline:
                route.waiting.popleft().end(None)
        if busy:
            self._watch()

    # Processes

    def _not_spawned(self, error: OSError, run_id: str) -> Outcome:
        self._log.error("child not started", error, run=run_id)
        return Outcome("FAILURE", "The listener could not start a process for the handler.", retryable=True)

    def _background(self, work: Awaitable[Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, route: str) -> _Child:
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].route == route:
                child = self._idle.pop(index)
                if not child.closed.done() and child.process.poll() is None:
                    return child
        spare, self._spare = self._spare, None
        child = await (spare or self._spawn())
        self.warm()
        if child.closed.done() or child.process.poll() is not None:
            child = await self._spawn()
        child.route = route
        return child

    async def _spawn(self) -> _Child:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        output, printed = os.pipe()
        results, sent = os.pipe()
        os.set_blocking(results, False)
        try:
            command = python_command(
                self._bundle,
                self._work / "pycache",
                CHILD_LIBRARIES,
                "port_webhook_handlers.runtime.child",
                str(theirs.fileno()),
                str(sent),
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
                pass_fds=(theirs.fileno(), sent),
            )
        except BaseException:
            ours.close()
            os.close(output)
            os.close(results)
            raise
        finally:
            theirs.close()
            os.close(printed)
            os.close(sent)
        child = _Child(process, results, loop)
        child.on_result, child.on_withdrawn = self._ended_one, self._withdrawn
        ours.setblocking(False)
        await loop.create_connection(lambda: child, sock=ours)
        self._alive.add(child)
        child.output = asyncio.ensure_future(self._capture(child, output))
        self._background(self._bury(child))
        if self._on_spawn is not None:
            await self._on_spawn(child.name)
        return child

    async def _bury(self, child: _Child) -> None:
        """Waits for the end of a child and decides about the requests it had."""
        await child.closed
        self._alive.discard(child)
        child.kill()
        child.transport.close()
        await asyncio.to_thread(child.process.wait)
        if child in self._idle:
            self._idle.remove(child)
        if child.output is not None:
            # A process that left the group may hold the pipe open.
            await asyncio.wait([child.output], timeout=0.5)
            child.output.cancel()
        route = self._routes.get(child.route)
        if route is not None and child in route.children:
            route.children.remove(child)
        if child.jobs:
            # Every result that it sent has been read, so this is the one it was at.
            head = child.jobs.popleft()
            head.end(self._lost(child, head))
        if route is not None:
            route.waiting.extendleft(reversed(child.jobs))
            self._assign_soon()
        self._on_end(child.name)

    def _lost(self, child: _Child, job: _Job) -> Outcome:
        if child.late is job:
            return Outcome(
                "FAILURE", f"The handler was ended after {job.seconds:g} s, its time limit.", timed_out=True
            )
        if child.garbled is not None:
            self._log.error("child failed", child.garbled, run=job.run_id)
            return Outcome(
                "FAILURE", "The handler's process sent something unreadable.", error_type="ProtocolError"
            )
        return Outcome("FAILURE", _death(child.process.returncode), interrupted=True)

    async def _kill(self, child: _Child) -> None:
        child.kill()
        await asyncio.to_thread(child.process.wait)
        # A copy of the connection may be held by a process that left the group.
        await asyncio.wait([child.closed], timeout=0.5)
        child.transport.abort()
        await child.closed

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


def kill_orphan(child: str) -> None:
    """Kills the process group of a child that a former server recorded, if it is still that process."""
    pid, _, start_time = child.partition(":")
    if pid.isdigit() and ProcessIdentity(int(pid), float(start_time)).is_alive():
        try:
            os.killpg(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            pass


def line(request: Mapping[str, Any]) -> bytes:
    """A request as a child reads it."""
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


def _into(future: asyncio.Future[Outcome]) -> Then:
    def then(outcome: Outcome | None) -> None:
        if future.done():
            return
        if outcome is None:
            future.set_exception(NotStartedError())
        else:
            future.set_result(outcome)

    return then


def _death(code: int | None) -> str:
    signalled = code is not None and code < 0
    how = f"by signal {signal.Signals(-code).name}" if signalled and code else f"with code {code}"
    return f"The handler's process ended {how} before it gave a result; what it did is unknown."
