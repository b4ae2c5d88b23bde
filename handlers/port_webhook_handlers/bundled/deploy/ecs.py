"""Deploys services of Amazon ECS that exist already: a new revision of their task definition, then the service.

The new revision is a copy of the one that the service runs, or of the one that `task_definition` names, with the
image of one container replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.bundled.aws import refused
from port_webhook_handlers.bundled.deploy.aws_deployer import AwsDeployer, look
from port_webhook_handlers.bundled.deploy.deployer import Deployment, DeploymentError, Report, ServiceState
from port_webhook_handlers.bundled.deploy.rollout import ReplacedError, Watch
from port_webhook_handlers.bundled.deploy.settings import (
    ContainerPlace,
    image_of,
    service_options,
    version_in,
    with_version,
)

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_DEFINITION: Final = re.compile(r"[A-Za-z0-9_-]{1,255}(:\d+)?")

Description = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EcsService(ContainerPlace):
    """One service of ECS.

    Attributes:
        cluster, name: of the service in ECS.
        task_definition: family, or family and revision, that is copied; None: what the service runs.
        roles: ARNs of the roles that its tasks take, for permissions.
    """

    cluster: str
    name: str
    task_definition: str | None
    roles: tuple[str, ...]

    @classmethod
    def of(cls, settings: Mapping[str, Any], service: str) -> EcsService:
        """From the settings below `services`.

        Raises:
            SettingError: they cannot be used.
        """
        options = service_options(settings, service)
        definition = options.text("task_definition", "") or None
        found = cls(
            service=service,
            cluster=options.text("cluster"),
            name=options.text("service", service),
            container=options.text("container", "") or None,
            image=image_of(options),
            task_definition=definition,
            roles=options.texts("roles", ()),
            url=options.text("url", "") or None,
        )
        options.end()
        for key, value in (("cluster", found.cluster), ("service", found.name)):
            if not _NAME.fullmatch(value):
                raise options.error(key, "must be a name of ECS (no ARN): letters, digits, - and _")
        if definition is not None and not _DEFINITION.fullmatch(definition):
            raise options.error("task_definition", "must be a family, such as cart, or a revision, cart:12")
        return found

    @property
    def where(self) -> dict[str, str]:
        """How calls name it."""
        return {"cluster": self.cluster, "service": self.name}


class EcsDeployer(AwsDeployer):
    """Changes services; see `Deployer`."""

    def deploy(self, service: str, version: str, *, report: Report, timeout_seconds: float) -> Deployment:
        """See `Deployer.deploy`; a version that does not get steady is taken back."""
        target = EcsService.of(self._settings, service)
        image = with_version(target.image, version)
        with self._client("ecs") as client:
            before = _described(client, target)
            former = str(before["taskDefinition"])
            base, tags = _definition(client, target.task_definition or former)
            container = _container(base, target)
            running = _definition(client, former)[0]
            report(f"{target.cluster}/{target.name}: {container['image']} → {image}")
            made = _register(client, base, tags, container["name"], image)
            report(f"registered {_short(made)}")
            self._update(
                client,
                target,
                Watch(timeout_seconds, report),
                {"taskDefinition": made},
                {"taskDefinition": former},
                f"version {version}",
                _short(former),
            )
            return Deployment(
                url=target.address(version),
                version=version,
                revision=_revision(made),
                replaced=_revision(former),
                replaced_version=version_in(_container(running, target)["image"], target.image),
            )

    def scale(self, service: str, replicas: int, *, report: Report, timeout_seconds: float) -> ServiceState:
        """See `Deployer.scale`; if the tasks do not get steady there are as many as before."""
        target = EcsService.of(self._settings, service)
        with self._client("ecs") as client:
            now = int(_described(client, target)["desiredCount"])
            report(f"{target.cluster}/{target.name}: {now} → {replicas} copies")
            self._update(
                client,
                target,
                Watch(timeout_seconds, report),
                {"desiredCount": replicas},
                {"desiredCount": now},
                "scaling",
                f"{now} copies",
            )
            return _state(client, target)

    def restart(self, service: str, *, report: Report, timeout_seconds: float) -> ServiceState:
        """See `Deployer.restart`; ECS keeps the former tasks until new ones are healthy, so there is no way back."""
        target = EcsService.of(self._settings, service)
        with self._client("ecs") as client:
            report(f"{target.cluster}/{target.name}: a new deployment of the same tasks")
            self._update(
                client,
                target,
                Watch(timeout_seconds, report),
                {"forceNewDeployment": True},
                None,
                "the restart",
                "",
            )
            return _state(client, target)

    def state(self, service: str) -> ServiceState | None:
        """See `Deployer.state`."""
        target = EcsService.of(self._settings, service)
        with self._client("ecs") as client:
            return None if _find(client, target) is None else _state(client, target)

    def _update(
        self,
        client: Any,
        target: EcsService,
        watch: Watch,
        after: Mapping[str, Any],
        undo: Mapping[str, Any] | None,
        what: str,
        former: str,
    ) -> None:
        """Updates the service and waits until it is steady; goes back if that fails."""
        updated = client.update_service(**target.where, **after)["service"]
        wanted = str(updated["taskDefinition"])
        try:
            watch.until_done(_steady(client, target, wanted))
        except ReplacedError as error:
            raise DeploymentError(f"{what} of {target.service} failed: {error}") from error
        except DeploymentError as error:
            failed = f"{what} of {target.service} failed: {error}"
            if undo is None:
                raise DeploymentError(f"{failed}. The former tasks still run") from error
            try:
                back_to = str(client.update_service(**target.where, **undo)["service"]["taskDefinition"])
            except Exception as other:  # noqa: BLE001 - the message names both errors
                raise DeploymentError(
                    f"{failed}. Going back to {former} failed too ({refused(other)}); look at the service"
                ) from error
            back = watch.undone(_steady(client, target, back_to))
            raise DeploymentError(f"{failed}. {'Back' if back else 'On the way back'} to {former}") from error


def _find(client: Any, target: EcsService) -> Description | None:
    answer = client.describe_services(cluster=target.cluster, services=[target.name])
    for found in answer["services"]:
        if found["status"] == "ACTIVE":
            return dict(found)
    return None


def _described(client: Any, target: EcsService) -> Description:
    found = _find(client, target)
    if found is None:
        raise DeploymentError(
            f"service {target.cluster}/{target.name} of {target.service} does not exist in ECS; create it once, "
            "this action only changes its task definition"
        )
    controller = found.get("deploymentController", {}).get("type", "ECS")
    if controller != "ECS":
        raise DeploymentError(
            f"service {target.cluster}/{target.name} is deployed by {controller}; only rolling updates of ECS "
            "itself are supported"
        )
    return found


def _definition(client: Any, name: str) -> tuple[Description, list[dict[str, str]]]:
    answer = client.describe_task_definition(taskDefinition=name, include=["TAGS"])
    return answer["taskDefinition"], answer.get("tags") or []


def _container(definition: Description, target: EcsService) -> Description:
    return target.chosen(definition["containerDefinitions"], "the task definition")


def _register(client: Any, base: Description, tags: list[dict[str, str]], container: str, image: str) -> str:
    # A description holds more than a registration takes, such as the revision.
    known = client.meta.service_model.operation_model("RegisterTaskDefinition").input_shape.members
    body = {key: value for key, value in base.items() if key in known}
    body["containerDefinitions"] = [
        {**item, "image": image} if item["name"] == container else item
        for item in base["containerDefinitions"]
    ]
    if tags:
        body["tags"] = tags
    return str(client.register_task_definition(**body)["taskDefinition"]["taskDefinitionArn"])


def _steady(client: Any, target: EcsService, wanted: str) -> Callable[[], str | None]:
    """Says what a service lacks until it is steady with a task definition."""

    def missing() -> str | None:
        found = look(lambda: _find(client, target))
        if found is None:
            return "AWS does not answer"
        running, desired = int(found["runningCount"]), int(found["desiredCount"])
        last = (found.get("events") or [{}])[0].get("message", "")
        if found["taskDefinition"] != wanted:
            if any(item.get("rolloutState") == "FAILED" for item in found["deployments"]):
                raise ReplacedError(
                    f"ECS itself went back to {_short(found['taskDefinition'])}{f': {last}' if last else ''}"
                )
            raise ReplacedError("somebody else has changed the service meanwhile, so nothing was taken back")
        ours = [item for item in found["deployments"] if item.get("taskDefinition") == wanted]
        primary: Description = next((item for item in ours if item["status"] == "PRIMARY"), {})
        state = primary.get("rolloutState")
        if state == "FAILED":
            reason = primary.get("rolloutStateReason") or "ECS gave up"
            raise DeploymentError(f"{reason}{f' ({last})' if last else ''}")
        # Without a rollout state, what the waiter `services_stable` takes for steady.
        settled = len(found["deployments"]) == 1 and not found.get("pendingCount")
        if running == desired and (state == "COMPLETED" or (state is None and settled)):
            return None
        failed = sum(int(item.get("failedTasks") or 0) for item in ours)
        return (
            f"{running} of {desired} tasks run"
            f"{f', {failed} have failed' if failed else ''}{f' ({last})' if failed and last else ''}"
        )

    return missing


def _state(client: Any, target: EcsService) -> ServiceState:
    found = _described(client, target)
    definition = _definition(client, str(found["taskDefinition"]))[0]
    version = version_in(str(_container(definition, target)["image"]), target.image)
    return ServiceState(
        version=version,
        revision=_revision(str(found["taskDefinition"])),
        replicas=int(found["desiredCount"]),
        healthy=int(found["runningCount"]),
        url=target.address(version),
    )


def _short(arn: str) -> str:
    """`family:revision` of a task definition's ARN."""
    return arn.rpartition("/")[2]


def _revision(arn: str) -> str:
    """The same as part of an entity's identifier, without a colon."""
    return _short(arn).replace(":", "-")
