"""Answers what runs where: the deployer's own state, not what the catalog remembers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

from port_webhook_handlers.bundled.deploy import permissions
from port_webhook_handlers.bundled.deploy.deployer import DeploymentError
from port_webhook_handlers.bundled.deploy.settings import services_of, target_of
from port_webhook_handlers.bundled.deploy.targets import deployer_of
from port_webhook_handlers.sdk import (
    Blueprint,
    Entity,
    Failure,
    Field,
    Inputs,
    Result,
    Run,
    SettingError,
    Success,
    action,
)

_AT_ONCE = 8


class RunningInputs(Inputs):
    """What the form asks."""

    service: Annotated[
        Entity | None, Blueprint("service"), Field(title="Service", description="Empty: all that are known")
    ] = None


@action(
    "what_runs_where",
    title="What runs where",
    description="Version, copies and address of services, as the target itself says.",
    icon="Search",
    operation="CREATE",
    mode="sync",
    timeout_seconds=20,
    # Not that of the handlers that change deployments: this one only reads.
    privilege_group="look",
    aws_permissions=permissions.in_aws("state"),
    kubernetes_permissions=permissions.in_cluster("state"),
)
def what_runs_where(inputs: RunningInputs, run: Run) -> Result:
    """Answers `{"target": …, "services": {identifier: state or null}}`; one that cannot be read has an `error`."""
    try:
        target, known = target_of(run.settings), services_of(run.settings)
        if inputs.service is None:
            wanted = known
        elif inputs.service.identifier in known:
            wanted = [inputs.service.identifier]
        else:
            return Failure(
                f"services.{inputs.service.identifier}: is not in the settings of this handler "
                f"(known: {', '.join(known) or 'none'}); add it there"
            )
    except SettingError as error:
        return Failure(str(error))
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        states = pool.map(lambda service: _state(run, service), wanted)
        services = dict(zip(wanted, states, strict=True))
    live = sum(1 for state in services.values() if state and "error" not in state)
    return Success(
        f"{live} of {len(services)} services run",
        response={"target": target, "services": services},
    )


def _state(run: Run, service: str) -> dict[str, Any] | None:
    try:
        state = deployer_of(run, service).state(service)
    except (DeploymentError, SettingError) as error:
        return {"error": str(error)}
    return None if state is None else state.to_json()
