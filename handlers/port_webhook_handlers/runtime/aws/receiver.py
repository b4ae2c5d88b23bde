"""The function that receives: verified, validated, then answered or put on a queue. No handler's module is imported.

An asynchronous run is accepted by one SendMessage; its claim in the ledger is the worker's, so that the path to the
202 has one call to AWS. A repeat of a delivery is therefore accepted once more, and dropped by the worker.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from collections.abc import Coroutine, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.aws.deployment import Archive, Deployment
from port_webhook_handlers.runtime.aws.events import EventError, answer_of, request_of
from port_webhook_handlers.runtime.aws.ledger import DynamoLedger
from port_webhook_handlers.runtime.aws.messages import (
    ReportMessage,
    RunMessage,
    final_message,
    send_reports,
    send_run,
)
from port_webhook_handlers.runtime.aws.secrets import CachedSecrets
from port_webhook_handlers.runtime.claims import Answer, Claim, LedgerError
from port_webhook_handlers.runtime.config import Limits
from port_webhook_handlers.runtime.confirmation import BlockingConfirmation, is_needed
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Manifest
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.receiver import PREFIX, Invocation, Receiver, RefusedError
from port_webhook_handlers.runtime.secret_file import SecretFileError
from port_webhook_handlers.runtime.sources import Sources

T = TypeVar("T")

_LEASE_MARGIN_SECONDS: Final = 30.0
_NO_SECRETS: Final = RefusedError(
    503, "no_secrets", "The signing secrets cannot be read; see the listener's log."
)


class QueueClaims:
    """Claims for the receiver: asynchronous runs by a message, synchronous ones and probes in the table."""

    def __init__(self, api: AwsApi, deployment: Deployment, manifest: Manifest, ledger: DynamoLedger) -> None:
        self._api = api
        self._deployment = deployment
        self._manifest = manifest
        self._ledger = ledger

    async def claim(
        self,
        run_id: str,
        route: str,
        mode: str,
        body_hash: bytes,
        payload: bytes,
        *,
        refusal: Answer | None = None,
        failure: dict[str, Any] | None = None,
    ) -> Claim:
        """As `Claims.claim`; a repeat of an asynchronous run counts as new, the worker tells them apart."""
        if mode != "async":
            seconds = self._deployment.sync_deadline_seconds + _LEASE_MARGIN_SECONDS
            return self._ledger.claim(run_id, route, mode, body_hash.hex(), os.urandom(12).hex(), seconds)
        try:
            if failure is not None:
                end = final_message(run_id, failure)
                message = ReportMessage(run_id, end.reports, (route, body_hash.hex()))
                send_reports(self._api, self._deployment.reports, message, "refused")
            else:
                found = self._manifest.routes[route]
                queue = self._deployment.queues.get(found.privilege_group)
                if queue is None:
                    raise LedgerError(
                        f"the function knows no queue of group {found.privilege_group}; deploy the stack again"
                    )
                run = RunMessage(run_id, route, body_hash.hex(), payload, time.time())
                try:
                    send_run(self._api, queue, run, serial=found.max_concurrency == 1)
                except AwsError:
                    return self._instead(run)
        except AwsError as error:
            raise LedgerError(f"the run was not put on its queue: {error}") from error
        return Claim(True, True, "queued" if failure is None else "reporting", None, refusal, 0)

    def _instead(self, run: RunMessage) -> Claim:
        """Ends a run that perhaps did not reach its queue; if it did, whoever claims it first decides."""
        summary = "The listener could not store the run; it was not started."
        end = final_message(run.run_id, {"status": "FAILURE", "summary": summary})
        message = ReportMessage(run.run_id, end.reports, (run.route, run.body_hash))
        send_reports(self._api, self._deployment.reports, message, "not stored")
        answer = Answer(503, {"error": "not_stored", "message": summary})
        return Claim(True, True, "reporting", None, answer, 0)

    async def lookup(self, run_id: str, route: str, body_hash: bytes) -> Claim | None:
        """The claim that a request would meet; None if the run id is unknown."""
        return self._ledger.lookup(run_id, route, body_hash.hex())


class LambdaExecutor:
    """Runs synchronous handlers: here, or in the function of their privilege group."""

    def __init__(
        self, archive: Archive, deployment: Deployment, api: AwsApi, ledger: DynamoLedger, log: Log
    ) -> None:
        self._archive = archive
        self._deployment = deployment
        self._api = api
        self._ledger = ledger
        self._log = log

    def accepted(self, run_id: str, route: str) -> None:
        """The message is on its queue already."""

    def refused(self, run_id: str) -> None:
        """The report is on its queue already."""

    async def fail_now(self, run_id: str, summary: str) -> None:
        """Neither queue took it, and reporting is not this function's: an alarm watches the line."""
        self._log("failure not reported", run=run_id)

    async def answer(self, invocation: Invocation, seconds: float) -> Answer:
        """Executes a synchronous run and stores its answer."""
        from port_webhook_handlers.runtime.execution import answer_of as answer_for

        outcome = (
            self._delegate(invocation, seconds)
            if self._archive.delegated(invocation.route.name)
            else self._run_here(invocation, seconds)
        )
        answer = answer_for(invocation.run_id, outcome)
        try:
            self._ledger.answer(invocation.run_id, answer, 2 * self._deployment.tolerance_seconds)
        except LedgerError as error:
            self._log("answer not stored", run=invocation.run_id, error=str(error))
        return answer

    def _run_here(self, invocation: Invocation, seconds: float) -> Any:
        from port_webhook_handlers.runtime.aws.runs import Runs

        runs = Runs(self._archive, self._deployment, self._api, None, self._log)
        return runs.run(invocation.run_id, invocation.route, invocation.body, 1, seconds)

    def _delegate(self, invocation: Invocation, seconds: float) -> Any:
        from port_webhook_handlers.runtime.execution import Outcome

        function = self._deployment.functions[invocation.route.privilege_group]
        event = {
            "run_id": invocation.run_id,
            "route": invocation.route.name,
            "body": b64encode(invocation.raw).decode(),
            "seconds": seconds,
        }
        try:
            found = json.loads(self._api.invoke(function, json.dumps(event).encode(), seconds + 2))
            return Outcome(**found)
        except AwsError as error:
            self._log("function not invoked", run=invocation.run_id, error=str(error))
            if error.ambiguous:
                return Outcome("FAILURE", "The handler's function ended without a result.", interrupted=True)
            return Outcome("FAILURE", "The handler's function could not be invoked.", error_type="AwsError")


class ReceiverFunction:
    """Answers HTTP events."""

    def __init__(self, archive: Archive, deployment: Deployment, api: AwsApi, log: Log) -> None:
        self._archive = archive
        self._log = log
        self.secrets = CachedSecrets(
            api,
            deployment.secrets,
            ("signing", "api"),
            deployment.secrets_seconds,
            log,
            deployment.overlap_seconds,
        )
        ledger = DynamoLedger(api, deployment.table, deployment.retention_days)
        self._sources = Sources.of(deployment.source_addresses, deployment.trusted_proxy_hops)
        self._limits = Limits(
            sync_deadline_seconds=deployment.sync_deadline_seconds,
            tolerance_seconds=deployment.tolerance_seconds,
        )
        self._receiver = Receiver(
            archive.manifest,
            archive.digest,
            "lambda",
            self.secrets,
            QueueClaims(api, deployment, archive.manifest, ledger),
            LambdaExecutor(archive, deployment, api, ledger, log),
            self._limits,
            log,
            Metrics(),
            eager=False,
            confirm=BlockingConfirmation(self.secrets, deployment.port_base_url)
            if is_needed(archive.manifest.routes.values())
            else None,
        )

    def __call__(self, event: Mapping[str, Any], context: object) -> dict[str, Any]:
        """The answer to an event, in format 2.0."""
        try:
            request = request_of(event)
        except EventError as error:
            self._log("refused", reason="bad_event", status=400)
            return answer_of(RefusedError(400, "bad_event", str(error)).response)
        sources = self._sources
        if sources is not None and not sources.takes(request.path, request.source, request.headers):
            return answer_of(self._receiver.from_elsewhere(request.path))
        if len(request.body) > self._limits.max_body_bytes:
            return answer_of(self._receiver.too_large(request.path))
        if request.path != "/health":
            try:
                # A probe of health must not depend on it; everything else ends here without a secret.
                self.secrets.signing(time.time())
            except (AwsError, SecretFileError) as error:
                self._log("secrets not read", error=str(error))
                return answer_of(_NO_SECRETS.response)
        handling = self._receiver.handle(request.method, request.path, request.headers, request.body)
        route = self._archive.manifest.routes.get(unquote(request.path.removeprefix(PREFIX)))
        if route is not None and route.mode == "sync":
            import asyncio

            return answer_of(asyncio.run(handling))
        return answer_of(_complete(handling))


def _complete(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits, without the event loop that a cold start would pay for."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    work.close()
    raise RuntimeError("the receiver waited for something outside of an event loop")


def create() -> ReceiverFunction:
    """The function, built while Lambda initialises the environment.

    Raises:
        DeploymentError: the environment does not fit this code.
        ManifestError: code was loaded that is not what was deployed.
    """
    deployment, archive, log = Deployment.load(), Archive.running(), Log()
    archive.check_loaded()
    if deployment.digest and deployment.digest != archive.digest:
        log("digest differs", deployed=deployment.digest, loaded=archive.digest)
    function = ReceiverFunction(archive, deployment, AwsApi.from_environment(), log)
    log("ready", digest=archive.digest)
    return function
