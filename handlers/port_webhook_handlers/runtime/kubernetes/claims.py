"""Claims in a cluster: creating a run's Secret is the acceptance, and a repeat is a conflict.

The listener may only create, so it cannot read what an earlier request with the same run id held. It remembers
the runs that it accepted itself; for those of another replica a repeat is answered as a repeat, and in no case is
anything started again.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import Executor
from typing import Any, Final

from port_webhook_handlers.runtime.claims import Answer, Claim, LedgerError
from port_webhook_handlers.runtime.kubernetes import runs
from port_webhook_handlers.runtime.kubernetes.api import ApiServer, ApiServerError
from port_webhook_handlers.runtime.ledger import Ledger

_REMEMBERED: Final = 10_000
_STORE_SECONDS: Final = 8.0
_FIRST_PAUSE_SECONDS: Final = 0.1

_ELSEWHERE: Final = Answer(
    409, {"error": "answered_elsewhere", "message": "Another replica has this run; it is not executed again."}
)


class ClusterClaims:
    """The receiver's view of the cluster.

    Args:
        api: as the listener's ServiceAccount.
        namespace: of the runs.
        local: ledger of this replica, for synchronous runs and probes.
        threads: where calls of the API server wait.
    """

    def __init__(self, api: ApiServer, namespace: str, local: Ledger, threads: Executor) -> None:
        self._api = api
        self._namespace = namespace
        self._path = f"/api/v1/namespaces/{namespace}/secrets"
        self._local = local
        self._threads = threads
        self._mine: OrderedDict[str, tuple[str, bytes, Answer | None]] = OrderedDict()

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
        """Takes the place of a run; stored by the API server when it returns."""
        manifest = runs.secret(
            self._namespace, run_id, route, mode, body_hash=body_hash, payload=payload, failure=failure
        )
        if not await self._create(manifest):
            return await self.lookup(run_id, route, body_hash) or _repeat(mode)
        self._mine[run_id] = (route, body_hash, refusal)
        if len(self._mine) > _REMEMBERED:
            self._mine.popitem(last=False)
        if mode == "async":
            return Claim(True, True, "queued", None, refusal, 0)
        return await self._local.claim(run_id, route, mode, body_hash, payload)

    async def lookup(self, run_id: str, route: str, body_hash: bytes) -> Claim | None:
        """The claim that a request would meet, if this replica has it."""
        known = self._mine.get(run_id)
        if known is None:
            return None
        found = await self._local.lookup(run_id, route, body_hash)
        if found is not None:
            return found
        return Claim(False, known[:2] == (route, body_hash), "queued", None, known[2], 0)

    async def _create(self, manifest: dict[str, Any]) -> bool:
        """Whether the Secret is new; while the API server does not answer it is tried again, for some seconds."""
        loop = asyncio.get_running_loop()
        until = time.monotonic() + _STORE_SECONDS
        pause = _FIRST_PAUSE_SECONDS
        unanswered = False
        while True:
            try:
                await loop.run_in_executor(self._threads, self._api.request, "POST", self._path, manifest)
            except ApiServerError as error:
                if error.status == 409 and error.reason == "AlreadyExists":
                    # After a request without answer it is most likely our own.
                    return unanswered
                # An API server that has just started knows no Roles yet.
                passing = error.passing or error.status == 403
                if not passing or time.monotonic() + pause > until:
                    raise LedgerError(f"nothing was stored: {error}") from error
                unanswered = unanswered or error.status == 0
                await asyncio.sleep(pause)
                pause *= 2
            else:
                return True


def _repeat(mode: str) -> Claim:
    answer = _ELSEWHERE if mode == "sync" else None
    return Claim(False, True, "done" if mode != "async" else "queued", None, answer, int(mode == "probe"))
