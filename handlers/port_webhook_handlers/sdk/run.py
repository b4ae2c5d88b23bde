"""`Run`: what a handler knows about its run, and how it reports while it works."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from port_webhook_handlers.port.json_codec import lines_codec
from port_webhook_handlers.sdk.errors import UndeclaredSecretError
from port_webhook_handlers.sdk.redaction import Redactor
from port_webhook_handlers.sdk.values import Entity, to_json

_, _written = lines_codec()

Message = dict[str, Any]
Send = Callable[[Message], None]

# A longer text helps nobody on a run's page.
_LONGEST_TEXT = 32_768
# Port takes no larger body.
_LARGEST_JSON = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Trigger:
    """Who or what started the run.

    Attributes:
        email: of the user; None for a machine.
        user_id, organization_id: Port's ids.
        origin: `UI`, `API` or `AUTOMATION`.
        at: ISO 8601.
        operation: of the action; None in automations.
        raw: Port's object as it came.
    """

    email: str | None = None
    user_id: str | None = None
    organization_id: str | None = None
    origin: str | None = None
    at: str | None = None
    operation: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, value: object) -> Trigger:
        """From Port's `.trigger`; what is missing is None."""
        raw = _mapping(value)
        by = _mapping(raw.get("by"))
        user = _mapping(by.get("user"))
        return cls(
            email=user.get("email"),
            user_id=by.get("userId"),
            organization_id=by.get("orgId"),
            origin=raw.get("origin"),
            at=raw.get("at"),
            operation=raw.get("operation"),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """The event that started an automation.

    Attributes:
        action: `CREATE`, `UPDATE` or `DELETE`.
        resource_type: `entity` or `run`.
        context: identifiers of what changed, as Port names them.
        before, after: the entity or run before and after; None where there is none.
        raw: Port's object as it came.
    """

    action: str | None = None
    resource_type: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None
    after: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, value: object) -> Event | None:
        """From Port's `.event`; None for an action."""
        if not isinstance(value, Mapping) or not value:
            return None
        diff = _mapping(value.get("diff"))
        return cls(
            action=value.get("action"),
            resource_type=value.get("resourceType"),
            context=_mapping(value.get("context")),
            before=diff.get("before"),
            after=diff.get("after"),
            raw=value,
        )

    @property
    def before_entity(self) -> Entity | None:
        """The entity before the change; None where there was none."""
        return Entity.from_json(self.before, path="event.diff.before") if self.before else None

    @property
    def after_entity(self) -> Entity | None:
        """The entity after the change; None where it was deleted."""
        return Entity.from_json(self.after, path="event.diff.after") if self.after else None


class Run:
    """One run of a handler.

    Its methods may be called from any thread. What they report goes to Port in order and before the
    result; a report that Port refuses never fails the run.

    Attributes:
        id: Port's id of the run.
        action: identifier of the action or automation.
        blueprint: of the action; None for an automation.
        attempt: counted from one.
        idempotency_key: the same for every attempt of one run; hand it to systems that support one.
        deadline: seconds since the epoch at which the handler is killed.
        settings: the handler's settings from the stack.
    """

    def __init__(
        self,
        body: Mapping[str, Any],
        send: Send,
        *,
        secrets: Mapping[str, str] | None = None,
        settings: Mapping[str, Any] | None = None,
        declared_secrets: Sequence[str] = (),
        redactor: Redactor | None = None,
    ) -> None:
        self.id = str(body["id"])
        self.action = str(body["action"])
        blueprint = body.get("blueprint")
        self.blueprint: str | None = blueprint if isinstance(blueprint, str) else None
        self._body = body
        self.attempt = int(body.get("attempt") or 1)
        self.idempotency_key = str(body.get("idempotency_key") or self.id)
        self.deadline = float(body.get("deadline") or time.time() + 86_400)
        self.settings: Mapping[str, Any] = dict(settings or {})
        self._secrets = dict(secrets or {})
        self._declared = frozenset(declared_secrets)
        self._redactor = redactor or Redactor(self._secrets.values())
        self._send = send
        self._lock = threading.Lock()
        self._links: tuple[str, ...] = ()
        self._entities = 0
        self._ended = False

    # Read when a handler asks for them: many do not.

    @functools.cached_property
    def trigger(self) -> Trigger:
        """Who started the run."""
        return Trigger.from_json(self._body.get("trigger"))

    @functools.cached_property
    def event(self) -> Event | None:
        """What started an automation; None for an action."""
        return Event.from_json(self._body.get("event"))

    @functools.cached_property
    def _entity(self) -> Entity | None:
        entity = self._body.get("entity")
        return Entity.from_json(entity, blueprint=self.blueprint) if entity else None

    @property
    def entity(self) -> Entity:
        """The entity on which the action was run.

        Raises:
            LookupError: the run has none, as those of operation CREATE and of automations.
        """
        if self._entity is None:
            raise LookupError("the run has no entity; only actions of operation DAY-2 and DELETE have one")
        return self._entity

    @property
    def seconds_left(self) -> float:
        """Seconds until the handler is killed, never negative."""
        return max(0.0, self.deadline - time.time())

    def secret(self, name: str) -> str:
        """The value of a secret that the decorator lists.

        Raises:
            UndeclaredSecretError: the decorator does not list it, or the stack has no value for it.
        """
        if name not in self._declared:
            raise UndeclaredSecretError(
                f"secret {name} is not declared; add it to secrets=[…] of {self.action}"
            )
        if name not in self._secrets:
            raise UndeclaredSecretError(
                f"secret {name} has no value; set it in the configuration of the stack"
            )
        return self._secrets[name]

    def log(self, message: str) -> None:
        """Adds a line to the run's log in Port."""
        self._report({"log": shortened(str(message))})

    def progress(self, label: str) -> None:
        """Sets the label that stands beside the run's status."""
        self._report({"progress": shortened(str(label))})

    def link(self, url: str) -> None:
        """Adds a link to the run's page."""
        with self._lock:
            self._links += (str(url),)
            links = list(self._links)
        self._report({"link": links[0] if len(links) == 1 else links})

    def summary(self, text: str) -> None:
        """Sets the summary of the run's page, in Markdown; that of the result replaces it."""
        self._report({"summary": shortened(str(text))})

    def upsert_entity(
        self,
        blueprint: str,
        identifier: str,
        *,
        title: str | None = None,
        icon: str | None = None,
        team: Sequence[str] | None = None,
        properties: Mapping[str, Any] | None = None,
        relations: Mapping[str, Any] | None = None,
    ) -> None:
        """Makes or changes an entity, listed under this run; what is not given stays as it is.

        Values may hold dates (with time zone), enumerations and `Entity` objects.

        Raises:
            TypeError: a value has no JSON form.
            ValueError: blueprint or identifier is empty, or the entity is larger than Port takes.
        """
        values = {
            "identifier": identifier,
            "title": title,
            "icon": icon,
            "team": team,
            "properties": properties,
            "relations": relations,
        }
        body = {key: to_json(value, key) for key, value in values.items() if value is not None}
        self._report_entity("upsert", blueprint, body)

    def delete_entity(self, blueprint: str, identifier: str) -> None:
        """Deletes an entity; one that does not exist is no error."""
        self._report_entity("delete", blueprint, {"identifier": identifier})

    def _report_entity(self, operation: str, blueprint: str, body: Message) -> None:
        if not blueprint or not body["identifier"]:
            raise ValueError("an entity needs a blueprint and an identifier; one of them is empty")
        check_size(body, f"entity {body['identifier']} of {blueprint}")
        with self._lock:
            self._entities += 1
            reference = self._entities
        self._report({"entity": {"op": operation, "blueprint": blueprint, "body": body, "ref": reference}})

    def _report(self, message: Message) -> None:
        message = self._redactor.json(message)
        with self._lock:
            # A thread that outlives its handler has nobody to report to.
            if not self._ended:
                self._send(message)

    def _end(self, result: Message) -> None:
        """Sends the result; nothing is sent after it."""
        result = self._redactor.json(result)
        with self._lock:
            if not self._ended:
                self._ended = True
                self._send(result)


def shortened(text: str) -> str:
    """`text`, cut where it is too long for a run's page."""
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… (cut)"


def check_size(value: object, what: str) -> None:
    """Refuses JSON that Port would refuse.

    Raises:
        ValueError: it is larger than one MiB.
    """
    if value is None:
        return
    size = len(_written(value))
    if size > _LARGEST_JSON:
        raise ValueError(f"{what} has {size} bytes; Port takes one MiB at most")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
