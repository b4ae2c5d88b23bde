"""Who dispatches: one process at a time, by a Lease that its holder renews."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Any, Final

from port_webhook_handlers.runtime.kubernetes.api import ApiServer, ApiServerError
from port_webhook_handlers.runtime.logs import Log

_DURATION_SECONDS: Final = 15.0
_RENEW_SECONDS: Final = 4.0
# A holder stops this long before others may take over: for a request that is still on its way.
_MARGIN_SECONDS: Final = 5.0


class Lease:
    """A Lease of a namespace.

    Args:
        api: the API server.
        namespace, name: of the Lease; it is created if missing.
        identity: name of this process's Pod: after a restart in the same Pod the Lease is still its own.
        threads: where calls of the API server wait.
        log: its log.
    """

    def __init__(
        self, api: ApiServer, namespace: str, name: str, identity: str, threads: Executor, log: Log
    ) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._threads = threads
        self._log = log
        self._until = 0.0
        self._seen = ""
        self._seen_at = 0.0

    @property
    def held(self) -> bool:
        """Whether this process may act now."""
        return time.monotonic() < self._until

    async def hold(self, changed: Callable[[], None]) -> None:
        """Acquires and renews until cancelled.

        Args:
            changed: called after every attempt.
        """
        while True:
            before = self.held
            try:
                await self._attempt()
            except ApiServerError as error:
                # A conflict: another process was faster.
                if error.status != 409:
                    self._log("lease not renewed", error=str(error))
            if self.held != before:
                self._log("lease held" if self.held else "lease not held", name=self._name)
            changed()
            await asyncio.sleep(_RENEW_SECONDS if self.held else _RENEW_SECONDS / 4)

    async def release(self) -> None:
        """Lets the next process take over at once."""
        if not self.held:
            return
        self._until = 0.0
        try:
            lease = await self._call("GET", self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"]["holderIdentity"] = ""
                await self._call("PUT", self._name, lease)
        except ApiServerError as error:
            self._log("lease not released", error=str(error))

    async def _attempt(self) -> None:
        began = time.monotonic()
        try:
            lease = await self._call("GET", self._name)
        except ApiServerError as error:
            if error.status != 404:
                raise
            lease = await self._call("POST", "", self._manifest())
            self._until = began + _DURATION_SECONDS - _MARGIN_SECONDS
            return
        spec = lease.setdefault("spec", {})
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen:
            self._seen, self._seen_at = version, began
        holder = spec.get("holderIdentity")
        # Ages are measured by this process's clock: those of two nodes may differ.
        expired = began - self._seen_at >= _DURATION_SECONDS
        if holder and holder != self._identity and not expired:
            return
        if holder != self._identity:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = _now()
        spec.update(
            holderIdentity=self._identity, renewTime=_now(), leaseDurationSeconds=int(_DURATION_SECONDS)
        )
        await self._call("PUT", self._name, lease)
        self._until = began + _DURATION_SECONDS - _MARGIN_SECONDS

    def _manifest(self) -> dict[str, Any]:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": int(_DURATION_SECONDS),
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }

    async def _call(self, method: str, name: str, body: Any = None) -> dict[str, Any]:
        path = f"{self._collection}/{name}" if name else self._collection
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._api.request, method, path, body)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
