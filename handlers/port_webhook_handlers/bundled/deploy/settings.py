"""Where the services of a stack run: the settings that every target's deployer starts from.

target: kubernetes
services:
  cart: {namespace: shop, deployment: cart, image: "registry.example.com/cart:{version}"}
  mail: {target: lambda, function: mail, s3_bucket: builds, s3_key: "mail-{version}.zip"}
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from port_webhook_handlers.bundled.options import Options, entry
from port_webhook_handlers.sdk import SettingError

TARGETS: Final = ("local", "kubernetes", "ecs", "lambda")

_REMEDY: Final = "add it there, with what its target needs to know"


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
