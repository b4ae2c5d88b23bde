"""Two hundred runs while the API server and the dispatcher fail: none is lost, none is started twice.

Real: API server, etcd, controllers, listener, dispatcher, local Port, and one Job in twenty. The other Jobs' Pods are
played by the stand-in for kubelets, which counts how often each is started.
"""

from __future__ import annotations

import collections
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.fixtures_localport import eventually
from tests.kubernetes.deployed import WAIT, Stack

from port_webhook_handlers.runtime.kubernetes import names

pytestmark = [pytest.mark.kubernetes, pytest.mark.slow]

RUNS = 200
ENDED = ("SUCCESS", "FAILURE")


def behaviour(pod: dict[str, Any]) -> str:
    job = pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name")
    if job is None:
        return "run"
    number = int(job[-4:], 16)
    return "run" if number % 20 == 0 else "died" if number % 20 == 1 else "done"


def test_no_run_is_lost_and_none_is_started_twice(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    seconds: list[float] = []
    answers: collections.Counter[int] = collections.Counter()
    runs: list[str] = []

    def one(_: int) -> None:
        run_id = stack.port.execute("work")
        runs.append(run_id)
        for replica in (1, 0):
            # Whichever request is the first, the others are repeats.
            began = time.monotonic()
            answers[stack.send("work", run_id, replica).status_code] += 1
            seconds.append(time.monotonic() - began)

    stack.kubelet.behaviour = behaviour
    began = time.monotonic()
    try:
        with ThreadPoolExecutor(4) as threads:
            started = [threads.submit(one, number) for number in range(RUNS)]
            eventually(lambda: len(runs) >= RUNS // 4, WAIT)
            stack.plane.kill("kube-apiserver")
            time.sleep(2)
            stack.plane.start_api_server()
            eventually(lambda: len(runs) >= RUNS // 2, WAIT)
            stack.kubelet.kill(stack.pod("dispatcher"))
            eventually(lambda: len(runs) >= 3 * RUNS // 4, WAIT)
            # Gone for good: the next one has another name and must wait for the Lease.
            eventually(lambda: stack.pods("dispatcher"), WAIT, "the dispatcher does not come back")
            dispatcher = stack.pod("dispatcher")
            stack.kubelet.kill(dispatcher)
            path = f"/api/v1/namespaces/{dispatcher.namespace}/pods/{dispatcher.name}"
            stack.plane.request("DELETE", path, {"gracePeriodSeconds": 0})
            for future in started:
                future.result()
        accepted = time.monotonic() - began
        open_runs = set(runs)

        def all_ended() -> bool:
            open_runs.difference_update(r for r in list(open_runs) if stack.port.run(r)["status"] in ENDED)
            return not open_runs

        eventually(all_ended, 3 * WAIT, f"not ended: {len(open_runs)}")
    finally:
        stack.kubelet.behaviour = lambda pod: "run"
    ended = time.monotonic() - began
    starts = [stack.kubelet.starts.get(names.run_name(run_id), 0) for run_id in runs]
    outcomes = collections.Counter(stack.port.run(run_id)["status"] for run_id in runs)
    for run_id, count in zip(runs, starts, strict=True):
        if count == 0:
            print(run_id, names.run_name(run_id), stack.port.run(run_id).get("summary"))
    assert len(runs) == RUNS
    assert max(starts) == 1
    assert set(outcomes) <= set(ENDED)
    # What was accepted was executed, whatever became of it.
    stored = {secret["metadata"]["name"] for secret in stack.secrets()}
    assert {names.run_name(r) for r, count in zip(runs, starts, strict=True) if count == 0}.isdisjoint(stored)
    eventually(lambda: not stack.jobs(), WAIT, "Jobs stay")
    figures = {
        "runs": RUNS,
        "requests": sum(answers.values()),
        "answers": dict(answers),
        "outcomes": dict(outcomes),
        "started": sum(starts),
        "started twice": sum(count > 1 for count in starts),
        "without a terminal status": RUNS - sum(outcomes[status] for status in ENDED),
        "median ms to answer": round(1000 * statistics.median(seconds), 1),
        "all accepted after s": round(accepted, 1),
        "all ended after s": round(ended, 1),
    }
    with capsys.disabled():
        print(f"\nkubernetes: {json.dumps(figures)}")
