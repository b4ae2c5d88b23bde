"""The blueprints that bundled handlers work with, under the names that an organisation has for them.

    catalog:
      service: {blueprint: microservice, properties: {passed: healthy}}
      environment: {entity: production}
      deployment:
        blueprint: release
        properties: {status: state, run: null}      # null: not kept
        relations: {service: microservice}

What is left out keeps its name. `environment` is there only if it is switched on; then deployments and resources are
related to the entity that it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.bundled.blueprints import DEPLOYMENT, ENVIRONMENT, RESOURCE, SERVICE
from port_webhook_handlers.bundled.options import Options
from port_webhook_handlers.sdk import Entity, Run, SettingError

_IN_ENVIRONMENT: Final = {"target": "environment", "title": "Environment", "required": False, "many": False}
_SET: Final = {
    "service": SERVICE,
    "environment": ENVIRONMENT,
    "deployment": {
        **DEPLOYMENT,
        "relations": {**DEPLOYMENT["relations"], "environment": _IN_ENVIRONMENT},
    },
    "resource": {**RESOURCE, "relations": {**RESOURCE["relations"], "environment": _IN_ENVIRONMENT}},
}

NAMES: Final = tuple(_SET)
"""Of the blueprints, in the order in which they can be created: a relation's target comes first."""

Names = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """One blueprint of the set.

    Attributes:
        name: in the set.
        blueprint: its identifier.
        properties, relations: name in the set to name of the blueprint; None: the blueprint has no such thing.
    """

    name: str
    blueprint: str
    properties: Names
    relations: Names

    @classmethod
    def of(cls, name: str, options: Options | None, *, environment: bool) -> Kind:
        """A blueprint by its settings.

        Raises:
            SettingError: a key is unknown, or its value no name.
        """
        body = _SET[name]
        relations = [key for key in body["relations"] if environment or key != "environment"]
        if options is None:
            options = Options({}, f"catalog.{name}")
        found = cls(
            name,
            options.text("blueprint", name),
            _names(options, "properties", list(body["schema"]["properties"])),
            _names(options, "relations", relations),
        )
        if name == "environment":
            options.text("entity")
        options.end()
        return found

    def property(self, name: str) -> str | None:
        """What a property is called; None if there is none."""
        return self.properties[name]

    def value(self, entity: Entity, name: str) -> Any:
        """A property of an entity; None if it has none."""
        own = self.properties[name]
        return None if own is None else entity.properties.get(own)

    def entity(
        self,
        identifier: str,
        *,
        title: str | None = None,
        properties: Mapping[str, Any] | None = None,
        relations: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """An entity as Port's API takes it, with its blueprint."""
        return {
            "blueprint": self.blueprint,
            "identifier": identifier,
            **({"title": title} if title is not None else {}),
            **({"properties": _renamed(properties, self.properties)} if properties is not None else {}),
            **({"relations": _renamed(relations, self.relations)} if relations is not None else {}),
        }

    def upsert(
        self,
        run: Run,
        identifier: str,
        *,
        title: str | None = None,
        properties: Mapping[str, Any] | None = None,
        relations: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes or changes an entity, as `Run.upsert_entity` does."""
        run.upsert_entity(
            self.blueprint,
            identifier,
            title=title,
            properties=None if properties is None else _renamed(properties, self.properties),
            relations=None if relations is None else _renamed(relations, self.relations) or None,
        )

    def delete(self, run: Run, identifier: str) -> None:
        """Deletes an entity."""
        run.delete_entity(self.blueprint, identifier)

    def body(self, blueprints: Mapping[str, str]) -> dict[str, Any]:
        """The blueprint as Port's API takes it.

        Args:
            blueprints: identifiers by name in the set.
        """
        body = _SET[self.name]
        schema = body["schema"]
        relations = {
            key: {**definition, "target": blueprints[definition["target"]]}
            for key, definition in body["relations"].items()
            if key in self.relations
        }
        return {
            **body,
            "identifier": self.blueprint,
            "schema": {
                "properties": _renamed(schema["properties"], self.properties),
                "required": [own for key in schema["required"] if (own := self.properties[key]) is not None],
            },
            "relations": _renamed(relations, self.relations),
        }


@dataclass(frozen=True, slots=True)
class Catalog:
    """The set.

    Attributes:
        service, environment, deployment, resource: its blueprints; `environment` is None unless switched on.
        environment_entity: identifier of the environment that this stack's deployments are in.
        named: names of those that the settings mention.
    """

    service: Kind
    environment: Kind | None
    deployment: Kind
    resource: Kind
    environment_entity: str | None = None
    named: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Catalog:
        """From the key `catalog` of a handler's settings.

        Raises:
            SettingError: it cannot be used.
        """
        values = settings.get("catalog", {})
        options = Options(values, "catalog")
        parts = {name: options.part(name) for name in NAMES}
        options.end()
        on = parts["environment"] is not None
        kinds = {
            name: Kind.of(name, parts[name], environment=on) for name in NAMES if on or name != "environment"
        }
        identifiers = [kind.blueprint for kind in kinds.values()]
        for kind in kinds.values():
            if identifiers.count(kind.blueprint) > 1:
                raise SettingError(
                    f"catalog.{kind.name}.blueprint: {kind.blueprint} is another blueprint of the set too; "
                    "give each its own"
                )
        return cls(
            kinds["service"],
            kinds.get("environment"),
            kinds["deployment"],
            kinds["resource"],
            values["environment"]["entity"] if on else None,
            tuple(name for name in NAMES if parts[name] is not None),
        )

    def kind(self, name: str) -> Kind | None:
        """A blueprint by its name in the set; None for an environment that is not switched on."""
        found: Kind | None = getattr(self, name)
        return found

    @property
    def in_environment(self) -> dict[str, str]:
        """The relation to this stack's environment, if there is one."""
        return {"environment": self.environment_entity} if self.environment_entity else {}

    def blueprints(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Blueprints as Port's API takes them, in the order in which they can be created.

        Args:
            names: of those that are wanted; what their relations point at comes along.
        """
        identifiers = {name: kind.blueprint for name in NAMES if (kind := self.kind(name)) is not None}
        wanted = {*names}
        for name in names:
            kind = self.kind(name)
            if kind is None:
                wanted.discard(name)
                continue
            relations = _SET[name]["relations"]
            wanted |= {relations[key]["target"] for key, own in kind.relations.items() if own is not None}
        kinds = [kind for name in NAMES if name in wanted and (kind := self.kind(name)) is not None]
        return [kind.body(identifiers) for kind in kinds]

    def renamed(self, definition: Mapping[str, Any]) -> dict[str, Any]:
        """The definition of a bundled handler with this catalog's names in it.

        Raises:
            SettingError: it is about a property that the catalog does not have.
        """
        body = dict(definition)
        trigger = dict(body.get("trigger", {}))
        kinds = {name: kind for name in NAMES if (kind := self.kind(name)) is not None}
        if (name := trigger.get("blueprintIdentifier")) in kinds:
            trigger["blueprintIdentifier"] = kinds[name].blueprint
        if inputs := trigger.get("userInputs"):
            fields = {
                key: {**field, "blueprint": kinds[field["blueprint"]].blueprint}
                if field.get("blueprint") in kinds
                else field
                for key, field in inputs.get("properties", {}).items()
            }
            trigger["userInputs"] = {**inputs, **({"properties": fields} if "properties" in inputs else {})}
        event = trigger.get("event", {})
        if (name := event.get("blueprintIdentifier")) in kinds:
            kind, event = kinds[name], {**event, "blueprintIdentifier": kinds[name].blueprint}
            if (property := str(event.get("propertyIdentifier"))) in kind.properties:
                own = kind.property(property)
                if own is None:
                    raise SettingError(
                        f"catalog.{name}.properties.{property}: is null, but {body['identifier']} is about it; "
                        "name it, or leave that handler out"
                    )
                event["propertyIdentifier"] = own
            trigger["event"] = event
        return {**body, "trigger": trigger}


def _names(options: Options, key: str, known: Sequence[str]) -> dict[str, str | None]:
    given = options.mapping(key)
    for name, own in given.items():
        if name not in known:
            raise options.error(f"{key}.{name}", f"is none of the set (known: {', '.join(known) or 'none'})")
        if own is not None and (not isinstance(own, str) or not own):
            raise options.error(
                f"{key}.{name}", "must be the name in your blueprint, or null to leave it out"
            )
    names: dict[str, str | None] = {name: given.get(name, name) for name in known}
    kept = [own for own in names.values() if own is not None]
    for name, own in names.items():
        if own is not None and kept.count(own) > 1:
            raise options.error(f"{key}.{name}", f"{own} is given twice; each needs a name of its own")
    return names


def _renamed(values: Mapping[str, Any], names: Names) -> dict[str, Any]:
    return {own: value for key, value in values.items() if (own := names[key]) is not None}
