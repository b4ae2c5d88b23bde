"""A kit for authors: run a handler in a test, exactly as the listener would.

outcome = invoke(deploy, inputs={"version": "1.4.2"}, entity="cart", secrets={"REGISTRY_TOKEN": "t0ken"})
assert outcome.result == Success(summary="…")
assert outcome.entities[0]["body"]["properties"]["version"] == "1.4.2"
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from port_webhook_handlers.sdk.errors import InputError
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.invoke import run_handler
from port_webhook_handlers.sdk.results import Failure, HandedOver, Result, Success
from port_webhook_handlers.sdk.run import Message
from port_webhook_handlers.sdk.values import Entity, to_json


@dataclass(frozen=True)
class Invocation:
    """What a handler reported.

    Attributes:
        result: how it ended.
        retryable: whether it raised `RetryableError`.
        error_type: name of the class of what it raised; None if it returned.
        messages: all reports in order, the result last.
    """

    result: Result
    retryable: bool
    error_type: str | None
    messages: list[Message] = field(repr=False)

    @property
    def logs(self) -> list[str]:
        """Lines of the run's log."""
        return self._all("log")

    @property
    def progress(self) -> list[str]:
        """Labels in order."""
        return self._all("progress")

    @property
    def links(self) -> list[str]:
        """Links reported while the handler ran."""
        last = (self._all("link") or [[]])[-1]
        return [last] if isinstance(last, str) else last

    @property
    def entities(self) -> list[dict[str, Any]]:
        """Entity operations in order: `op`, `blueprint`, `body`, `ref`."""
        return self._all("entity")

    def _all(self, kind: str) -> list[Any]:
        return [message[kind] for message in self.messages if kind in message]


def invoke(
    handler: Callable[..., Any],
    *,
    inputs: Mapping[str, Any] | None = None,
    entity: Entity | Mapping[str, Any] | str | None = None,
    event: Mapping[str, Any] | None = None,
    trigger: Mapping[str, Any] | None = None,
    secrets: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    run_id: str = "r_0123456789abcdef",
    attempt: int = 1,
    seconds: float | None = None,
) -> Invocation:
    """Validates the inputs as the listener does and runs a decorated function.

    Args:
        handler: the decorated function.
        inputs: as Port sends them; encrypted ones in plain.
        entity: on which the action runs.
        event: of an automation, as Port sends it.
        trigger: who started it, as Port sends it.
        secrets: values of the declared secrets.
        settings: the handler's settings from the stack.
        run_id: id of the run.
        attempt: counted from one.
        seconds: until the deadline; by default the handler's timeout.

    Raises:
        InputError: the listener would refuse the inputs.
        LookupError: the function is not decorated.
        TypeError: an argument is not JSON.
    """
    found = handler_of(handler)
    _validate(found.form.schema(encrypted=False), inputs or {})
    run = {
        "id": run_id,
        "action": found.identifier,
        "blueprint": found.blueprint,
        "entity": _entity(entity),
        "event": event,
        "trigger": trigger or {"origin": "API", "by": {}},
        "attempt": attempt,
        "deadline": time.time() + (found.timeout_seconds if seconds is None else seconds),
        "idempotency_key": run_id,
    }
    request = {
        "run": run,
        "inputs": inputs or {},
        "handler": found.target,
        "secrets": secrets or {},
        "settings": settings or {},
    }
    messages: list[Message] = []
    run_handler(
        found,
        json.loads(json.dumps(to_json(request, "request"))),
        lambda message: messages.append(json.loads(json.dumps(message, allow_nan=False))),
    )
    body = messages[-1]["result"]
    result: Result
    if body["status"] == "SUCCESS":
        result = Success(body["summary"], body["link"], body["response"])
    elif body["status"] == "HANDED_OVER":
        result = HandedOver(body["summary"], body["link"])
    else:
        result = Failure(body["summary"], body["link"], body["response"])
    return Invocation(result, body["retryable"], body["error_type"], messages)


def _entity(entity: Entity | Mapping[str, Any] | str | None) -> Any:
    if not isinstance(entity, Entity):
        return entity
    return {
        "identifier": entity.identifier,
        "title": entity.title,
        "blueprint": entity.blueprint,
        "icon": entity.icon,
        "team": list(entity.team),
        "properties": dict(entity.properties),
        "relations": dict(entity.relations),
    }


def _validate(schema: dict[str, Any], inputs: Mapping[str, Any]) -> None:
    import fastjsonschema

    try:
        fastjsonschema.compile(schema)(dict(inputs))
    except fastjsonschema.JsonSchemaValueException as error:
        name = error.name or "data"
        raise InputError(
            name.replace("data", "inputs", 1), error.message.removeprefix(name).lstrip()
        ) from None
