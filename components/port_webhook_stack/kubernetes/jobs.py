"""Templates of the Jobs in which runs are executed, and what belongs to them in the runs' namespace."""

from __future__ import annotations

import math
from typing import Any, Final

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.kubernetes.runs import attempts
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_stack.kubernetes import pods
from port_webhook_stack.kubernetes.plan import Manifest, Plan

COMPONENT: Final = "run"
RUN_PLACEHOLDER: Final = "run-0000000000000000000000000000000000000000"
"""Where the dispatcher puts the name of the run's Secret."""

_ENDING_SECONDS: Final = 60
_TTL_SECONDS: Final = 14 * 86_400
_FAILURE_COUNT: Final = "metadata.annotations['batch.kubernetes.io/job-index-failure-count']"


def service_account(group: str) -> str:
    """Name of the ServiceAccount of a privilege group's runs."""
    return f"run-{names.label(group)}"


def secret(plan: Plan, route: Route) -> str | None:
    """Name of the Secret that a handler's runs mount; None if it declares no secret."""
    if not route.secrets and not route.encrypted_inputs:
        return None
    return plan.settings.existing_secrets.get(route.name) or f"handler-{names.label(route.name)}"


def config_map(plan: Plan) -> Manifest:
    """The configuration that every run mounts."""
    return plan.config_map("runs", COMPONENT, plan.runs_namespace, plan.config())


def templates(plan: Plan) -> dict[str, Manifest]:
    """The Job of each asynchronous route."""
    config = config_map(plan)["metadata"]["name"]
    return {route.name: template(plan, route, config) for route in plan.job_routes()}


def template(plan: Plan, route: Route, config: str) -> Manifest:
    """The Job of a route, complete but for the run's name.

    Args:
        plan: the deployment.
        route: asynchronous.
        config: name of the ConfigMap with the configuration.
    """
    group = plan.settings.group(route.privilege_group)
    labels = {
        **plan.labels(COMPONENT),
        names.ROUTE_LABEL: names.label(route.name),
        names.GROUP_LABEL: names.label(route.privilege_group),
    }
    starts = attempts(route)
    handler_secret = secret(plan, route)
    mounts = ["run", "bundle", "config", "work", "tmp"]
    volumes = [
        pods.secret_volume("run", RUN_PLACEHOLDER),
        pods.bundle_volume(plan),
        pods.config_volume(config),
        pods.empty_volume("work", "1Gi"),
        pods.empty_volume("tmp", "256Mi"),
    ]
    if handler_secret is not None:
        mounts.append("secrets")
        volumes.append(pods.secret_volume("secrets", handler_secret))
    if route.encrypted_inputs:
        mounts.append("previous")
        volumes.append(pods.previous_volume())
    failures = {
        "name": "PORT_WEBHOOK_FAILED_ATTEMPTS",
        "valueFrom": {"fieldRef": {"fieldPath": _FAILURE_COUNT}},
    }
    main = pods.container(
        plan,
        names.CONTAINER,
        image=plan.image(route.privilege_group),
        resources=group.resources,
        mounts=mounts,
        role="job",
        environment=[failures] if starts > 1 else [],
    )
    spec = pods.pod(
        plan,
        main,
        service_account=service_account(route.privilege_group),
        volumes=volumes,
        token=plan.token(route.privilege_group),
        grace_seconds=10,
    )
    # A Pod that ends is either retried by the Job controller, which counts, or not at all: never in place.
    spec["restartPolicy"] = "Never"
    # The Job controller may make two Pods for one start; the dispatcher lets one of them go.
    spec["schedulingGates"] = [{"name": names.START_GATE}]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": RUN_PLACEHOLDER, "namespace": plan.runs_namespace, "labels": labels},
        "spec": {
            **_retries(route, starts),
            # The handler is ended by its own process in time; this is for a Pod that cannot start or end.
            "activeDeadlineSeconds": math.ceil(route.timeout_seconds * starts)
            + math.ceil(plan.settings.start_seconds)
            + _ENDING_SECONDS,
            # The dispatcher deletes a Job once Port has its outcome.
            "ttlSecondsAfterFinished": _TTL_SECONDS,
            # A second Pod must not overlap with what is left of the first.
            "podReplacementPolicy": "Failed",
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _retries(route: Route, starts: int) -> dict[str, Any]:
    disrupted = [{"type": "DisruptionTarget", "status": "True"}]
    if starts == 1:
        return {
            "backoffLimit": 0,
            "podFailurePolicy": {"rules": [{"action": "FailJob", "onPodConditions": disrupted}]},
        }
    rules: list[Manifest]
    if route.on_interrupt == "retry":
        rules = [{"action": "Count", "onPodConditions": disrupted}]
    else:
        # Only the handler itself may ask for another start.
        asked = {"operator": "NotIn", "values": [names.RETRY_EXIT_CODE]}
        rules = [
            {"action": "FailJob", "onPodConditions": disrupted},
            {"action": "FailJob", "onExitCodes": {"containerName": names.CONTAINER, **asked}},
        ]
    return {
        # Indexed, because only then a Pod is told how many failed before it.
        "completionMode": "Indexed",
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": starts - 1,
        "backoffLimitPerIndex": starts - 1,
        "podFailurePolicy": {"rules": rules},
    }


def quota(plan: Plan) -> Manifest:
    """How much may be stored and executed at once."""
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": plan.metadata("runs", COMPONENT, plan.runs_namespace),
        "spec": {
            "hard": {
                "count/secrets": _quantity(plan.settings.max_stored),
                # Ended Jobs stay until they are reported, so there are more than run at once.
                "count/jobs.batch": _quantity(plan.settings.max_jobs * 20),
                "count/pods": _quantity(plan.settings.max_jobs * 20),
            }
        },
    }


def _quantity(count: int) -> str:
    """A number as the API server writes it, so that nobody sees a difference in it."""
    for size, suffix in ((1_000_000, "M"), (1000, "k")):
        if count % size == 0:
            return f"{count // size}{suffix}"
    return str(count)
