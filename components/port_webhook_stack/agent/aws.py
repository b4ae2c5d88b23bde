"""The execution agent of target aws: a Fargate service without any inbound rule."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import pulumi
import pulumi_aws as aws

from port_webhook_handlers.runtime.aws.agent import VARIABLE
from port_webhook_stack.aws import policies
from port_webhook_stack.aws.naming import Naming
from port_webhook_stack.aws.settings import Agent, AwsSettings

_PORTS: Final = {"https": 443, "kafka": 9196}
_STOP_SECONDS: Final = 60


class AwsAgent(pulumi.ComponentResource):
    """Port's execution agent: it connects outwards only, and is replaced when its secret or image changes."""

    service: aws.ecs.Service
    """The Fargate service."""

    def __init__(
        self,
        resource_name: str,
        settings: AwsSettings,
        agent: Agent,
        *,
        credentials: Mapping[str, pulumi.Input[str]],
        port_base_url: str,
        url: pulumi.Input[str] | None = None,
        receiver: aws.lambda_.Function | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the component.
            settings: of the target.
            agent: its own.
            credentials: `clientId` and `clientSecret` of the organisation.
            port_base_url: Port's API.
            url: base URL in the definitions; without `receiver`, an agent of ours may call its host.
            receiver: in pull mode, the function that an agent of ours hands invocations to.
            opts: options of the component.
        """
        super().__init__("port-webhook:aws:Agent", resource_name, {}, opts)
        self._naming = naming = Naming(resource_name, settings, self)
        self._settings = settings
        text: pulumi.Output[Any] = pulumi.Output.from_input(dict(credentials)).apply(_credentials)
        secret = aws.secretsmanager.Secret(
            naming.resource("secret"),
            name=naming.aws("agent"),
            description="Credentials of Port's execution agent",
            kms_key_id=settings.kms_key,
            recovery_window_in_days=settings.secret_recovery_days,
            tags=naming.tags,
            opts=naming.opts(),
        )
        version = aws.secretsmanager.SecretVersion(
            naming.resource("secret-value"),
            secret_id=secret.id,
            secret_string=pulumi.Output.secret(text),
            opts=naming.opts(),
        )
        logs = aws.cloudwatch.LogGroup(
            naming.resource("logs"),
            name=f"/aws/ecs/{naming.aws('agent')}",
            retention_in_days=settings.log_retention_days,
            kms_key_id=settings.kms_key,
            tags=naming.tags,
            opts=naming.opts(),
        )
        execution = self._role(
            "agent-start",
            pulumi.Output.all(log_group=logs.arn, secret=secret.arn, key=settings.kms_key).apply(
                lambda values: json.dumps(policies.agent_execution(**values), sort_keys=True)
            ),
        )
        task_role = self._role(
            "agent",
            receiver.arn.apply(lambda arn: json.dumps(policies.agent_task(receiver=arn), sort_keys=True))
            if receiver is not None
            else None,
        )
        cluster = aws.ecs.Cluster(
            naming.resource("cluster"),
            name=naming.aws("agent"),
            settings=[aws.ecs.ClusterSettingArgs(name="containerInsights", value="enabled")],
            tags=naming.tags,
            opts=naming.opts(),
        )
        environment = {
            "PORT_API_BASE_URL": port_base_url,
            "STREAMER_NAME": "POLLING",
            **({"AGENT_NAME": settings.name_prefix} if agent.kind == "own" else {}),
            **agent.environment,
        }
        containers = pulumi.Output.all(
            secret=secret.arn,
            version=version.version_id,
            logs=logs.name,
            receiver=receiver.name if receiver is not None else "",
            url=url if agent.kind == "own" and receiver is None else None,
        ).apply(
            lambda values: json.dumps(
                [_container(agent, settings.region, environment, **values)], sort_keys=True
            )
        )
        definition = aws.ecs.TaskDefinition(
            naming.resource("task"),
            family=naming.aws("agent"),
            cpu=str(agent.cpu),
            memory=str(agent.memory),
            network_mode="awsvpc",
            requires_compatibilities=["FARGATE"],
            execution_role_arn=execution.arn,
            task_role_arn=task_role.arn,
            container_definitions=containers,
            tags=naming.tags,
            opts=naming.opts(),
        )
        self.service = aws.ecs.Service(
            naming.resource("service"),
            name=naming.aws("agent"),
            cluster=cluster.arn,
            task_definition=definition.arn,
            launch_type="FARGATE",
            desired_count=1,
            # Two agents at once would compete for the same invocations, so the old one goes first.
            deployment_minimum_healthy_percent=0,
            deployment_maximum_percent=100,
            deployment_circuit_breaker=aws.ecs.ServiceDeploymentCircuitBreakerArgs(
                enable=True, rollback=True
            ),
            network_configuration=aws.ecs.ServiceNetworkConfigurationArgs(
                subnets=list(agent.subnets),
                security_groups=[self._security_group(agent).id],
                assign_public_ip=agent.assign_public_ip,
            ),
            enable_execute_command=False,
            propagate_tags="SERVICE",
            wait_for_steady_state=True,
            tags=naming.tags,
            opts=naming.opts(),
        )
        self.register_outputs({})

    def _security_group(self, agent: Agent) -> aws.ec2.SecurityGroup:
        return aws.ec2.SecurityGroup(
            self._naming.resource("network"),
            name=self._naming.aws("agent"),
            description="Port's execution agent: outwards only",
            vpc_id=agent.vpc,
            ingress=[],
            egress=[
                aws.ec2.SecurityGroupEgressArgs(
                    description=f"Port and webhooks ({name})",
                    protocol="tcp",
                    from_port=port,
                    to_port=port,
                    cidr_blocks=["0.0.0.0/0"],
                )
                for name, port in _PORTS.items()
            ],
            tags=self._naming.tags,
            opts=self._naming.opts(),
        )

    def _role(self, part: str, policy: pulumi.Output[str] | None) -> aws.iam.Role:
        role = aws.iam.Role(
            self._naming.resource(f"{part}-role"),
            name=self._naming.aws(part),
            assume_role_policy=json.dumps(policies.trust("ecs-tasks.amazonaws.com")),
            tags=self._naming.tags,
            opts=self._naming.opts(),
        )
        if policy is not None:
            aws.iam.RolePolicy(
                self._naming.resource(f"{part}-policy"),
                name=part,
                role=role.name,
                policy=policy,
                opts=self._naming.opts(),
            )
        return role


def _credentials(found: Mapping[str, Any]) -> str:
    content = {"PORT_CLIENT_ID": found["clientId"], "PORT_CLIENT_SECRET": found["clientSecret"]}
    return json.dumps(content, sort_keys=True)


def _container(
    agent: Agent,
    region: str,
    environment: Mapping[str, str],
    *,
    secret: str,
    version: str,
    logs: str,
    receiver: str,
    url: str | None,
) -> dict[str, Any]:
    variables = {
        **({"AGENT_ALLOWED_HOSTS": urlsplit(url).netloc} if url else {}),
        **({VARIABLE: receiver, "AWS_REGION": region} if receiver else {}),
        **environment,
    }
    module = f"port_webhook_handlers.{'runtime.aws.agent' if receiver else 'agent'}"
    return {
        "name": "agent",
        "image": agent.image,
        "essential": True,
        **({"entryPoint": ["python", "-m", module]} if agent.kind == "own" else {}),
        "readonlyRootFilesystem": agent.kind == "own",
        "environment": [{"name": name, "value": variables[name]} for name in sorted(variables)],
        # The version is part of the reference: another secret is another definition, so tasks are replaced.
        "secrets": [
            {"name": name, "valueFrom": f"{secret}:{name}::{version}"}
            for name in ("PORT_CLIENT_ID", "PORT_CLIENT_SECRET")
        ],
        "healthCheck": {
            "command": list(agent.health_command),
            "interval": 30,
            "timeout": 5,
            "retries": 3,
            "startPeriod": 30,
        },
        "stopTimeout": _STOP_SECONDS,
        "logConfiguration": {
            "logDriver": "awslogs",
            "options": {"awslogs-group": logs, "awslogs-region": region, "awslogs-stream-prefix": "agent"},
        },
    }
