"""What handlers ask of a target: put one version of one service live, scale, restart and look at it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from port_webhook_handlers.sdk import SettingError

Report = Callable[[str], None]


class DeploymentError(Exception):
    """The version did not go live; what ran before still runs. The message is for the run's page."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """A version that is live.

    Attributes:
        url: where it answers; None where the target does not know.
        version: what was asked for.
        revision: unique name of this deployment of the service.
        replaced: revision that ran before; None if there was none.
        replaced_version: what that was a deployment of; None if it has an entity for certain.
    """

    url: str | None
    version: str
    revision: str
    replaced: str | None = None
    replaced_version: str | None = None


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What runs of a service.

    Attributes:
        version: that is live.
        revision: name of its deployment.
        replicas: copies that should run; None where the target decides that itself.
        healthy: copies that answer; None as with `replicas`.
        url: where it answers; None where the target does not know.
    """

    version: str
    revision: str
    replicas: int | None
    healthy: int | None
    url: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """How one service is started, from the handler's settings.

    In `command`, `artefact` and the values of `environment` these words in braces are replaced:
    `{python}`, `{artefact}` (folder of the unpacked artefact), `{port}`, `{version}`.

    Attributes:
        command: program and arguments; no shell is involved.
        artefact: path of a file, folder, ZIP archive or wheel; only `{version}` is replaced in it.
        health: path that answers 2xx once the service works; None: it only has to stay alive.
        environment: variables beside PORT and VERSION.
        start_seconds: until it must be healthy.
    """

    command: tuple[str, ...]
    artefact: str
    health: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    start_seconds: float = 30

    @classmethod
    def of(cls, settings: Mapping[str, Any], service: str) -> ServiceSpec:
        """The spec of a service.

        Raises:
            SettingError: the service or a key is missing, unknown or of a wrong type; names the key.
        """
        services = settings.get("services")
        if not isinstance(services, Mapping) or not isinstance(services.get(service), Mapping):
            known = ", ".join(map(str, services)) if isinstance(services, Mapping) and services else "none"
            raise SettingError(
                f"services.{service}: the settings of this handler do not say how to start it "
                f"(known: {known}); add command and artefact there"
            )
        values = services[service]
        where = f"services.{service}"
        known_keys = {"command", "artefact", "health", "environment", "start_seconds", "target"}
        if unknown := set(values) - known_keys:
            raise SettingError(f"{where}.{min(unknown)}: unknown key; remove it")
        command, environment = values.get("command"), values.get("environment", {})
        artefact, health, seconds = (
            values.get("artefact"),
            values.get("health"),
            values.get("start_seconds", 30),
        )
        if not isinstance(command, list) or not command or not _texts(command):
            raise SettingError(f"{where}.command: must be a list of texts: the program and its arguments")
        if not isinstance(artefact, str) or not artefact:
            raise SettingError(f"{where}.artefact: must be the path of a file, folder, ZIP archive or wheel")
        if health is not None and not (isinstance(health, str) and health.startswith("/")):
            raise SettingError(f"{where}.health: must be a path that starts with /")
        if not isinstance(environment, Mapping) or not _texts(environment.values()):
            raise SettingError(f"{where}.environment: must map names to texts")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or seconds <= 0:
            raise SettingError(f"{where}.start_seconds: must be a number above zero")
        return cls(tuple(command), artefact, health, dict(environment), seconds)


class Deployer(Protocol):
    """A target that services are deployed to.

    Every method raises `DeploymentError` if what was asked for did not happen, and `SettingError` if the settings of
    the service cannot be used. Reports take one line for each step.
    """

    def deploy(self, service: str, version: str, *, report: Report, timeout_seconds: float) -> Deployment:
        """Puts a version live, in place of the one before.

        Args:
            service: identifier of the service entity.
            version: what to deploy.
            report: takes one line for each step.
            timeout_seconds: until it gives up and leaves the version before as it is.
        """

    def scale(self, service: str, replicas: int, *, report: Report, timeout_seconds: float) -> ServiceState:
        """Runs this many copies of the version that is live."""

    def restart(self, service: str, *, report: Report, timeout_seconds: float) -> ServiceState:
        """Replaces every copy by a new one of the same version."""

    def state(self, service: str) -> ServiceState | None:
        """What runs; None if the service was never deployed."""


def plain(version: str) -> str:
    """A version as a part of entities' identifiers, which hold fewer characters."""
    return re.sub(r"[^A-Za-z0-9.-]", "_", version)[:60]


def new_revision(version: str) -> str:
    """A name that no other deployment has, where the target gives none itself."""
    return f"{plain(version)}-{secrets.token_hex(4)}"


def _texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
