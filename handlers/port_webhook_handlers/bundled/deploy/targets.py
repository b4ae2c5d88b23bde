"""Which target a service is deployed to."""

from __future__ import annotations

from port_webhook_handlers.bundled.deploy.deployer import Deployer
from port_webhook_handlers.bundled.deploy.settings import target_of
from port_webhook_handlers.bundled.options import folders
from port_webhook_handlers.sdk import Run

# Kept back from a handler's time, so that it can still clean up and report.
_RESERVE_SECONDS = 15


def deployer_of(run: Run, service: str) -> Deployer:
    """The deployer of the target that the settings of a handler name for a service.

    Raises:
        SettingError: they cannot be used.
    """
    target = target_of(run.settings, service)
    if target == "kubernetes":
        from port_webhook_handlers.bundled.deploy.kubernetes import KubernetesDeployer

        return KubernetesDeployer(run.settings)
    if target == "ecs":
        from port_webhook_handlers.bundled.deploy.ecs import EcsDeployer

        return EcsDeployer(run.settings)
    if target == "lambda":
        from port_webhook_handlers.bundled.deploy.functions import LambdaDeployer

        return LambdaDeployer(run.settings)
    from port_webhook_handlers.bundled.deploy.local import LocalDeployer

    state, project = folders(run.settings)
    return LocalDeployer(state / "deployments", project, run.settings)


def seconds_for(run: Run) -> float:
    """Seconds that a deployer may take."""
    return max(1.0, run.seconds_left - _RESERVE_SECONDS)
