"""What the handlers of deployments may do: exactly what their target needs, on exactly the services of the settings.

`access` names of a deployer's methods what a handler calls: `deploy`, `scale`, `restart` or `state`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from port_webhook_handlers.bundled.deploy.ecs import EcsService
from port_webhook_handlers.bundled.deploy.functions import Function
from port_webhook_handlers.bundled.deploy.kubernetes import Workload
from port_webhook_handlers.bundled.deploy.settings import part_of, services_of, target_of

Settings = Mapping[str, Any]
Statement = dict[str, Any]

_REGISTRY: Final = ".dkr.ecr."


def in_aws(access: str) -> Callable[[Settings], list[Statement]]:
    """The function that `aws_permissions` of a handler with this access is."""

    def statements(settings: Settings) -> list[Statement]:
        found: list[Statement] = []
        for service in services_of(settings):
            target = target_of(settings, service)
            if target == "ecs":
                found += _ecs(EcsService.of(settings, service), access, _region(settings))
            elif target == "lambda":
                found += _lambda(Function.of(settings, service), access, _region(settings))
        # Services may share a role or a bucket.
        return [item for index, item in enumerate(found) if item not in found[:index]]

    return statements


def in_cluster(access: str) -> Callable[[Settings], list[Statement]]:
    """The function that `kubernetes_permissions` of a handler with this access is."""

    def rules(settings: Settings) -> list[Statement]:
        # With a server of their own the deployments are in another cluster.
        if part_of(settings, "cluster").text("server", ""):
            return []
        return [
            rule
            for service in services_of(settings)
            if target_of(settings, service) == "kubernetes"
            for rule in _rules(Workload.of(settings, service), access)
        ]

    return rules


def _rules(workload: Workload, access: str) -> list[Statement]:
    def rule(resource: str, verbs: list[str]) -> Statement:
        return {
            "namespace": workload.namespace,
            "group": "apps",
            "resources": [resource],
            "names": [workload.name],
            "verbs": verbs,
        }

    if access == "state":
        return [rule("deployments", ["get"])]
    if access == "scale":
        return [rule("deployments", ["get"]), rule("deployments/scale", ["patch"])]
    return [rule("deployments", ["get", "patch"])]


def _ecs(target: EcsService, access: str, region: str) -> list[Statement]:
    service = f"arn:{{partition}}:ecs:{region}:{{account}}:service/{target.cluster}/{target.name}"
    actions = ["ecs:DescribeServices", *(["ecs:UpdateService"] if access != "state" else [])]
    found = [{"actions": actions, "resources": [service]}]
    # Of task definitions AWS lets nobody be more exact; what a registered one can do, PassRole bounds.
    definitions = [
        "ecs:DescribeTaskDefinition",
        *(["ecs:RegisterTaskDefinition"] if access == "deploy" else []),
    ]
    found.append({"actions": definitions, "resources": ["*"]})
    if access == "deploy" and target.roles:
        found.append({"actions": ["iam:PassRole"], "resources": list(target.roles)})
    return found


def _lambda(target: Function, access: str, region: str) -> list[Statement]:
    function = f"arn:{{partition}}:lambda:{region}:{{account}}:function:{target.name}"
    if access in ("scale", "restart"):
        return []
    found = [
        {"actions": ["lambda:GetAlias"], "resources": [function]},
        # Lambda numbers the versions.
        {"actions": ["lambda:GetFunctionConfiguration"], "resources": [function, f"{function}:*"]},
    ]
    if access != "deploy":
        return found
    found[0]["actions"].append("lambda:UpdateAlias")
    if target.published:
        found[0]["actions"].append("lambda:ListVersionsByFunction")
    else:
        found[0]["actions"] += ["lambda:PublishVersion", "lambda:UpdateFunctionCode"]
    if target.check is not None:
        found.append({"actions": ["lambda:InvokeFunction"], "resources": [f"{function}:{target.alias}"]})
    if target.key is not None:
        key = target.key.replace("{version}", "*")
        found.append(
            {"actions": ["s3:GetObject"], "resources": [f"arn:{{partition}}:s3:::{target.bucket}/{key}"]}
        )
    if target.image is not None and _REGISTRY in target.image:
        host, _, name = target.image.partition("/")
        account, region = host.split(".")[0], host.partition(_REGISTRY)[2].split(".")[0]
        repository = name.partition("@")[0].rpartition(":")[0] or name
        found.append(
            {
                "actions": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
                "resources": [f"arn:{{partition}}:ecr:{region}:{account}:repository/{repository}"],
            }
        )
    return found


def _region(settings: Settings) -> str:
    return part_of(settings, "aws").text("region", "") or "{region}"
