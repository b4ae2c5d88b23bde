"""Where a request says which run it is of, and with which inputs, entity, trigger and event.

Definitions of this stack send one form, the envelope. Actions and automations that exist in Port already send what
their authors wrote; Port's own material knows four conventions, which are the other constants here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

SPREAD: Final = "*"
"""The inputs are the body's top-level members that nothing else claims: Port's `spreadValue()`."""

_HEADER: Final = "header:"
_PORT_CONTEXT: Final = "port_context"
_PLACES: Final = ("run_id", "action", "inputs", "entity", "blueprint", "trigger", "event")
_PATH = re.compile(r"[^.\s*:]+(?:\.[^.\s*:]+)*")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SIGNATURE_HEADERS: Final = ("x-port-signature", "x-port-timestamp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The form of a route's requests. A path names members from the top of the body, separated by dots.

    Attributes:
        run_id: path of the run's id, or `header:NAME`. A header is not signed (Port signs timestamp and body), so
            such a run is accepted only when Port confirms that it exists, is one of this action, and is in progress.
        action: path of the action's identifier, which must be the route's, else 403; None: the body does not say it,
            so that a signed request for another action of the organisation is accepted as well.
        inputs: path of the user inputs, or `SPREAD`.
        entity: path of the entity, or of its identifier.
        blueprint: path of the blueprint, where the entity does not say it. An action may then also be named without
            its blueprint: `restart` of `service` is `service_restart`, as Port has named the actions it migrated.
        trigger, event: paths of Port's objects of these names.
        empty_body: a request without a body is accepted; its run id must stand in a header.

    Raises:
        ValueError: a path is none, or the places contradict one another.
    """

    run_id: str
    action: str | None = None
    inputs: str = SPREAD
    entity: str | None = None
    blueprint: str | None = None
    trigger: str | None = None
    event: str | None = None
    empty_body: bool = False

    def __post_init__(self) -> None:
        for name in _PLACES:
            value = getattr(self, name)
            if value is None and name not in ("run_id", "inputs"):
                continue
            if name == "run_id" and isinstance(value, str) and value.startswith(_HEADER):
                self._check_header(value.removeprefix(_HEADER))
            elif not (name == "inputs" and value == SPREAD) and not (
                isinstance(value, str) and _PATH.fullmatch(value)
            ):
                raise ValueError(
                    f"payload.{name}: {value!r} is no path; name members of the body, such as context.runId"
                )
        if not isinstance(self.empty_body, bool):
            raise ValueError(f"payload.empty_body: {self.empty_body!r} is neither True nor False")
        if self.empty_body and self.header is None:
            raise ValueError(
                "payload.empty_body: needs the run id in a header, such as run_id='header:RUN_ID'"
            )
        if self.empty_body and self.action is not None:
            raise ValueError(
                "payload.action: a request without a body cannot name its action; leave action out, "
                "Port confirms it"
            )

    @staticmethod
    def _check_header(name: str) -> None:
        if not _HEADER_NAME.fullmatch(name) or name.lower() in _SIGNATURE_HEADERS:
            raise ValueError(
                f"payload.run_id: {name!r} is no name of a header for it; write header:RUN_ID, for example"
            )

    @property
    def header(self) -> str | None:
        """Name of the header that holds the run id; None if the body does."""
        return self.run_id.removeprefix(_HEADER) if self.run_id.startswith(_HEADER) else None

    @property
    def reserved(self) -> frozenset[str]:
        """Top-level members that are no inputs where those are spread."""
        return _reserved(self)

    def inputs_of(self, body: Mapping[str, Any]) -> Any:
        """The inputs as they stand in a body; `{}` where there are none."""
        if self.inputs == SPREAD:
            return {name: value for name, value in body.items() if name not in self.reserved}
        return at(body, self.inputs, {})

    def context_of(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Entity, blueprint, trigger and event of a body; None for what it does not hold."""
        entity = at(body, self.entity) or None
        blueprint = entity.get("blueprint") if isinstance(entity, dict) else None
        return {
            "blueprint": blueprint or at(body, self.blueprint),
            "entity": entity,
            "trigger": at(body, self.trigger),
            "event": at(body, self.event),
        }

    def names(self, body: Mapping[str, Any], action: str) -> bool:
        """Whether a body is one of this action, as far as its form says that."""
        if self.action is None:
            return True
        found = at(body, self.action)
        if found == action:
            return True
        blueprint = at(body, self.blueprint)
        return isinstance(found, str) and isinstance(blueprint, str) and f"{blueprint}_{found}" == action

    def body_of(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A body of this form.

        Args:
            values: by the names of this class's attributes; those that the form has no place for are left out. Inputs
                that are text, a template, are spread by Port.

        Raises:
            ValueError: a place lies inside another one, so that no body can fill both.
        """
        body: dict[str, Any] = {}
        for name, value in values.items():
            path = getattr(self, name)
            if path == SPREAD:
                body |= value if isinstance(value, Mapping) else {"{{ spreadValue() }}": value}
            elif path is not None and not path.startswith(_HEADER):
                _put(body, path.split("."), value, f"payload.{name}")
        return body

    def to_json(self) -> dict[str, Any]:
        """Plain values, as the manifest holds them."""
        return asdict(self)


def at(body: Any, path: str | None, default: Any = None) -> Any:
    """What stands at a path; `default` if nothing does, or the path is None."""
    if path is None:
        return default
    for key in path.split("."):
        if not isinstance(body, dict) or key not in body:
            return default
        body = body[key]
    return body


def _put(body: dict[str, Any], path: list[str], value: Any, name: str) -> None:
    place: Any = body
    for key in path[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict) or path[-1] in place:
        raise ValueError(
            f"{name}: {'.'.join(path)} lies inside another place of the payload; use another path"
        )
    place[path[-1]] = value


@functools.cache
def _reserved(payload: Payload) -> frozenset[str]:
    paths = [getattr(payload, name) for name in _PLACES]
    return frozenset(
        {
            _PORT_CONTEXT,
            *(path.split(".")[0] for path in paths if path and path != SPREAD and ":" not in path),
        }
    )


ENVELOPE: Final = Payload(
    run_id="port_context.runId",
    action="port_context.action",
    inputs="inputs",
    entity="entity",
    trigger="trigger",
    event="event",
)
"""What the definitions of this stack send, and the default."""

UI: Final = Payload(
    run_id="port_context.runId", entity="port_context.entity", blueprint="port_context.blueprint"
)
"""Today's form of Port's editor: the inputs spread, beside `port_context.runId`."""

SNAKE_CASE: Final = Payload(
    run_id="port_context.run_id", entity="port_context.entity", blueprint="port_context.blueprint"
)
"""The same with `port_context.run_id`, as some pages of Port's documentation write it."""

RUN_ID_HEADER: Final = Payload(
    run_id="header:RUN_ID", entity="port_context.entity", blueprint="port_context.blueprint"
)
"""The run's id in the header `RUN_ID` alone; the inputs spread."""

LEGACY: Final = Payload(
    run_id="context.runId",
    action="action",
    inputs="payload.properties",
    entity="payload.entity",
    blueprint="context.blueprint",
    trigger="trigger",
)
"""Port's former fixed envelope, which migrated actions still rebuild and the agent over Kafka understands."""
