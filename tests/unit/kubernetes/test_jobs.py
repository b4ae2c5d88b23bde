"""What a Job's state says about its run."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_handlers.runtime.execution import Outcome
from port_webhook_handlers.runtime.kubernetes import jobs, names, runs
from port_webhook_handlers.runtime.kubernetes.job import MAX_MESSAGE_BYTES, message

CREATED = "2027-01-01T00:00:00Z"
NOW = runs.epoch(CREATED)


def job(*conditions: tuple[str, str], changed: str = CREATED) -> dict[str, Any]:
    return {
        "metadata": {"name": "run-1", "creationTimestamp": CREATED},
        "status": {
            "conditions": [
                {"type": kind, "status": "True", "reason": reason, "lastTransitionTime": changed}
                for kind, reason in conditions
            ]
        },
    }


def pod(state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    containers = [] if state is None else [{"name": names.CONTAINER, "state": state}]
    return {
        "metadata": {"name": "run-1-x", "creationTimestamp": CREATED},
        "status": {"containerStatuses": containers, **status},
    }


def ended(code: int, reason: str = "Error", text: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": text}}


def test_a_result_is_what_the_termination_message_says() -> None:
    text = json.dumps({"status": "SUCCESS", "summary": "s", "link": "l", "other": 1})
    assert jobs.result([pod(ended(75)), pod(ended(0, "Completed", text))]) == {
        "status": "SUCCESS",
        "summary": "s",
        "link": "l",
    }


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"status":"IN_PROGRESS"}', "{" * 4096])
def test_anything_else_is_no_result(text: str) -> None:
    assert jobs.result([pod(ended(0, "Completed", text))]) is None


@pytest.mark.parametrize(
    ("found", "pods", "part"),
    [
        (None, [], "Job was deleted"),
        (job(("Failed", "BackoffLimitExceeded")), [pod(ended(137, "OOMKilled"))], "memory limit"),
        (job(("Failed", "BackoffLimitExceeded")), [pod(ended(3))], "ended with code 3"),
        (job(("Failed", "DeadlineExceeded")), [], "time limit"),
        (job(("Failed", "DeadlineExceeded")), [pod(ended(143))], "time limit"),
        (
            job(("Failed", "PodFailurePolicy")),
            [pod(reason="Evicted", message="low on memory")],
            "low on memory",
        ),
        (
            job(("Failed", "PodFailurePolicy")),
            [
                pod(
                    conditions=[
                        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
                    ]
                )
            ],
            "PreemptionByScheduler",
        ),
        (job(("Failed", "Strange")), [], "Strange"),
    ],
)
def test_a_failure_says_why(found: dict[str, Any] | None, pods: list[dict[str, Any]], part: str) -> None:
    assert part in jobs.failure(found, pods)


def test_a_job_has_ended_with_its_pods_or_after_a_while() -> None:
    assert not jobs.has_ended(job(), NOW)
    assert jobs.has_ended(job(("Complete", "")), NOW)
    assert jobs.has_ended(job(("Failed", "")), NOW)
    assert not jobs.has_ended(job(("FailureTarget", "")), NOW + 299)
    assert jobs.has_ended(job(("FailureTarget", "")), NOW + 301)


@pytest.mark.parametrize(
    ("pods", "age", "part"),
    [
        ([], 299, None),
        ([], 301, "see the events"),
        ([pod({"running": {}})], 10_000, None),
        ([pod({"waiting": {"reason": "ContainerCreating"}})], 299, None),
        ([pod({"waiting": {"reason": "ContainerCreating"}})], 301, "its Pod does not start"),
        ([pod({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})], 59, None),
        ([pod({"waiting": {"reason": "ErrImagePull", "message": "no such image"}})], 61, "no such image"),
        (
            [pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}])],
            301,
            "0/3 nodes",
        ),
        (
            [pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}])],
            301,
            "was not let start",
        ),
    ],
)
def test_a_job_that_cannot_start_is_found(pods: list[dict[str, Any]], age: float, part: str | None) -> None:
    reason = jobs.stuck(job(), pods, NOW + age, 300)
    assert reason is None if part is None else part in (reason or "")


@given(
    summary=st.text(max_size=9000),
    link=st.none() | st.text(max_size=5000),
    status=st.sampled_from(["SUCCESS", "FAILURE"]),
)
def test_the_termination_message_always_fits_and_keeps_the_status(
    summary: str, link: str | None, status: str
) -> None:
    text = message(Outcome(status, summary=summary, link=link))
    assert len(text) <= MAX_MESSAGE_BYTES
    assert jobs.result([pod(ended(0, "Completed", text.decode()))])["status"] == status  # type: ignore[index]


@given(st.text(min_size=1))
def test_names_are_valid_and_tell_apart(name: str) -> None:
    label = names.label(name)
    assert 0 < len(label) <= 40
    assert label.strip("-") == label
    assert all(c.isascii() and (c.isalnum() or c == "-") and c == c.lower() for c in label)
    assert names.label(name + "x") != label
    assert len(names.run_name(name)) == 44


def test_a_run_survives_its_secret() -> None:
    secret = runs.secret("ns", "r_1", "deploy", "async", body_hash=b"h", payload=b"{}", failure=None)
    secret["metadata"] |= {"uid": "u", "creationTimestamp": CREATED}
    found = runs.parse(secret)
    assert found is not None
    assert (found.run_id, found.route, found.state, found.outcome) == ("r_1", "deploy", "", None)
    assert runs.parse({"metadata": {}, "data": {}}) is None
    assert runs.parse({**secret, "data": {names.RUN_FILE: "bm8="}}) is None


def waiting(uid: str, phase: str = "Pending", gated: bool = True) -> dict[str, Any]:
    gates = [{"name": names.START_GATE}] if gated else []
    return {
        "metadata": {"uid": uid, "name": uid},
        "spec": {"schedulingGates": gates},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(
    ("pods", "let", "starts", "again", "expected"),
    [
        # One of two that the Job controller made.
        ([waiting("a"), waiting("b")], [], 1, False, "a"),
        # Recorded, but the dispatcher ended before it took the gate away.
        ([waiting("a"), waiting("b")], ["b"], 1, False, "b"),
        # The recorded one runs, or has run: no second start.
        ([waiting("a", "Running", False), waiting("b")], ["a"], 3, True, None),
        ([waiting("a", "Failed", False), waiting("b")], ["a"], 1, False, None),
        ([waiting("a", "Failed", False), waiting("b")], ["a"], 2, False, "b"),
        # Nobody knows what the first one did.
        ([waiting("b")], ["a"], 2, False, None),
        ([waiting("b")], ["a"], 2, True, "b"),
        ([waiting("b")], ["a"], 1, True, None),
        ([], [], 1, False, None),
        ([waiting("a", "Running", False)], [], 1, False, None),
    ],
)
def test_one_pod_starts_at_a_time_and_no_oftener_than_allowed(
    pods: list[dict[str, Any]], let: list[str], starts: int, again: bool, expected: str | None
) -> None:
    found = jobs.startable(pods, let, starts=starts, again=again)
    assert (found and found["metadata"]["uid"]) == expected
