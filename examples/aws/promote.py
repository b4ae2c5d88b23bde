"""Makes a version of a service the live one, in a parameter that its own deployment reads.

The permissions are all that the handler has: the worker's role gets exactly these statements.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated

from port_webhook_handlers.sdk import Failure, Field, Inputs, Result, Run, Success, action

PARAMETER = "/port-webhook/live-versions"


class Promotion(Inputs):
    """What the form asks."""

    version: Annotated[str, Field(title="Version", pattern=r"\d+\.\d+\.\d+", max_length=64)]


@action(
    "deploy_microservice",
    title="Deploy a version",
    icon="Deployment",
    blueprint="service",
    operation="DAY-2",
    timeout_seconds=60,
    max_concurrency=2,
    privilege_group="release",
    aws_permissions=[
        {
            "actions": ["ssm:GetParameter", "ssm:PutParameter"],
            "resources": ["arn:{partition}:ssm:{region}:{account}:parameter" + PARAMETER],
        }
    ],
)
def deploy_microservice(inputs: Promotion, run: Run) -> Result:
    """Writes `inputs.version` and reports the deployment."""
    # Lambda's runtime brings boto3.
    import boto3

    service = run.entity.identifier
    parameters = boto3.client("ssm")
    try:
        live = json.loads(parameters.get_parameter(Name=PARAMETER)["Parameter"]["Value"])
    except parameters.exceptions.ParameterNotFound:
        live = {}
    if live.get(service) == inputs.version:
        return Failure(f"{service} {inputs.version} is live already")
    live[service] = inputs.version
    parameters.put_parameter(
        Name=PARAMETER, Value=json.dumps(live, sort_keys=True), Type="String", Overwrite=True
    )
    run.log(f"{service} {inputs.version} is what its next start uses")
    run.upsert_entity(
        "deployment",
        f"{service}-{inputs.version}",
        title=f"{service} {inputs.version}",
        properties={
            "version": inputs.version,
            "status": "Running",
            "deployedAt": datetime.now(UTC),
            "run": run.id,
        },
        relations={"service": run.entity},
    )
    return Success(summary=f"{service} {inputs.version} is live")
