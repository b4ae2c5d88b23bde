"""A run's Job: its manifest from the route's template, and what its state says about the run. Pure."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from port_webhook_handlers.runtime.execution import STATUSES
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.kubernetes.runs import StoredRun, epoch

Manifest = Mapping[str, Any]

_ENDING_SECONDS: Final = 300.0

CANNOT_START: Final = frozenset(
    {
        "CreateContainerConfigError",
        "CreateContainerError",
        "ErrImageNeverPull",
        "ErrImagePull",
        "ImageInspectError",
        "ImagePullBackOff",
        "InvalidImageName",
        "RunContainerError",
    }
)
"""Reasons for which a container waits that seldom end by themselves."""


def job(template: Manifest, run: StoredRun) -> dict[str, Any]:
    """The Job of a run: named like its Secret, which owns it, so that there can be only one."""
    body: dict[str, Any] = copy.deepcopy(dict(template))
    metadata = body["metadata"]
    metadata["name"] = run.name
    # Not blocking: the garbage collector, not the dispatcher, follows the owner.
    metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Secret", "name": run.name, "uid": run.uid}]
    for volume in body["spec"]["template"]["spec"]["volumes"]:
        if volume["name"] == "run":
            volume["secret"]["secretName"] = run.name
    return body


def container_state(pod: Manifest) -> dict[str, Any]:
    """State of the run's container: `{"waiting": …}`, `{"running": …}`, `{"terminated": …}` or empty."""
    for status in pod.get("status", {}).get("containerStatuses") or ():
        if status["name"] == names.CONTAINER:
            return dict(status.get("state") or {})
    return {}


def result(pods: Sequence[Manifest]) -> dict[str, Any] | None:
    """The terminal report that a Pod left, if one did."""
    for pod in pods:
        message = container_state(pod).get("terminated", {}).get("message")
        try:
            body = json.loads(message) if message else None
        except ValueError:
            continue
        if isinstance(body, dict) and body.get("status") in STATUSES:
            return {key: body[key] for key in ("status", "summary", "link") if body.get(key)}
    return None


def has_ended(job: Manifest, now: float) -> bool:
    """Whether the Job has ended, Pods included.

    A Pod on a lost node is never seen to end: a failed Job does not wait for it longer than five minutes.
    """
    if condition(job, "Complete", "Failed") is not None:
        return True
    failing = condition(job, "FailureTarget")
    return failing is not None and now - epoch(failing["lastTransitionTime"]) > _ENDING_SECONDS


def condition(job: Manifest, *types: str) -> Manifest | None:
    """The first condition of one of the types that is true."""
    for item in job.get("status", {}).get("conditions") or ():
        if item.get("type") in types and item.get("status") == "True":
            return dict(item)
    return None


def failure(job: Manifest | None, pods: Sequence[Manifest]) -> str:
    """Why a Job ended without a result, for people."""
    if job is None:
        return "The run was interrupted, outcome unknown: its Job was deleted before it gave a result."
    reason = (condition(job, "Failed", "FailureTarget") or {}).get("reason")
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True):
        status = pod.get("status", {})
        if status.get("reason") == "Evicted":
            return f"The run was interrupted, outcome unknown: its Pod was evicted ({status.get('message', '')})."
        for item in status.get("conditions") or ():
            if item.get("type") == "DisruptionTarget" and item.get("status") == "True":
                return (
                    "The run was interrupted, outcome unknown: its Pod was disrupted "
                    f"({item.get('reason', 'no reason given')})."
                )
        ended = container_state(pod).get("terminated")
        if not ended:
            continue
        if ended.get("reason") == "OOMKilled":
            return (
                "The run was ended because it used more memory than its limit; what it did is unknown. "
                "Raise the memory limit of its privilege group."
            )
        if reason != "DeadlineExceeded":
            return (
                f"The run ended with code {ended.get('exitCode')} ({ended.get('reason', 'no reason given')}) "
                "before it gave a result; what it did is unknown."
            )
    if reason == "DeadlineExceeded":
        return "The run was ended at its time limit; what it did is unknown."
    return f"The run's Job failed without a result ({reason or 'no reason given'}); what it did is unknown."


def is_gated(pod: Manifest) -> bool:
    """Whether a Pod still waits for the dispatcher."""
    gates = pod["spec"].get("schedulingGates") or ()
    return any(gate["name"] == names.START_GATE for gate in gates)


def startable(pods: Sequence[Manifest], let: Sequence[str], *, starts: int, again: bool) -> Manifest | None:
    """The Pod that may start now.

    The Job controller may make two Pods where one was wanted (an answer of the API server was lost, its view is
    old), so a Pod waits behind a gate until it is recorded as the one.

    Args:
        pods: the run's Pods, the oldest first.
        let: uids of those that were recorded before, in order.
        starts: how often the run may be started.
        again: whether it may be started once more though nobody knows what became of an earlier start.
    """
    known = {pod["metadata"]["uid"]: pod for pod in pods}
    for uid in let:
        if uid in known and is_gated(known[uid]):
            # It was recorded, but not yet let go.
            return known[uid]
    for uid in let:
        if uid not in known:
            if not again:
                return None
        elif known[uid].get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            return None
    if len(let) >= starts:
        return None
    return next((pod for pod in pods if is_gated(pod) and not pod["metadata"].get("deletionTimestamp")), None)


def stuck(job: Manifest, pods: Sequence[Manifest], now: float, seconds: float) -> str | None:
    """Why a Job that has not started for so long cannot, for people; None if it has, or may yet.

    Args:
        job, pods: as the API server shows them.
        now: seconds since the epoch.
        seconds: how long a start may take. What seldom ends by itself (a wrong image) gets a fifth of that.
    """
    age = now - epoch(job["metadata"]["creationTimestamp"])
    for pod in pods:
        state = container_state(pod)
        if "running" in state or "terminated" in state:
            return None
        waiting = state.get("waiting") or {}
        if waiting.get("reason") in CANNOT_START and age > seconds / 5:
            return f"The run could not be started: {waiting['reason']}: {waiting.get('message', '')}"[:2000]
        for item in pod.get("status", {}).get("conditions") or ():
            if item.get("type") == "PodScheduled" and item.get("status") == "False" and age > seconds:
                if item.get("reason") == "SchedulingGated":
                    return (
                        "The run could not be started: its Pod was not let start, because its action is not deployed "
                        "any more or the API server refused it; see the dispatcher's log."
                    )
                return f"The run could not be started: no node takes its Pod: {item.get('message', '')}"[
                    :2000
                ]
    if age > seconds:
        quota = "see the events of the Job" if not pods else "its Pod does not start"
        return f"The run could not be started within {seconds:g} s: {quota}."
    return None
