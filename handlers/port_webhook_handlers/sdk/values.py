"""Plain values that handlers exchange with Port: entities, links, JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from port_webhook_handlers.sdk.errors import InputError


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity of Port's catalog, as far as it is known.

    An entity that was given by its identifier alone has empty properties and relations.

    Attributes:
        identifier: unique within its blueprint.
        title: display name.
        blueprint: identifier of its blueprint.
        icon: name of its icon.
        team: names of the owning teams.
        properties: values by property.
        relations: identifier, list of identifiers or None by relation.
    """

    identifier: str
    title: str | None = None
    blueprint: str | None = None
    icon: str | None = None
    team: tuple[str, ...] = ()
    properties: Mapping[str, Any] = field(default_factory=dict)
    relations: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.identifier

    @classmethod
    def from_json(cls, value: object, *, blueprint: str | None = None, path: str = "entity") -> Entity:
        """An entity from Port's object or from a plain identifier: which one arrives is up to the caller.

        Args:
            value: what the request holds.
            blueprint: used where the value names none.
            path: where the value stands, for the error.

        Raises:
            InputError: the value is neither.
        """
        if isinstance(value, str) and value:
            return cls(value, blueprint=blueprint)
        if not isinstance(value, Mapping):
            raise InputError(path, "must be an entity: an object with an identifier, or an identifier")
        identifier = value.get("identifier")
        if not isinstance(identifier, str) or not identifier:
            raise InputError(f"{path}.identifier", "must be a string that is not empty")
        team = value.get("team")
        return cls(
            identifier,
            title=_text(value.get("title")),
            blueprint=_text(value.get("blueprint")) or blueprint,
            icon=_text(value.get("icon")),
            team=(team,) if isinstance(team, str) else tuple(map(str, team or ())),
            properties=_mapping(value.get("properties")),
            relations=_mapping(value.get("relations")),
        )


@dataclass(frozen=True, slots=True)
class LabeledUrl:
    """A link with a text to show in its place.

    Attributes:
        url: the address.
        display_text: None: the address itself is shown.
    """

    url: str
    display_text: str | None = None


def to_json(value: object, path: str = "value") -> Any:
    """A JSON value made of `value`: dates in ISO 8601, enumerations by value, entities by identifier.

    Raises:
        TypeError: something in it has no JSON form; the message names where it is.
    """
    if isinstance(value, Enum):
        return to_json(value.value, path)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{path} is {value}, which JSON cannot hold")
        return value
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise TypeError(f"{path} is a date without time zone; use datetime.now(UTC)")
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Entity):
        return value.identifier
    if isinstance(value, LabeledUrl):
        return {"url": value.url, **({"displayText": value.display_text} if value.display_text else {})}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{path} has the key {key!r}; keys must be strings")
        return {key: to_json(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [to_json(item, f"{path}[{index}]") for index, item in enumerate(items)]
    if callable(convert := getattr(value, "to_json", None)):
        return convert()
    raise TypeError(f"{path} is a {type(value).__name__}, which has no JSON form")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _mapping(value: object) -> Mapping[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
