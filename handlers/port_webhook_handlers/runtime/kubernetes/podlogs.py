"""What a run reports, read from the logs of its Pods while they run."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

from port_webhook_handlers.runtime.kubernetes import jobs, names
from port_webhook_handlers.runtime.kubernetes.api import ApiServer, ApiServerError
from port_webhook_handlers.runtime.logs import Log

Manifest = dict[str, Any]

_QUIET_SECONDS: Final = 3600.0
_LOOK_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.5
_TRIES: Final = 4


class PodLogs:
    """The logs of one run's Pods, one after the other.

    A stream that breaks off is read again from its beginning, and what was seen is passed over, so reports keep
    their numbers: also for the next process, as long as the Pods are there.

    Args:
        api: the API server.
        path: of the Pods.
        pods: the run's Pods as last seen, the oldest first.
        report: called with number, kind and body of each report, in order.
        unreadable: called if the log of a Pod cannot be read.
        threads: where streams are followed.
        log: its log.

    Attributes:
        changed: set it when a Pod has changed.
    """

    def __init__(
        self,
        api: ApiServer,
        path: str,
        pods: Callable[[], list[Manifest]],
        report: Callable[[int, str, dict[str, Any]], None],
        unreadable: Callable[[], None],
        threads: Executor,
        log: Log,
    ) -> None:
        self._api = api
        self._path = path
        self._pods = pods
        self._report = report
        self._unreadable = unreadable
        self._threads = threads
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._lines: dict[str, int] = {}
        self._complete: set[str] = set()
        self._number = 0
        self._finishing = False
        self._dropped = False
        self.changed = asyncio.Event()

    async def read(self) -> None:
        """Reads until `finish` was called and everything that was printed is read."""
        while True:
            self.changed.clear()
            pod = next(
                (
                    pod["metadata"]["name"]
                    for pod in self._pods()
                    if pod["metadata"]["name"] not in self._complete
                    and not jobs.container_state(pod).keys().isdisjoint({"running", "terminated"})
                ),
                None,
            )
            if pod is not None:
                await self._read(pod)
            elif self._finishing:
                return
            else:
                await wait(self.changed, _LOOK_SECONDS)

    def finish(self) -> None:
        """The run is over: nothing more will be printed."""
        self._finishing = True
        self.changed.set()

    def drop(self) -> None:
        """Reports nothing more."""
        self._dropped = True

    async def _read(self, pod: str) -> None:
        tries = 0
        while pod not in self._complete:
            # Whether what is read from now on is all there will be.
            ended = self._has_ended(pod)
            try:
                await self._loop.run_in_executor(self._threads, self._follow, pod)
            except ApiServerError as error:
                tries += ended
                if error.status == 404 or tries >= _TRIES:
                    self._log("log not read", pod=pod, error=str(error))
                    self._unreadable()
                    self._complete.add(pod)
                else:
                    await asyncio.sleep(_PAUSE_SECONDS)
            else:
                if ended:
                    self._complete.add(pod)
                elif pod not in self._complete:
                    await wait(self.changed, _PAUSE_SECONDS)

    def _has_ended(self, name: str) -> bool:
        for pod in self._pods():
            if pod["metadata"]["name"] == name:
                return "terminated" in jobs.container_state(pod)
        return True

    def _follow(self, pod: str) -> None:
        """Follows a Pod's log, in a thread."""
        query = {"container": names.CONTAINER, "follow": "true"}
        number = 0
        for line in self._api.lines(f"{self._path}/{pod}/log", query, timeout=_QUIET_SECONDS):
            if self._dropped:
                return
            try:
                body = json.loads(line)
                if "report" in body:
                    number += 1
                    kind, content = str(body["kind"]), dict(body["body"])
                    self._loop.call_soon_threadsafe(self._line, pod, number, kind, content)
                elif "end" in body:
                    self._loop.call_soon_threadsafe(self._complete.add, pod)
            except (ValueError, TypeError, KeyError):
                # Lines of other programs in the container.
                continue

    def _line(self, pod: str, number: int, kind: str, body: dict[str, Any]) -> None:
        if self._dropped or number <= self._lines.get(pod, 0):
            return
        self._lines[pod] = number
        self._number += 1
        self._report(self._number, kind, body)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Waits for an event, at most so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
