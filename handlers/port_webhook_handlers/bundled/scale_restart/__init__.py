"""Scales and restarts services, within bounds that the stack's settings give.

Both may run twice: asked for again, a number of copies is the same number, and a restart is a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from port_webhook_handlers.bundled.catalog import Catalog
from port_webhook_handlers.bundled.deploy import PRIVILEGE_GROUP, permissions
from port_webhook_handlers.bundled.deploy.deployer import DeploymentError, ServiceState
from port_webhook_handlers.bundled.deploy.targets import deployer_of, seconds_for
from port_webhook_handlers.bundled.options import Options
from port_webhook_handlers.sdk import Failure, Field, Inputs, Result, Run, SettingError, Success, action

_LOWEST, _HIGHEST = 1, 3


class ScaleInputs(Inputs):
    """What the form asks."""

    replicas: Annotated[int, Field(title="Copies", description="How many shall run", minimum=0, maximum=1000)]


@action(
    "scale_service",
    title="Scale a service",
    description="Runs more or fewer copies of the version that is live.",
    icon="Expand",
    blueprint="service",
    operation="DAY-2",
    privilege_group=PRIVILEGE_GROUP,
    aws_permissions=permissions.in_aws("scale"),
    kubernetes_permissions=permissions.in_cluster("scale"),
    on_interrupt="retry",
)
def scale_service(inputs: ScaleInputs, run: Run) -> Result:
    """Runs `inputs.replicas` copies of the service that the action was run on."""
    service = run.entity.identifier
    try:
        Catalog.of(run.settings)
        lowest, highest = _bounds(run, service)
        if not lowest <= inputs.replicas <= highest:
            return Failure(
                f"inputs.replicas: {service} may have {lowest} to {highest} copies; "
                f"ask for one of these, or change bounds.{service} in the settings of this handler"
            )
        run.progress("Scaling")
        state = deployer_of(run, service).scale(
            service, inputs.replicas, report=run.log, timeout_seconds=seconds_for(run)
        )
    except (DeploymentError, SettingError) as error:
        return Failure(str(error))
    return _result(run, state)


@action(
    "restart_service",
    title="Restart a service",
    description="Replaces every copy by a new one of the same version.",
    icon="Refresh",
    blueprint="service",
    operation="DAY-2",
    privilege_group=PRIVILEGE_GROUP,
    aws_permissions=permissions.in_aws("restart"),
    kubernetes_permissions=permissions.in_cluster("restart"),
    on_interrupt="retry",
)
def restart_service(run: Run) -> Result:
    """Restarts the service that the action was run on."""
    run.progress("Restarting")
    try:
        Catalog.of(run.settings)
        state = deployer_of(run, run.entity.identifier).restart(
            run.entity.identifier, report=run.log, timeout_seconds=seconds_for(run)
        )
    except (DeploymentError, SettingError) as error:
        return Failure(str(error))
    return _result(run, state)


def _bounds(run: Run, service: str) -> tuple[int, int]:
    bounds = run.settings.get("bounds", {})
    if not isinstance(bounds, Mapping):
        raise SettingError("bounds: must map services, or *, to minimum and maximum")
    name = service if service in bounds else "*"
    options = Options(bounds.get(name, {}), f"bounds.{name}")
    lowest = options.whole("minimum", _LOWEST, lowest=0, highest=1000)
    highest = options.whole("maximum", max(_HIGHEST, lowest), lowest=lowest, highest=1000)
    options.end()
    return lowest, highest


def _result(run: Run, state: ServiceState) -> Result:
    service = run.entity
    catalog = Catalog.of(run.settings)
    # A restart may have moved it.
    catalog.deployment.upsert(
        run,
        f"{service.identifier}-{state.revision}",
        properties={
            "version": state.version,
            "status": "Running",
            **({"url": state.url} if state.url else {}),
        },
        relations={"service": service, **catalog.in_environment},
    )
    copies = "1 copy" if state.replicas == 1 else f"{state.replicas} copies"
    return Success(f"{service.identifier} runs {copies} of {state.version}", link=state.url)
