"""Runs what was accepted: starts each run in a child, passes on what it reports and ends it, whatever happens.

| what happens to a run | `on_interrupt="fail"` | `on_interrupt="retry"` |
|---|---|---|
| the handler raises `RetryableError` | again, up to `max_attempts` | the same |
| its process or this server dies in the middle | FAILURE: outcome unknown | again, up to three starts or `max_attempts` |
| it reaches its time limit | FAILURE | again, up to `max_attempts` |
| accepted, not started, server dies | started by the next server | the same |
| ended, not reported, server dies | reported by the next server | the same |
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.port.encryption import DecryptionError
from port_webhook_handlers.port.json_codec import lines_codec
from port_webhook_handlers.port.payload import ENVELOPE
from port_webhook_handlers.process import ProcessIdentity
from port_webhook_handlers.runtime.children import ChildPool, kill_orphan, line
from port_webhook_handlers.runtime.claims import Answer, LedgerError
from port_webhook_handlers.runtime.config import ListenerConfig
from port_webhook_handlers.runtime.execution import (
    MAX_REPORTS,
    STARTS_AFTER_INTERRUPTS,
    Outcome,
    answer_of,
    handler_request,
    reports_of,
    starts_again,
)
from port_webhook_handlers.runtime.flood import LOOK_SECONDS, Flood
from port_webhook_handlers.runtime.ledger import Ledger, OpenRun
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Manifest, Route
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.outbox import Outbox
from port_webhook_handlers.runtime.receiver import Invocation
from port_webhook_handlers.runtime.secret_file import LiveSecrets, StoredSecrets

INTERRUPTED: Final = (
    "The run was interrupted, outcome unknown: the listener ended while its handler was running."
)
STOPPED: Final = (
    "The run was interrupted, outcome unknown: the listener was stopped while its handler was running."
)

_, _write = lines_codec()

_TICK_SECONDS: Final = 1.0
_ORPHAN_TICKS: Final = 5
_PURGE_TICKS: Final = 60
_MAX_RETRY_SECONDS: Final = 300.0
_FLUSH_SECONDS: Final = 2.0
# A flood may fill this share of the places for accepted runs before any of them starts.
_HELD_SHARE: Final = 0.25


def owner_name(nonce: str) -> str:
    """Name of this process in the ledger."""
    identity = ProcessIdentity.of(os.getpid())
    return f"{identity.pid}:{identity.start_time}:{nonce}"


def is_alive(owner: str) -> bool:
    """Whether the process with that name still runs."""
    try:
        pid, start_time, _ = owner.split(":", 2)
        return ProcessIdentity(int(pid), float(start_time)).is_alive()
    except ValueError:
        return False


class _Messages:
    """Passes on what a child reports of one run, up to a limit; and knows how many messages that were."""

    __slots__ = ("_dispatcher", "_run_id", "sent")

    def __init__(self, dispatcher: Dispatcher, run_id: str) -> None:
        self._dispatcher = dispatcher
        self._run_id = run_id
        self.sent = 0

    def __call__(self, message: dict[str, Any]) -> None:
        self.sent += 1
        if self.sent <= MAX_REPORTS:
            self._dispatcher.report(self._run_id, message)
        elif self.sent == MAX_REPORTS + 1:
            left_out = f"(after {MAX_REPORTS} reports the rest is left out)"
            self._dispatcher.report(self._run_id, {"log": left_out})


class _SynchronousRun:
    """A synchronous run that is being executed."""

    __slots__ = ("_began", "_dispatcher", "_invocation", "_seconds", "_then", "on_message")

    def __init__(
        self,
        dispatcher: Dispatcher,
        invocation: Invocation,
        seconds: float,
        then: Callable[[Answer, bytes], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._invocation = invocation
        self._seconds = seconds
        self._then = then
        self._began = time.monotonic()
        self.on_message = _Messages(dispatcher, invocation.run_id)

    def ended(self, outcome: Outcome | None) -> None:
        """Answers it; None: it was not started in time."""
        run_id = self._invocation.run_id
        if outcome is None:
            message = "No process was free for the handler in time."
            self._dispatcher.answered(
                run_id, Answer(503, {"error": "overloaded", "message": message}), self._then
            )
            return
        outcome = self._dispatcher.ended(run_id, self._invocation.route.name, outcome, self._began)
        answer = answer_of(run_id, outcome)
        if self.on_message.sent:
            # Port lists entities under a run only while it is open, and the answer ends it.
            left = self._seconds - (time.monotonic() - self._began)
            self._dispatcher.answered_after_reports(
                run_id, max(0.0, min(_FLUSH_SECONDS, left)), answer, self._then
            )
        else:
            self._dispatcher.answered(run_id, answer, self._then)


class Dispatcher:
    """Executes runs.

    Args:
        manifest: routes.
        config: limits, settings of handlers, folder of their state.
        state_dir: folder that handlers get as the setting `state_dir`.
        secrets: values of the secrets that handlers declare, and decryption keys.
        ledger: where runs are.
        pool: child processes.
        outbox: takes reports to Port.
        log, metrics: where runs are noted.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        manifest: Manifest,
        config: ListenerConfig,
        state_dir: Path,
        secrets: LiveSecrets,
        ledger: Ledger,
        pool: ChildPool,
        outbox: Outbox,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._routes = manifest.routes
        self._config = config
        self._state_dir = state_dir
        self._secrets = secrets
        self._ledger = ledger
        self._pool = pool
        self._outbox = outbox
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._waiting: dict[str, deque[str]] = {}
        self._known: set[str] = set()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._busy: dict[str, int] = {}
        self._constant: dict[str, tuple[StoredSecrets, bytes, bytes]] = {}
        self._storing: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._flood = Flood()
        self._draining = False
        self.on_overload: Callable[[bool], None] = lambda overloaded: None

    # What the receiver calls

    def accepted(self, run_id: str, route: str) -> None:
        """An asynchronous run was claimed."""
        self._flood.arrived()
        self._await_start(run_id, route)

    def _await_start(self, run_id: str, route: str) -> None:
        if run_id not in self._known and not self._draining:
            self._known.add(run_id)
            self._waiting.setdefault(route, deque()).append(run_id)
            self._wake.set()

    def refused(self, run_id: str) -> None:
        """A run was stored together with the report that ends it."""
        self._outbox.wake(run_id)

    async def fail_now(self, run_id: str, summary: str) -> None:
        """Tells Port, without the ledger, that a run failed."""
        await self._outbox.fail_now(run_id, summary)

    async def answer(self, invocation: Invocation, seconds: float) -> Answer:
        """Executes a synchronous run and stores its answer."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def then(answer: Answer, _: bytes) -> None:
            if not answered.done():
                answered.set_result(answer)

        self.begin(invocation, seconds, then)
        return await answered

    def begin(self, invocation: Invocation, seconds: float, then: Callable[[Answer, bytes], None]) -> None:
        """As `answer`, without a coroutine.

        Args:
            invocation, seconds: as in `answer`.
            then: called with the answer, and its body as JSON, once it is stored; must not raise.
        """
        run = _SynchronousRun(self, invocation, seconds, then)
        route = invocation.route
        try:
            request = self._encoded(invocation.run_id, route, invocation.body, 1, seconds, invocation.raw)
        except DecryptionError as error:
            run.ended(_undecrypted(error))
            return
        self._pool.submit(
            invocation.run_id,
            route.name,
            route.handler,
            request,
            seconds,
            route.max_concurrency,
            run.on_message,
            run.ended,
        )

    def answered_after_reports(
        self, run_id: str, seconds: float, answer: Answer, then: Callable[[Answer, bytes], None]
    ) -> None:
        """As `answered`, once Port has the run's reports, or after some seconds."""

        async def flush() -> None:
            await self._outbox.flush(seconds, run_id)
            self.answered(run_id, answer, then)

        self._keep(flush())

    def answered(self, run_id: str, answer: Answer, then: Callable[[Answer, bytes], None]) -> None:
        """Stores the answer of a synchronous run and hands it out."""
        try:
            text = _write(answer.body)
            if not text.isascii():
                text = compact(answer.body).encode()
        except (TypeError, ValueError):
            # A handler's process may send what is not quite JSON.
            answer = Answer(500, {"error": "handler_error", "message": "The response is not JSON."})
            text = compact(answer.body).encode()

        def stored(error: LedgerError | None) -> None:
            if error is not None:
                self._log("answer not stored", run=run_id, error=str(error))
                self._keep(self._stored(lambda: self._ledger.answer(run_id, answer), run_id))
            then(answer, text)

        self._ledger.answer_soon(run_id, answer.status, text, stored)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    # Life

    async def serve(self) -> None:
        """Starts accepted runs until cancelled."""
        ticks = 0
        due = 0.0
        while True:
            if time.monotonic() >= due:
                due = time.monotonic() + _TICK_SECONDS
                try:
                    await self._tick(ticks)
                except LedgerError as error:
                    self._log("ledger not readable", error=str(error))
                except Exception as error:  # noqa: BLE001
                    self._log.error("dispatcher failed", error)
                ticks += 1
            held = self._flood.holds() and len(self._known) < self._config.limits.max_queued * _HELD_SHARE
            if not held:
                self._start_some()
            self._wake.clear()
            try:
                async with asyncio.timeout(LOOK_SECONDS if held else max(0.01, due - time.monotonic())):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def drain(self, seconds: float | None) -> None:
        """Starts nothing more and waits for what runs.

        Args:
            seconds: after this time the rest is killed; None: every handler gets the time it may take.
        """
        self._draining = True
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=seconds)
        await self._pool.close()
        if self._running:
            await asyncio.wait(list(self._running.values()), timeout=10)

    async def fail_waiting(self, summary: str) -> None:
        """Ends accepted runs that have not started, because nobody will start them."""
        while waiting := await self._ledger.queued():
            for run_id, _ in waiting:
                if await self._ledger.finish(run_id, {"status": "FAILURE", "summary": summary}):
                    self._outbox.wake(run_id)

    async def recover(self) -> None:
        """Decides about runs whose server ended in the middle."""
        if lost := await self._ledger.lost_children(is_alive):
            # A second execution must not overlap with what is left of the first.
            for child in lost:
                await asyncio.to_thread(kill_orphan, child)
            await self._ledger.remove_children(lost)
        for run in await self._ledger.orphans(is_alive):
            if not await self._ledger.adopt(run):
                continue
            self._log("run recovered", run=run.run_id, route=run.route, state=run.state)
            if run.state == "running":
                await self._interrupted(run)
            self._outbox.wake(run.run_id)

    async def _interrupted(self, run: OpenRun) -> None:
        route = self._routes.get(run.route)
        again = route is not None and route.on_interrupt == "retry"
        if run.mode == "sync":
            if again:
                await self._ledger.forget(run.run_id)
            else:
                await self._ledger.answer(
                    run.run_id, Answer(500, {"error": "interrupted", "message": INTERRUPTED})
                )
        elif route is not None and again and run.attempt < max(route.max_attempts, STARTS_AFTER_INTERRUPTS):
            await self._ledger.requeue(run.run_id, self._clock())
        else:
            await self._ledger.finish(run.run_id, {"status": "FAILURE", "summary": INTERRUPTED})

    async def _tick(self, ticks: int) -> None:
        if not self._draining:
            if ticks % _ORPHAN_TICKS == 0:
                await self.recover()
            for run_id, route in await self._ledger.queued():
                self._await_start(run_id, route)
        self.on_overload(await self._ledger.waiting() >= self._config.limits.max_queued)
        await self._outbox.scan()
        await self._pool.trim()
        if ticks % _PURGE_TICKS == 0:
            limits, now = self._config.limits, self._clock()
            oldest = now - limits.retention_days * 86_400
            for run_id in await self._ledger.expired(oldest):
                self._log("run never reported", run=run_id, days=limits.retention_days)
                await self._ledger.close_run(run_id)
            await self._ledger.purge(answers_before=now - 2 * limits.tolerance_seconds, claims_before=oldest)

    def _start_some(self) -> None:
        # One run of each route in turn, so that a busy route cannot keep the others waiting.
        progress = True
        while progress and not self._draining:
            progress = False
            for route in list(self._waiting):
                if len(self._running) >= self._config.limits.max_children:
                    return
                known = self._routes.get(route)
                if known is not None and self._busy.get(route, 0) >= known.max_concurrency:
                    continue
                progress = True
                waiting = self._waiting[route]
                run_id = waiting.popleft()
                # To the end of the line.
                del self._waiting[route]
                if waiting:
                    self._waiting[route] = waiting
                self._busy[route] = self._busy.get(route, 0) + 1
                task = asyncio.ensure_future(self._run(run_id))
                self._running[run_id] = task
                task.add_done_callback(functools.partial(self._finished, run_id, route))

    def _finished(self, run_id: str, route: str, _: asyncio.Task[None]) -> None:
        self._running.pop(run_id, None)
        self._known.discard(run_id)
        self._busy[route] -= 1
        self._wake.set()

    async def _run(self, run_id: str) -> None:
        try:
            run = await self._ledger.start(run_id)
            if run is None:
                return
            began = time.monotonic()
            messages: _Messages | None = None
            route = self._routes.get(run.route)
            if route is None:
                outcome = Outcome("FAILURE", "No handler is deployed for this action any more.")
            else:
                messages = _Messages(self, run_id)
                found = await self._execute(run_id, route, run.attempt, run.payload, messages)
                if found is None:
                    # The listener is being stopped; whoever comes next starts the run.
                    await self._stored(lambda: self._ledger.requeue(run_id, self._clock()), run_id)
                    return
                outcome = found
                if starts_again(route, run.attempt, outcome):
                    delay = min(
                        _MAX_RETRY_SECONDS, self._config.limits.retry_seconds * 2 ** (run.attempt - 1)
                    )
                    delay *= random.uniform(0.5, 1)  # noqa: S311
                    self._log(
                        "run starts again",
                        run=run_id,
                        route=run.route,
                        attempt=run.attempt,
                        seconds=round(delay, 1),
                    )
                    await self._stored(lambda: self._ledger.requeue(run_id, self._clock() + delay), run_id)
                    return
            final = {"status": outcome.status, "summary": outcome.summary, "link": outcome.link}
            await self._stored(lambda: self._ledger.finish(run_id, final), run_id)
            self.ended(run_id, run.route, outcome, began)
            # Nothing else is left to report of a first attempt that said nothing.
            alone = run.attempt == 1 and messages is not None and not messages.sent
            self._outbox.wake(run_id, final if alone else None)
        except LedgerError as error:
            # It stays as it is in the ledger; a later server reports it as interrupted.
            self._log("run not stored", run=run_id, error=str(error))
        except Exception as error:  # noqa: BLE001
            self._log.error("run failed", error, run=run_id)
            await self._ledger.finish(
                run_id, {"status": "FAILURE", "summary": "The listener failed; see its log."}
            )
            self._outbox.wake(run_id)

    async def _stored(self, store: Callable[[], Awaitable[object]], run_id: str) -> None:
        """Stores an outcome, again and again: while this process lives nobody else may decide about the run."""
        while True:
            try:
                await store()
            except LedgerError as error:
                self._log("outcome not stored yet", run=run_id, error=str(error))
                if self._draining:
                    raise
                await asyncio.sleep(_TICK_SECONDS)
            else:
                return

    async def _execute(
        self, run_id: str, route: Route, attempt: int, payload: bytes, on_message: _Messages
    ) -> Outcome | None:
        """Executes a run; None: it was not started."""
        seconds = route.timeout_seconds
        try:
            plain = b"\n" not in payload and not route.encrypted_inputs
            body = {} if plain else json.loads(payload)
            request = self._encoded(run_id, route, body, attempt, seconds, payload)
        except DecryptionError as error:
            return _undecrypted(error)
        self._log("run started", run=run_id, route=route.name, attempt=attempt)
        ended: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._pool.submit(
            run_id,
            route.name,
            route.handler,
            request,
            seconds,
            route.max_concurrency,
            on_message,
            lambda outcome: None if ended.done() else ended.set_result(outcome),
            from_start=True,
        )
        outcome = await ended
        return None if outcome is None else self._stopped(outcome)

    def _stopped(self, outcome: Outcome) -> Outcome:
        if outcome.interrupted and self._draining:
            return dataclasses.replace(outcome, summary=STOPPED)
        return outcome

    def _encoded(
        self, run_id: str, route: Route, body: Mapping[str, Any], attempt: int, seconds: float, raw: bytes
    ) -> bytes:
        if b"\n" not in raw and not route.encrypted_inputs:
            # One line, and what was signed is not written anew.
            return self._line(run_id, route, raw, attempt, seconds)
        return line(self._request(run_id, route, body, attempt, seconds))

    def report(self, run_id: str, message: Mapping[str, Any]) -> None:
        """Stores what a child reports of a run, and tells Port."""
        for kind, body in reports_of(message, self._log.redact):
            self._ledger.report(run_id, kind, body)
            self._outbox.wake(run_id)

    def _line(self, run_id: str, route: Route, raw: bytes, attempt: int, seconds: float) -> bytes:
        known = self._constant.get(route.name)
        content = self._secrets.content
        if known is None or known[0] is not content:
            constant = {
                "handler": route.handler,
                "secrets": {name: content.secrets[name] for name in route.secrets if name in content.secrets},
                "settings": self._settings(route),
            }
            if route.payload is not ENVELOPE:
                constant["payload"] = route.payload.to_json()
            action = json.dumps({"action": route.action})[1:-1].encode()
            known = self._constant[route.name] = content, b"{%b," % action, line(constant)[1:-2]
        # A run id is plain letters and digits.
        deadline = self._clock() + seconds
        run = b'"id":"%b","attempt":%d,"deadline":%.3f}' % (run_id.encode(), attempt, deadline)
        return b'{"run":%b%b,%b,"body":%b}\n' % (known[1], run, known[2], raw)

    def _settings(self, route: Route) -> dict[str, Any]:
        return {"state_dir": str(self._state_dir), **self._config.handler_settings(route.name)}

    def _request(
        self, run_id: str, route: Route, body: Mapping[str, Any], attempt: int, seconds: float
    ) -> dict[str, Any]:
        content = self._secrets.content
        return handler_request(
            run_id,
            route,
            body,
            attempt=attempt,
            deadline=self._clock() + seconds,
            secrets=content.secrets,
            decryption=content.decryption,
            settings=self._settings(route),
        )

    def ended(self, run_id: str, route: str, outcome: Outcome, began: float) -> Outcome:
        """Notes how a run ended."""
        outcome = self._stopped(outcome)
        self._metrics.count("port_webhook_runs_total", ("route", route), ("status", outcome.status))
        self._log(
            "run ended",
            run=run_id,
            route=route,
            status=outcome.status,
            error_type=outcome.error_type or None,
            seconds=round(time.monotonic() - began, 3),
        )
        return outcome


def _undecrypted(error: DecryptionError) -> Outcome:
    return Outcome("FAILURE", f"An encrypted input cannot be read: {error}.", error_type="DecryptionError")
