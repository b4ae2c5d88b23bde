"""A Lambda function with a role, a policy and a log group of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pulumi
import pulumi_aws as aws

from port_webhook_handlers.runtime.aws.deployment import VARIABLE, Deployment
from port_webhook_stack.aws import policies
from port_webhook_stack.aws.naming import Naming
from port_webhook_stack.aws.plan import Plan
from port_webhook_stack.aws.settings import GroupSettings


@dataclass(frozen=True, slots=True)
class LambdaFunction:
    """A function and what belongs to it."""

    function: aws.lambda_.Function
    log_group: aws.cloudwatch.LogGroup


def make_function(
    naming: Naming,
    plan: Plan,
    part: str,
    *,
    entry: str,
    policy: Callable[..., policies.Policy],
    arns: Mapping[str, pulumi.Input[Any]],
    deployment: Mapping[str, pulumi.Input[Any]],
    seconds: int,
    memory: int,
    concurrency: int | None = None,
    network: GroupSettings | None = None,
    depends_on: Sequence[pulumi.Resource] = (),
) -> LambdaFunction:
    """Makes a function.

    Args:
        naming: names and tags.
        plan: the archive and limits.
        part: of its names.
        entry: name in the archive's entry point.
        policy: one of `policies`, called with `arns`, its log group and the customer key.
        arns: what the policy is about.
        deployment: fields of `Deployment` beside those that all functions have.
        seconds, memory, concurrency: limits; MiB; None: no limit of its own.
        network: subnets and security groups that it is attached to, if there are some.
        depends_on: what must be there before it runs.
    """
    settings = plan.settings
    group = aws.cloudwatch.LogGroup(
        naming.resource(f"{part}-logs"),
        name=f"/aws/lambda/{naming.aws(part)}",
        retention_in_days=settings.log_retention_days,
        kms_key_id=settings.kms_key,
        tags=naming.tags,
        opts=naming.opts(),
    )
    role = aws.iam.Role(
        naming.resource(f"{part}-role"),
        name=naming.aws(part),
        assume_role_policy=json.dumps(policies.trust("lambda.amazonaws.com")),
        tags=naming.tags,
        opts=naming.opts(),
    )
    document = pulumi.Output.all(log_group=group.arn, key=settings.kms_key, **arns).apply(
        lambda values: json.dumps(policy(**values), sort_keys=True)
    )
    attached = aws.iam.RolePolicy(
        naming.resource(f"{part}-policy"), name=part, role=role.name, policy=document, opts=naming.opts()
    )
    common = {"digest": plan.digest, "retention_days": settings.retention_days}
    variable = pulumi.Output.all(**common, **deployment).apply(lambda values: Deployment(**values).dumps())
    function = aws.lambda_.Function(
        naming.resource(part),
        name=naming.aws(part),
        runtime=f"python{settings.python}",
        handler=f"entry.{entry}",
        architectures=[settings.architecture],
        code=pulumi.FileArchive(str(plan.archive.path)),
        source_code_hash=plan.archive.source_code_hash,
        role=role.arn,
        timeout=seconds,
        memory_size=memory,
        reserved_concurrent_executions=concurrency,
        environment=aws.lambda_.FunctionEnvironmentArgs(variables={VARIABLE: variable}),
        kms_key_arn=settings.kms_key,
        logging_config=aws.lambda_.FunctionLoggingConfigArgs(log_format="Text", log_group=group.name),
        vpc_config=aws.lambda_.FunctionVpcConfigArgs(
            subnet_ids=list(network.subnets), security_group_ids=list(network.security_groups)
        )
        if network is not None and network.subnets
        else None,
        tracing_config=aws.lambda_.FunctionTracingConfigArgs(mode="PassThrough"),
        tags=naming.tags,
        opts=naming.opts([attached, *depends_on]),
    )
    return LambdaFunction(function, group)
