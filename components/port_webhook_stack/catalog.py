"""The blueprints that bundled handlers need, as resources: under their own names or under those of an organisation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import pulumi

from port_webhook_handlers.bundled.catalog import NAMES, Catalog
from port_webhook_handlers.sdk import SettingError
from port_webhook_stack.errors import SettingsError
from port_webhook_stack.port.resources import Blueprint, Entity
from port_webhook_stack.settings import MODULE, Settings

_BUNDLED: Final = "port_webhook_handlers.bundled"
_NEEDED: Final = {f"{_BUNDLED}.resource": "resource", f"{_BUNDLED}.expire": "resource"}
_ALWAYS: Final = ("service", "deployment")


def catalog_of(settings: Settings) -> Catalog:
    """The catalog of a stack.

    Raises:
        SettingsError: its settings cannot be used.
    """
    with _of_the_stack():
        return Catalog.of({"catalog": settings.catalog})


def renamed(body: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The definition of a bundled handler with the organisation's names in it.

    Raises:
        SettingsError: see `catalog_of`, or the definition is about a property that the catalog does not have.
    """
    catalog = catalog_of(settings)
    with _of_the_stack():
        return catalog.renamed(body)


@contextmanager
def _of_the_stack() -> Iterator[None]:
    """Lets the errors of a handler's setting name the stack's."""
    try:
        yield
    except SettingError as error:
        key, _, problem = str(error).partition(": ")
        raise SettingsError(
            f"{MODULE}:{key}", problem, "docs/bundled-handlers.md lists what there is"
        ) from None


def blueprints_of(settings: Settings) -> list[dict[str, Any]]:
    """Bodies of the blueprints that a stack's handlers need: service and deployment, `resource` where handlers make
    resources, and what the settings mention.

    Raises:
        SettingsError: see `catalog_of`.
    """
    catalog = catalog_of(settings)
    needed = {name for handler in settings.handlers if (name := _NEEDED.get(handler)) is not None}
    return catalog.blueprints([name for name in NAMES if name in {*_ALWAYS, *needed, *catalog.named}])


def environments_of(settings: Settings) -> list[dict[str, Any]]:
    """The entity of the stack's environment, where environments are switched on and the stack makes blueprints.

    Raises:
        SettingsError: see `catalog_of`.
    """
    catalog = catalog_of(settings)
    if catalog.environment is None or not catalog.environment_entity or settings.blueprints == "existing":
        return []
    properties = {"stack": settings.stack, "target": settings.target}
    return [
        catalog.environment.entity(
            catalog.environment_entity, title=catalog.environment_entity, properties=properties
        )
    ]


class BlueprintSet(pulumi.ComponentResource):
    """The blueprints by themselves, for a program that has no `WebhookStack` or declares them elsewhere."""

    blueprints: Mapping[str, Blueprint]
    """By name in the set: `service`, `environment`, `deployment`, `resource`."""

    def __init__(
        self,
        name: str,
        *,
        catalog: Mapping[str, Any] | None = None,
        include: Sequence[str] = NAMES,
        manage: Literal["create", "existing"] = "create",
        force_destroy: bool = False,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            name: Pulumi's name of the component.
            catalog: names in the organisation, as the setting `catalog` has them; also its `environment.entity`, which
                is made with `manage="create"`.
            include: names in the set; an environment only counts where `catalog` switches it on.
            manage: `create`, or `existing`: checked, never written.
            force_destroy: delete entities together with their blueprint.
            opts: options of the component.

        Raises:
            SettingError: `catalog` cannot be used.
        """
        found = Catalog.of({"catalog": catalog or {}})
        super().__init__("port-webhook:index:BlueprintSet", name, {}, opts)
        made: dict[str, Blueprint] = {}
        by_identifier = {kind.blueprint: key for key in NAMES if (kind := found.kind(key)) is not None}
        for body in found.blueprints(include):
            targets = [made[by_identifier[item["target"]]] for item in body["relations"].values()]
            made[by_identifier[body["identifier"]]] = Blueprint(
                f"{name}-{body['identifier']}",
                body,
                manage=manage,
                force_destroy=force_destroy,
                opts=pulumi.ResourceOptions(parent=self, depends_on=targets),
            )
        if "environment" in made and found.environment and found.environment_entity and manage == "create":
            entity = found.environment.entity(found.environment_entity, title=found.environment_entity)
            Entity(
                f"{name}-{found.environment_entity}",
                entity,
                opts=pulumi.ResourceOptions(parent=self, depends_on=[made["environment"]]),
            )
        self.blueprints = made
        self.register_outputs({})
