"""The dispatcher's process: one Job for each accepted run, Port's reports, and cleaning up.

Each open run is one task, which survives nothing: after a restart, or when another process takes over, it goes on
from what the API server holds. A run's Job has the name of its Secret, so it can be created once; once the Secret
says `started`, it is never created again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.claims import LedgerError
from port_webhook_handlers.runtime.config import ConfigError
from port_webhook_handlers.runtime.kubernetes import config as configuration
from port_webhook_handlers.runtime.kubernetes import jobs, names, private_http
from port_webhook_handlers.runtime.kubernetes import runs as stored
from port_webhook_handlers.runtime.kubernetes.api import MERGE_PATCH, ApiServer, ApiServerError
from port_webhook_handlers.runtime.kubernetes.config import ClusterConfig
from port_webhook_handlers.runtime.kubernetes.lease import Lease
from port_webhook_handlers.runtime.kubernetes.mirror import Manifest, Mirror
from port_webhook_handlers.runtime.kubernetes.mounted import MountedSecrets
from port_webhook_handlers.runtime.kubernetes.podlogs import PodLogs, wait
from port_webhook_handlers.runtime.kubernetes.reports import FINAL, ClusterReports
from port_webhook_handlers.runtime.kubernetes.runs import StoredRun
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.outbox import Outbox
from port_webhook_handlers.runtime.redact import Redactor
from port_webhook_handlers.runtime.secret_file import LiveSecrets, SecretFileError, StoredSecrets

_API_THREADS: Final = 16
_TICK_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 5.0
_CLEAN_TICKS: Final = 60
_FIRST_PAUSE_SECONDS: Final = 0.5
_MAX_PAUSE_SECONDS: Final = 30.0
_FLUSH_SECONDS: Final = 10.0
_JOB_NAME_LABEL: Final = "batch.kubernetes.io/job-name"
_METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_SELECTOR: Final = f"app.kubernetes.io/managed-by={names.PREFIX}"


class StartError(Exception):
    """The dispatcher cannot start; the message says why and what to do."""


@dataclass(slots=True, eq=False)
class _Run:
    """An open run in this process's care."""

    stored: StoredRun
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    log: PodLogs | None = None
    dead: bool = False
    task: asyncio.Task[None] | None = None


class Dispatcher:
    """Dispatches the runs of a namespace.

    Args:
        config: namespaces, bounds, templates of Jobs.
        routes: the bundle's routes.
        api: the API server, as this ServiceAccount.
        secrets: credentials of Port's API.
        identity: name of this Pod.
        log, metrics: where runs are noted.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        config: ClusterConfig,
        routes: dict[str, Route],
        api: ApiServer,
        secrets: LiveSecrets,
        identity: str,
        log: Log,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._config = config
        self._routes = routes
        self._api = api
        self._log = log
        self._metrics = metrics
        self._clock = clock
        self._threads = ThreadPoolExecutor(_API_THREADS, thread_name_prefix="api")
        self._log_threads = ThreadPoolExecutor(config.runs.max_jobs + 4, thread_name_prefix="log")
        self._secrets_path = f"/api/v1/namespaces/{config.runs_namespace}/secrets"
        self._pods_path = f"/api/v1/namespaces/{config.runs_namespace}/pods"
        self._jobs_path = f"/apis/batch/v1/namespaces/{config.runs_namespace}/jobs"
        self.lease = Lease(api, config.namespace, config.lease, identity, self._threads, log)
        self.reports = ClusterReports(self._close)
        self.outbox = Outbox(self.reports, secrets, config.port_base_url, log, metrics)
        self._jobs = self._mirror(self._jobs_path, _SELECTOR, lambda job: str(job["metadata"]["name"]))
        self._pods = self._mirror(self._pods_path, _SELECTOR, _job_of)
        self._stored = self._mirror(
            self._secrets_path,
            f"{_SELECTOR},{names.MODE_LABEL}=async,{names.STATE_LABEL}!={stored.DONE}",
            lambda secret: str(secret["metadata"]["name"]),
            _without_body,
        )
        self._runs: dict[str, _Run] = {}
        self._closed: set[str] = set()
        self._wake = asyncio.Event()
        self._slots = asyncio.Semaphore(config.runs.max_jobs)
        self._route_slots = {name: asyncio.Semaphore(route.max_concurrency) for name, route in routes.items()}
        self._loop = asyncio.get_running_loop()

    # Life

    async def serve(self) -> None:
        """Dispatches until cancelled."""
        for mirror in (self._stored, self._jobs, self._pods):
            mirror.start()
        holding = asyncio.ensure_future(self.lease.hold(self._wake.set))
        ticks = 0
        due = 0.0
        try:
            while True:
                if not self.lease.held:
                    await self._let_go()
                elif all(mirror.synced.is_set() for mirror in (self._stored, self._jobs, self._pods)):
                    self._adopt()
                    if time.monotonic() >= due:
                        due = time.monotonic() + _TICK_SECONDS
                        await self._tick(ticks)
                        ticks += 1
                await wait(self._wake, _TICK_SECONDS)
                self._wake.clear()
        finally:
            holding.cancel()
            await asyncio.wait([holding])

    async def close(self) -> None:
        """Stops; Jobs go on, and the next process reports them."""
        for mirror in (self._stored, self._jobs, self._pods):
            mirror.stop()
        await self.outbox.flush(_FLUSH_SECONDS)
        await self._let_go()
        await self.outbox.close()
        await self.lease.release()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._log_threads.shutdown(wait=False, cancel_futures=True)

    @property
    def ready(self) -> bool:
        """Whether it holds the Lease and sees the cluster."""
        return self.lease.held and self._stored.synced.is_set()

    def gauges(self) -> str:
        """Metrics as text."""
        counts = {"queued": 0.0, "running": 0.0, "reporting": 0.0}
        words = {"": "queued", stored.STARTED: "running", stored.ENDED: "reporting"}
        for run in self._runs.values():
            counts[words.get(run.stored.state, "reporting")] += 1
        oldest = min((run.stored.created_at for run in self._runs.values()), default=self._clock())
        return self._metrics.render(
            {
                "port_webhook_runs": {(("state", state),): count for state, count in counts.items()},
                "port_webhook_reports_waiting": {(): self.reports.count},
                "port_webhook_oldest_unreported_seconds": {(): max(0.0, self._clock() - oldest)},
            }
        )

    def _mirror(
        self,
        path: str,
        selector: str,
        run_of: Callable[[Manifest], str],
        strip: Callable[[Manifest], None] = lambda item: None,
    ) -> Mirror:
        def changed(item: Manifest) -> None:
            with contextlib.suppress(RuntimeError):
                # RuntimeError: the loop has ended.
                self._loop.call_soon_threadsafe(self._notify, run_of(item))

        return Mirror(self._api, path, selector, changed, self._log, strip)

    def _notify(self, name: str) -> None:
        run = self._runs.get(name)
        if run is not None:
            run.changed.set()
            if run.log is not None:
                run.log.changed.set()
        else:
            self._wake.set()

    def _adopt(self) -> None:
        """Takes care of runs that are new here: those that were started before, then the oldest."""
        present = self._stored.all()
        fresh = []
        here = set()
        for manifest in present:
            name = manifest["metadata"]["name"]
            here.add(name)
            if name not in self._runs and name not in self._closed:
                run = stored.parse(manifest)
                if run is None:
                    self._log("no run", secret=name)
                    self._closed.add(name)
                else:
                    fresh.append(run)
        # What a mirror does not show any more cannot come back.
        self._closed &= here
        for run in sorted(fresh, key=lambda run: (run.state == "", run.created_at)):
            tracked = _Run(run)
            self._runs[run.name] = tracked
            tracked.task = asyncio.ensure_future(self._live(tracked))

    async def _let_go(self) -> None:
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        self._runs.clear()
        self.reports.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _tick(self, ticks: int) -> None:
        await self.outbox.scan()
        for run_id, number in list(self.reports.taken.items()):
            run = self._runs.get(names.run_name(run_id))
            if run is not None:
                with contextlib.suppress(ApiServerError):
                    await self._patch(run, annotations={names.REPORTED_ANNOTATION: str(number)})
            self.reports.taken.pop(run_id, None)
        if ticks % _CLEAN_TICKS == 0:
            try:
                await self._clean()
            except ApiServerError as error:
                self._log("not cleaned up", error=str(error))

    # One run

    async def _live(self, run: _Run) -> None:
        try:
            outcome = run.stored.failure or run.stored.outcome
            if outcome is None:
                outcome = await self._execute(run)
            elif run.stored.failure is None:
                # What a former process had read but Port had not taken.
                log = self._pod_logs(run)
                log.finish()
                try:
                    await log.read()
                finally:
                    log.drop()
            if run.stored.state != stored.ENDED:
                text = json.dumps(outcome, separators=(",", ":"))
                dead = {names.DEAD_LABEL: "true"} if run.dead else {}
                await self._persist(run, stored.ENDED, {names.OUTCOME_ANNOTATION: text}, dead)
                self._metrics.count(
                    "port_webhook_runs_total", ("route", run.stored.route), ("status", outcome["status"])
                )
            self._log("run ended", run=run.stored.run_id, route=run.stored.route, status=outcome["status"])
            self.reports.add(run.stored.run_id, FINAL, "final", outcome)
            self.outbox.wake(run.stored.run_id)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001
            self._log.error("run not dispatched", error, run=run.stored.run_id)
            # Taken up again as if this process had just started.
            await asyncio.sleep(_MAX_PAUSE_SECONDS)
            self.reports.forget(run.stored.run_id)
            if self._runs.get(run.stored.name) is run:
                del self._runs[run.stored.name]
            self._wake.set()

    async def _execute(self, run: _Run) -> dict[str, Any]:
        route = self._routes.get(run.stored.route)
        template = self._config.jobs.get(run.stored.route)
        if route is None or template is None:
            if run.stored.state == "":
                return _failed(run, "No handler is deployed for this action any more.")
            return await self._outcome(run)
        async with self._route_slots[route.name], self._slots:
            if run.stored.state == "":
                refusal = await self._start(run, template)
                if refusal is not None:
                    return _failed(run, refusal)
            return await self._outcome(run)

    async def _start(self, run: _Run, template: jobs.Manifest) -> str | None:
        """Creates the run's Job; why it was refused, or None."""
        pause = _FIRST_PAUSE_SECONDS
        until = time.monotonic() + self._config.runs.start_seconds
        while True:
            if not self.lease.held:
                # Another process may be at work: this task is about to be cancelled.
                await asyncio.sleep(_TICK_SECONDS)
                continue
            try:
                await self._call("POST", self._jobs_path, jobs.job(template, run.stored))
            except ApiServerError as error:
                if error.status == 409 and error.reason == "AlreadyExists":
                    if await self._is_ours(run):
                        break
                elif error.status in (403, 422):
                    # A full quota empties; an API server that has just started knows no Roles yet; while a
                    # deployment goes on, the admission policy is already the one of the next dispatcher.
                    if time.monotonic() > until and "exceeded quota" not in str(error):
                        return f"The cluster refused the run's Job: {error}"
                elif not error.passing:
                    return f"The cluster refused the run's Job: {error}"
                self._log("job not created yet", run=run.stored.run_id, error=str(error))
                await asyncio.sleep(pause)
                pause = min(_MAX_PAUSE_SECONDS, pause * 2)
            else:
                break
        self._log("job created", run=run.stored.run_id, route=run.stored.route, job=run.stored.name)
        await self._persist(run, stored.STARTED)
        return None

    async def _is_ours(self, run: _Run) -> bool:
        try:
            job = await self._call("GET", f"{self._jobs_path}/{run.stored.name}")
        except ApiServerError:
            return False
        return any(owner["uid"] == run.stored.uid for owner in job["metadata"].get("ownerReferences") or ())

    async def _outcome(self, run: _Run) -> dict[str, Any]:
        """Waits for the end of a started run while its log is read."""
        run_id = run.stored.run_id
        log = self._pod_logs(run)
        run.log = log
        reading = asyncio.ensure_future(log.read())
        try:
            while True:
                run.changed.clear()
                try:
                    await self._let_start(run)
                except ApiServerError as error:
                    # Its end is looked for nevertheless: a Pod that never starts must not keep the run open.
                    self._log("pod not let start yet", run=run_id, error=str(error))
                try:
                    outcome = await self._ended(run)
                except ApiServerError as error:
                    self._log("run not looked at", run=run_id, error=str(error))
                    outcome = None
                if outcome is not None:
                    break
                await wait(run.changed, _LOOK_SECONDS)
            # What the handler reported goes before its end.
            log.finish()
            await reading
        finally:
            log.drop()
            reading.cancel()
        return outcome

    async def _let_start(self, run: _Run) -> None:
        """Takes the gate away from the one Pod that may execute the run now, after that is recorded."""
        route = self._routes.get(run.stored.route)
        claim = self._stored.get(run.stored.name)
        # Record and version of one reading: what another dispatcher recorded meanwhile is either seen, or refuses ours.
        recorded = None if claim is None else stored.parse(claim)
        if route is None or claim is None or recorded is None:
            return
        let = recorded.pods
        pod = jobs.startable(
            self._pods_of(run.stored.name),
            let,
            starts=stored.attempts(route),
            again=route.on_interrupt == "retry",
        )
        if pod is None:
            return
        uid = pod["metadata"]["uid"]
        if uid not in let:
            await self._patch(
                run,
                annotations={names.PODS_ANNOTATION: ",".join((*let, uid))},
                version=claim["metadata"]["resourceVersion"],
            )
        path = f"{self._pods_path}/{pod['metadata']['name']}"
        body = {"metadata": {"uid": uid}, "spec": {"schedulingGates": None}}
        await self._call("PATCH", path, body, content_type=MERGE_PATCH)

    def _pod_logs(self, run: _Run) -> PodLogs:
        run_id = run.stored.run_id

        def report(number: int, kind: str, body: dict[str, Any]) -> None:
            # What Port took before this process began is in the log again.
            if number > run.stored.reported:
                self.reports.add(run_id, number, kind, body)
                self.outbox.wake(run_id)

        return PodLogs(
            self._api,
            self._pods_path,
            lambda: self._pods_of(run.stored.name),
            report,
            lambda: self.reports.note(run_id, "log lines: the Pod's log could not be read"),
            self._log_threads,
            self._log,
        )

    async def _ended(self, run: _Run) -> dict[str, Any] | None:
        """The terminal report of a run whose Job has ended or can never start; None while it goes on."""
        name = run.stored.name
        pods = self._pods_of(name)
        if (found := jobs.result(pods)) is not None:
            return found
        job = self._jobs.get(name)
        if job is None:
            try:
                # The mirror may be behind.
                job = await self._call("GET", f"{self._jobs_path}/{name}")
            except ApiServerError as error:
                if error.status != 404:
                    raise
                return jobs.result(pods) or _failed(run, jobs.failure(None, pods))
        now = self._clock()
        if jobs.has_ended(job, now):
            selector = {"labelSelector": f"{_JOB_NAME_LABEL}={name}"}
            pods = (await self._call("GET", self._pods_path, query=selector)).get("items") or []
            return jobs.result(pods) or _failed(run, jobs.failure(job, pods))
        reason = jobs.stuck(job, pods, now, self._config.runs.start_seconds)
        if reason is None:
            return None
        await self._delete_job(name)
        return _failed(run, reason)

    # The API server

    def _pods_of(self, name: str) -> list[Manifest]:
        """Pods of a run, the oldest first."""
        found = [pod for pod in self._pods.all() if _job_of(pod) == name]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    async def _close(self, run_id: str) -> None:
        run = self._runs.get(names.run_name(run_id))
        if run is None:
            return
        try:
            # In this order: nobody looks for the Job of a run that is done.
            await self._delete_job(run.stored.name)
            await self._patch(run, state=stored.DONE)
        except ApiServerError as error:
            raise LedgerError(f"not cleaned up: {error}") from error
        self._closed.add(run.stored.name)
        self._runs.pop(run.stored.name, None)
        self.reports.forget(run_id)

    async def _persist(
        self,
        run: _Run,
        state: str,
        annotations: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        """Writes progress into the run's Secret, again and again."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                await self._patch(run, state=state, annotations=annotations, labels=labels)
            except ApiServerError as error:
                self._log("progress not stored yet", run=run.stored.run_id, error=str(error))
                await asyncio.sleep(pause)
                pause = min(_MAX_PAUSE_SECONDS, pause * 2)
            else:
                return

    async def _patch(
        self,
        run: _Run,
        *,
        state: str | None = None,
        annotations: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        version: str | None = None,
    ) -> None:
        metadata: dict[str, Any] = {"uid": run.stored.uid}
        if version is not None:
            metadata["resourceVersion"] = version
        if state is not None:
            metadata["labels"] = {names.STATE_LABEL: state, **(labels or {})}
        if annotations:
            metadata["annotations"] = annotations
        path = f"{self._secrets_path}/{run.stored.name}"
        try:
            await self._call("PATCH", path, {"metadata": metadata}, content_type=MERGE_PATCH)
        except ApiServerError as error:
            # Somebody deleted the claim; the run is still brought to its end, but nothing is started without a record.
            gone = error.status in (404, 422) or "Precondition failed" in str(error)
            if not gone or version is not None:
                raise
            self._log("claim of the run is gone", run=run.stored.run_id, error=str(error))
        if state is not None:
            run.stored = dataclasses.replace(run.stored, state=state)

    async def _delete_job(self, name: str) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        try:
            await self._call("DELETE", f"{self._jobs_path}/{name}", options)
        except ApiServerError as error:
            if error.status != 404:
                raise

    async def _clean(self) -> None:
        """Removes claims that nobody needs any more, and gives up runs that Port never took."""
        now = self._clock()
        for run in list(self._runs.values()):
            if now - run.stored.created_at > self._config.runs.retention_days * 86_400:
                self._log("run never reported", run=run.stored.run_id)
                await self._close(run.stored.run_id)
        # Nothing of the rest is needed but its age.
        for selector in (f"{names.STATE_LABEL}={stored.DONE}", f"{names.MODE_LABEL}!=async"):
            query = {"labelSelector": f"{_SELECTOR},{names.MODE_LABEL},{selector}", "limit": "500"}
            while True:
                page = await self._call("GET", self._secrets_path, query=query, accept=_METADATA_LIST)
                for item in page.get("items") or ():
                    metadata = item["metadata"]
                    if (
                        now - stored.epoch(metadata["creationTimestamp"])
                        > self._config.runs.retention_seconds
                    ):
                        with contextlib.suppress(ApiServerError):
                            await self._call("DELETE", f"{self._secrets_path}/{metadata['name']}")
                following = page["metadata"].get("continue")
                if not following:
                    break
                query["continue"] = following

    async def _call(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        call = functools.partial(self._api.request, method, path, body, **options)
        return await self._loop.run_in_executor(self._threads, call)


def _failed(run: _Run, summary: str) -> dict[str, Any]:
    run.dead = True
    return {"status": "FAILURE", "summary": summary}


def _job_of(pod: Manifest) -> str:
    return str((pod["metadata"].get("labels") or {}).get(_JOB_NAME_LABEL, ""))


def _without_body(secret: Manifest) -> None:
    (secret.get("data") or {}).pop(names.BODY_FILE, None)


async def _run(root: Path, bundle: Path, log: Log) -> int:
    try:
        config = configuration.load(root / "config")
        manifest, digest = manifests.load(bundle)

        def changed(content: StoredSecrets) -> None:
            log.redact = Redactor([content.api.client_secret] if content.api is not None else [])

        def unreadable(error: SecretFileError) -> None:
            log("secrets not readable, the former ones stay in force", error=str(error))

        secrets = LiveSecrets(MountedSecrets(root / "secrets" / names.SECRETS_FILE), changed, unreadable)
        if secrets.content.api is None:
            raise StartError("secrets store: holds no API credentials, so that no run could be reported")
        api = ApiServer.in_cluster()
    except (StartError, ConfigError, manifests.ManifestError, SecretFileError, ApiServerError) as error:
        log("not started", error=str(error))
        return 1
    identity = os.environ.get("PORT_WEBHOOK_POD") or socket.gethostname()
    metrics = Metrics()
    dispatcher = Dispatcher(config, dict(manifest.routes), api, secrets, identity, log, metrics)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    async def live() -> tuple[int, str]:
        return 200, "ok\n"

    async def ready() -> tuple[int, str]:
        return (200, "ok\n") if dispatcher.ready else (503, "no lease\n")

    async def text() -> tuple[int, str]:
        return 200, dispatcher.gauges()

    port = int(os.environ.get("PORT_WEBHOOK_METRICS_PORT", names.METRICS_PORT))
    private = await private_http.serve({"/live": live, "/ready": ready, "/metrics": text}, port)
    serving = asyncio.ensure_future(dispatcher.serve())
    log("dispatching", digest=digest, pid=os.getpid())
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait([stopping, serving], return_when=asyncio.FIRST_COMPLETED)
    log("stopping")
    failed = serving.done()
    if failed and (cause := serving.exception()) is not None:
        log.error("dispatcher failed", cause)
    stopping.cancel()
    serving.cancel()
    await asyncio.wait([serving])
    await dispatcher.close()
    private.close()
    log("ended", pid=os.getpid())
    return int(failed)


def main() -> None:
    """Runs the dispatcher. Argument: folder of the bundle."""
    code = asyncio.run(_run(names.root(), Path(sys.argv[1]), Log()))
    # Threads that follow logs end with the process.
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
