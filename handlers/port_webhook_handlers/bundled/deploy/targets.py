"""Which target the services of a stack are deployed to."""

from __future__ import annotations

from pathlib import Path

from port_webhook_handlers.bundled.deploy.deployer import Deployer
from port_webhook_handlers.sdk import Run, SettingError

# Kept back from a handler's time, so that it can still clean up and report.
_RESERVE_SECONDS = 15


def target_of(run: Run) -> str:
    """Name of the target, from the setting `target`.

    Raises:
        SettingError: there is no such target.
    """
    target = run.settings.get("target", "local")
    if target != "local":
        raise SettingError(f"target: {target!r} is not known; use local")
    return str(target)


def deployer_of(run: Run) -> Deployer:
    """The deployer for the target that the settings of a handler name.

    Raises:
        SettingError: they cannot be used.
    """
    target_of(run)
    from port_webhook_handlers.bundled.deploy.local import LocalDeployer

    state = run.settings.get("state_dir")
    if not isinstance(state, str) or not Path(state).is_absolute():
        raise SettingError("state_dir: the listener gives no folder for the state; start it with one")
    # The state of a stack is <project>/.state/<stack>.
    project = run.settings.get("project_dir", str(Path(state).parent.parent))
    return LocalDeployer(Path(state) / "deployments", Path(project), run.settings)


def seconds_for(run: Run) -> float:
    """Seconds that a deployer may take."""
    return max(1.0, run.seconds_left - _RESERVE_SECONDS)
