"""Which Pod of a run the dispatcher lets start, and what it records before."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from port_webhook_handlers.runtime.kubernetes import names, runs
from port_webhook_handlers.runtime.kubernetes.api import ApiServerError
from port_webhook_handlers.runtime.kubernetes.config import ClusterConfig
from port_webhook_handlers.runtime.kubernetes.dispatcher import Dispatcher, _Run
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_handlers.runtime.metrics import Metrics

NAME = names.run_name("r_1")
CONFIG = ClusterConfig(port_base_url="https://api.getport.io", namespace="hooks", runs_namespace="hooks-runs")
ROUTE = Route(name="deploy", kind="action", action="deploy", handler="m:f", max_attempts=3)


class Api:
    """Writes down what is changed; refuses changes of Secrets with an error, if there is one."""

    def __init__(self, error: ApiServerError | None) -> None:
        self.error = error
        self.changes: list[tuple[str, dict[str, Any]]] = []

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> dict[str, Any]:
        kind = path.split("/")[-2]
        if kind == "secrets" and self.error is not None:
            raise self.error
        self.changes.append((kind, body))
        return {}


def claim(**annotations: str) -> dict[str, Any]:
    found = runs.secret("hooks-runs", "r_1", "deploy", "async", body_hash=b"h", payload=b"{}")
    found["metadata"] |= {
        "uid": "s",
        "creationTimestamp": "2027-01-01T00:00:00Z",
        "resourceVersion": "7",
        "annotations": annotations,
    }
    return found


def pod(uid: str, phase: str, *, gated: bool) -> dict[str, Any]:
    return {
        "metadata": {
            "name": uid,
            "uid": uid,
            "creationTimestamp": "2027-01-01T00:00:01Z",
            "labels": {"batch.kubernetes.io/job-name": NAME},
        },
        "spec": {"schedulingGates": [{"name": names.START_GATE}] if gated else []},
        "status": {"phase": phase},
    }


def let_start(
    seen: dict[str, Any] | None, pods: list[dict[str, Any]], error: ApiServerError | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """What is changed for a run that was adopted before anything was recorded."""
    api: Any = Api(error)

    async def main() -> None:
        secrets: Any = None
        dispatcher = Dispatcher(CONFIG, {"deploy": ROUTE}, api, secrets, "d", Log(), Metrics())
        adopted = runs.parse(claim())
        assert adopted is not None
        if seen is not None:
            dispatcher._stored._objects[NAME] = seen
        dispatcher._pods._objects.update((item["metadata"]["name"], item) for item in pods)
        try:
            await dispatcher._let_start(_Run(adopted))
        finally:
            await dispatcher.outbox.close()

    asyncio.run(main())
    changes: list[tuple[str, dict[str, Any]]] = api.changes
    return changes


def test_a_pod_is_recorded_before_it_is_let_start() -> None:
    (first, record), (second, change) = let_start(claim(), [pod("a", "Pending", gated=True)])
    assert (first, second) == ("secrets", "pods")
    assert record["metadata"] == {
        "uid": "s",
        "resourceVersion": "7",
        "annotations": {names.PODS_ANNOTATION: "a"},
    }
    assert change == {"metadata": {"uid": "a"}, "spec": {"schedulingGates": None}}


def test_what_another_dispatcher_recorded_meanwhile_counts() -> None:
    pods = [pod("a", "Running", gated=False), pod("b", "Pending", gated=True)]
    assert let_start(claim(**{names.PODS_ANNOTATION: "a"}), pods) == []


@pytest.mark.parametrize("status", [404, 409, 422])
def test_nothing_starts_that_could_not_be_recorded(status: int) -> None:
    error = ApiServerError(status, "", "Precondition failed: UID in precondition")
    with pytest.raises(ApiServerError):
        let_start(claim(), [pod("a", "Pending", gated=True)], error)
    assert let_start(None, [pod("a", "Pending", gated=True)]) == []
