"""`@action` and `@automation`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, Never, TypeVar

from port_webhook_handlers.port.payload import ENVELOPE, Payload
from port_webhook_handlers.sdk.handler import (
    Method,
    Mode,
    OnInterrupt,
    Operation,
    Permissions,
    Scheme,
    attach,
)
from port_webhook_handlers.sdk.results import Result
from port_webhook_handlers.sdk.triggers import EventTrigger

HandlerFunction = Callable[..., Result | None] | Callable[..., Awaitable[Result | None]]
_F = TypeVar("_F", bound=HandlerFunction)


def action(
    identifier: str,
    *,
    title: str | None = None,
    description: str | None = None,
    icon: str | None = None,
    blueprint: str | None = None,
    operation: Operation = "CREATE",
    condition: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    mode: Mode = "async",
    method: Method = "POST",
    agent: bool = False,
    scheme: Scheme = "raw",
    payload: Payload = ENVELOPE,
    manage: bool | None = None,
    secrets: Sequence[str] = (),
    timeout_seconds: float | None = None,
    privilege_group: str = "default",
    on_interrupt: OnInterrupt = "fail",
    max_attempts: int | None = None,
    max_concurrency: int = 10,
    aws_permissions: Permissions = (),
    kubernetes_permissions: Permissions = (),
    required_approval: bool | Literal["ANY", "ALL"] | None = None,
    approval_notification: Mapping[str, Any] | None = None,
    allow_anyone_to_view_runs: bool | None = None,
    card_button: str | None = None,
    execute_button: str | None = None,
    permissions: Mapping[str, Any] | None = None,
    **unknown: Never,
) -> Callable[[_F], _F]:
    """Makes a function the backend of a self-service action.

    The function, plain or `async`, takes a parameter annotated with its `Inputs` class and one annotated
    with `Run`, or one of them, or none; it returns `Success`, `Failure` or None.

    Args:
        identifier: of the action in Port, and the name of its route.
        title, description, icon: as Port shows them.
        blueprint: the blueprint that the action belongs to; required unless `operation` is CREATE.
        operation: DAY-2 and DELETE run on an entity, which is then `run.entity`.
        condition: which entities the action is offered for: rules that must all hold, or Port's object.
        mode: "async": answered at once and reported later; "sync": the result is the answer.
        method: HTTP method of the invocation.
        agent: deliver through the execution agent instead of over the internet.
        scheme: "official-agent" where Port's own agent delivers; it signs other bytes than it sends.
        payload: where its requests hold run id, inputs and the rest: the envelope that the stack's definitions send,
            or, for an action that exists in Port with a body of its own, a `Payload` such as `payloads.LEGACY`.
        manage: whether the stack declares it in Port. By default it does with the envelope, and with another
            payload it serves the route only; an action that others declare just points its URL at the route.
        secrets: names of the secrets that the handler gets.
        timeout_seconds: the handler is killed after this time; by default 870, in mode sync 25.
        privilege_group: handlers of one group may share credentials in the cloud.
        on_interrupt: what follows a crash in the middle: "fail", so that it is started at most once, or
            "retry", for a handler that may run twice.
        max_attempts: starts of one run, after crashes or `RetryableError`; by default 1, with "retry" 3.
        max_concurrency: runs of this action at one time.
        aws_permissions: what it may do in AWS: `{"actions": […], "resources": […]}`, without wildcards; or a
            function that makes this list of the handler's settings.
        kubernetes_permissions: what it may do in the cluster that it runs in: `{"namespace": …, "group": …,
            "resources": […], "names": […], "verbs": […]}`, without wildcards; or a function as above.
        required_approval: whether somebody, or "ANY" or "ALL" of the approvers, must agree first.
        approval_notification: Port's `approvalNotification`.
        allow_anyone_to_view_runs: Port's `allowAnyoneToViewRuns`.
        card_button, execute_button: texts of the buttons, 2 to 15 characters.
        permissions: Port's `{"execute": {…}, "approve": {…}}`.

    Raises:
        HandlerDefinitionError: an option or the function's signature cannot work.
    """
    options = dict(locals())
    del options["unknown"]

    def decorate(function: _F) -> _F:
        attach(function, {"kind": "action", **options}, unknown)
        return function

    return decorate


def automation(
    identifier: str,
    *,
    trigger: EventTrigger | None = None,
    title: str | None = None,
    description: str | None = None,
    icon: str | None = None,
    condition: str | Sequence[str] | None = None,
    mode: Mode = "async",
    method: Method = "POST",
    agent: bool = False,
    scheme: Scheme = "raw",
    payload: Payload = ENVELOPE,
    manage: bool | None = None,
    secrets: Sequence[str] = (),
    timeout_seconds: float | None = None,
    privilege_group: str = "default",
    on_interrupt: OnInterrupt = "fail",
    max_attempts: int | None = None,
    max_concurrency: int = 10,
    aws_permissions: Permissions = (),
    kubernetes_permissions: Permissions = (),
    publish: bool = True,
    allow_anyone_to_view_runs: bool | None = None,
    **unknown: Never,
) -> Callable[[_F], _F]:
    """Makes a function the backend of an automation: it runs on an event, which is `run.event`.

    The function, plain or `async`, takes a parameter annotated with `Run`, or none.

    Args:
        identifier: of the automation in Port, and the name of its route.
        trigger: the event, made by a function of the `triggers` module; not needed with `manage=False`.
        condition: JQ expressions over the event that must all hold, such as `.diff.after.properties.tier`.
        publish: False keeps the automation inactive.

    The other arguments are those of `action`.

    Raises:
        HandlerDefinitionError: an option or the function's signature cannot work.
    """
    options = dict(locals())
    del options["unknown"]

    def decorate(function: _F) -> _F:
        attach(function, {"kind": "automation", **options}, unknown)
        return function

    return decorate
