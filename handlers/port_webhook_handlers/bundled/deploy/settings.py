"""Where the services of a stack run: the settings that every target's deployer starts from.

target: kubernetes
services:
  cart: {namespace: shop, deployment: cart, image: "registry.example.com/cart:{version}"}
  mail: {target: lambda, function: mail, s3_bucket: builds, s3_key: "mail-{version}.zip"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.bundled.deploy.deployer import DeploymentError
from port_webhook_handlers.bundled.options import Options, entry
from port_webhook_handlers.sdk import SettingError

TARGETS: Final = ("local", "kubernetes", "ecs", "lambda")

_REMEDY: Final = "add it there, with what its target needs to know"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a service runs; each target adds what it has to know.

    Attributes:
        service: identifier of the service entity.
        url: template of the service's address; None if it has none.
    """

    service: str
    url: str | None

    def address(self, version: str) -> str | None:
        """Where a version answers."""
        return None if self.url is None else with_version(self.url, version)


@dataclass(frozen=True, slots=True)
class ContainerPlace(Place):
    """Where a service runs in containers, one of which holds its image.

    Attributes:
        container: whose image is set; None: the only one.
        image: template of the image.
    """

    container: str | None
    image: str

    def chosen(self, containers: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
        """The container whose image is set, as the target describes it.

        Args:
            containers: descriptions with a `name`.
            where: what holds them, for errors.

        Raises:
            DeploymentError: there is no such container, or the settings do not say which it is.
        """
        names = ", ".join(container["name"] for container in containers)
        if self.container is None and len(containers) > 1:
            raise DeploymentError(
                f"{where} has the containers {names}; name one as services.{self.service}.container"
            )
        for container in containers:
            if self.container in (None, container["name"]):
                return dict(container)
        raise DeploymentError(
            f"services.{self.service}.container: {where} has no container {self.container}, only {names}"
        )


def target_of(settings: Mapping[str, Any], service: str | None = None) -> str:
    """Name of the target of a service, or of those that name none.

    Raises:
        SettingError: there is no such target.
    """
    services = settings.get("services")
    own = services.get(service) if isinstance(services, Mapping) and service is not None else None
    where, target = "target", settings.get("target", "local")
    if isinstance(own, Mapping) and "target" in own:
        where, target = f"services.{service}.target", own["target"]
    if target not in TARGETS:
        raise SettingError(f"{where}: {target!r} is not known; use one of {', '.join(TARGETS)}")
    return str(target)


def services_of(settings: Mapping[str, Any]) -> list[str]:
    """Identifiers of the services that the settings know, sorted."""
    services = settings.get("services")
    return sorted(map(str, services)) if isinstance(services, Mapping) else []


def service_options(settings: Mapping[str, Any], service: str) -> Options:
    """The settings of a service; its target is read already.

    Raises:
        SettingError: there are none.
    """
    options = entry(settings, "services", service, _REMEDY)
    options.choice("target", TARGETS, "local")
    return options


def image_of(options: Options) -> str:
    """The template of a service's image.

    Raises:
        SettingError: it is missing, or does not say where the version goes.
    """
    image = options.text("image")
    if "{version}" not in image:
        raise options.error("image", "must hold {version}, such as registry.example.com/cart:{version}")
    return image


def part_of(settings: Mapping[str, Any], key: str) -> Options:
    """A map of settings that all services share, such as `aws`; an empty one if it is missing.

    Raises:
        SettingError: it is no map.
    """
    return Options(settings.get(key, {}), key)


def with_version(template: str, version: str) -> str:
    """The template with the version in place of `{version}`; every other brace stays."""
    return template.replace("{version}", version)


def version_in(text: str, template: str | None) -> str:
    """The version that made `text` of the template; else the tag of an image, else all of it."""
    if template is not None:
        pattern = re.escape(template).replace(re.escape("{version}"), "(.+)", 1)
        if (found := re.fullmatch(pattern, text)) and found.groups():
            return found[1]
    name = text.rpartition("/")[2]
    return name.partition("@")[2] or name.partition(":")[2] or name
