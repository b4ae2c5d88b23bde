"""Deploys a version of a service: the first complete flow, from the button in Port to a running process."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from port_webhook_handlers.bundled.deploy.deployer import Deployer, DeploymentError, ServiceSpec
from port_webhook_handlers.sdk import Failure, Field, Inputs, Result, Run, SettingError, Success, action

# Kept back from the handler's time, so that it can still clean up and report.
_RESERVE_SECONDS = 15


class DeployInputs(Inputs):
    """What the form asks."""

    version: Annotated[
        str,
        Field(
            title="Version",
            description="Semantic version, such as 1.4.2",
            pattern=r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?",
            max_length=64,
        ),
    ]


@action(
    "deploy_microservice",
    title="Deploy a version",
    description="Puts a version of the service live; the one before runs until the new one is healthy.",
    icon="Deployment",
    blueprint="service",
    operation="DAY-2",
    timeout_seconds=300,
)
def deploy_microservice(inputs: DeployInputs, run: Run) -> Result:
    """Deploys `inputs.version` of the service that the action was run on."""
    service = run.entity
    run.progress("Deploying")
    try:
        spec = ServiceSpec.of(run.settings, service.identifier)
        deployment = _deployer(run).deploy(
            service.identifier,
            inputs.version,
            spec,
            report=run.log,
            timeout_seconds=max(1.0, run.seconds_left - _RESERVE_SECONDS),
        )
    except (DeploymentError, SettingError) as error:
        return Failure(str(error))
    run.upsert_entity(
        "deployment",
        f"{service.identifier}-{deployment.revision}",
        title=f"{service.title or service.identifier} {deployment.version}",
        properties={
            "version": deployment.version,
            "status": "Running",
            "url": deployment.url,
            "deployedAt": datetime.now(UTC),
            "run": run.id,
        },
        relations={"service": service},
    )
    if deployment.replaced is not None:
        run.upsert_entity(
            "deployment", f"{service.identifier}-{deployment.replaced}", properties={"status": "Replaced"}
        )
    return Success(
        summary=f"{service.identifier} {deployment.version} runs at {deployment.url}", link=deployment.url
    )


def _deployer(run: Run) -> Deployer:
    from port_webhook_handlers.bundled.deploy.local import LocalDeployer

    state = run.settings.get("state_dir")
    if not isinstance(state, str) or not Path(state).is_absolute():
        raise SettingError("state_dir: the listener gives no folder for the state; start it with one")
    # The state of a stack is <project>/.state/<stack>.
    project = run.settings.get("project_dir", str(Path(state).parent.parent))
    return LocalDeployer(Path(state) / "deployments", Path(project))
