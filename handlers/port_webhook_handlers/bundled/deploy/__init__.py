"""Deploys a version of a service: to a process of this machine, a cluster, ECS or Lambda, as the settings say."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from port_webhook_handlers.bundled.catalog import Catalog
from port_webhook_handlers.bundled.deploy import permissions
from port_webhook_handlers.bundled.deploy.deployer import DeploymentError
from port_webhook_handlers.bundled.deploy.targets import deployer_of, seconds_for
from port_webhook_handlers.sdk import Failure, Field, Inputs, Result, Run, SettingError, Success, action

PRIVILEGE_GROUP = "deploy"
"""Of every handler that changes deployments."""


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
    privilege_group=PRIVILEGE_GROUP,
    aws_permissions=permissions.in_aws("deploy"),
    kubernetes_permissions=permissions.in_cluster("deploy"),
)
def deploy_microservice(inputs: DeployInputs, run: Run) -> Result:
    """Deploys `inputs.version` of the service that the action was run on."""
    service = run.entity
    run.progress("Deploying")
    try:
        catalog = Catalog.of(run.settings)
        deployment = deployer_of(run, service.identifier).deploy(
            service.identifier, inputs.version, report=run.log, timeout_seconds=seconds_for(run)
        )
    except (DeploymentError, SettingError) as error:
        return Failure(str(error))
    catalog.deployment.upsert(
        run,
        f"{service.identifier}-{deployment.revision}",
        title=f"{service.title or service.identifier} {deployment.version}",
        properties={
            "version": deployment.version,
            "status": "Running",
            "url": deployment.url,
            "deployedAt": datetime.now(UTC),
            "run": run.id,
        },
        relations={"service": service, **catalog.in_environment},
    )
    if deployment.replaced is not None:
        known = deployment.replaced_version
        catalog.deployment.upsert(
            run,
            f"{service.identifier}-{deployment.replaced}",
            # What somebody else has deployed has no entity yet, so it gets a whole one.
            properties={"status": "Replaced", **({"version": known} if known else {})},
            relations={"service": service, **catalog.in_environment} if known else None,
        )
    where = f" at {deployment.url}" if deployment.url else ""
    return Success(summary=f"{service.identifier} {deployment.version} runs{where}", link=deployment.url)
