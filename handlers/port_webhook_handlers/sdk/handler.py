"""A handler: a decorated function with all that the stack and the listener need to know about it."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from port_webhook_handlers.port.envelope import foreign_body
from port_webhook_handlers.port.names import is_identifier, is_secret_name
from port_webhook_handlers.port.payload import ENVELOPE, SPREAD, Payload
from port_webhook_handlers.sdk.errors import HandlerDefinitionError, SourceLocation
from port_webhook_handlers.sdk.inputs import Form, Inputs
from port_webhook_handlers.sdk.run import Run
from port_webhook_handlers.sdk.triggers import EventTrigger

Operation = Literal["CREATE", "DAY-2", "DELETE"]
Mode = Literal["async", "sync"]
Method = Literal["POST", "PUT", "PATCH", "DELETE", "GET"]
Scheme = Literal["raw", "official-agent"]
OnInterrupt = Literal["fail", "retry"]
PermissionsOf = Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
Permissions = Sequence[Mapping[str, Any]] | PermissionsOf

ATTRIBUTE = "__port_handler__"
# Route of the stack's own probes; it runs no handler.
_RESERVED = "_verification"
_SYNC_LIMIT = 29
_ASYNC_DEFAULT, _SYNC_DEFAULT = 870, 25
_NO_INPUTS = Form()


@dataclass(frozen=True, kw_only=True)
class Handler:
    """What a decorator says about a function; names and meaning are those of `action` and `automation`."""

    kind: Literal["action", "automation"]
    identifier: str
    function: Callable[..., Any]
    location: SourceLocation
    parameters: Mapping[str, type]
    title: str | None = None
    description: str | None = None
    icon: str | None = None
    blueprint: str | None = None
    operation: Operation = "CREATE"
    trigger: EventTrigger | None = None
    condition: Any = None
    mode: Mode = "async"
    method: Method = "POST"
    agent: bool = False
    scheme: Scheme = "raw"
    payload: Payload = ENVELOPE
    manage: bool = True
    secrets: tuple[str, ...] = ()
    timeout_seconds: float = 0
    privilege_group: str = "default"
    on_interrupt: OnInterrupt = "fail"
    max_attempts: int = 1
    max_concurrency: int = 10
    required_approval: bool | Literal["ANY", "ALL"] | None = None
    approval_notification: Mapping[str, Any] | None = None
    publish: bool | None = None
    allow_anyone_to_view_runs: bool | None = None
    card_button: str | None = None
    execute_button: str | None = None
    permissions: Mapping[str, Any] | None = None
    aws_permissions: tuple[Mapping[str, Any], ...] | PermissionsOf = ()
    kubernetes_permissions: tuple[Mapping[str, Any], ...] | PermissionsOf = ()
    inputs: type[Inputs] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        forms = [kind for kind in self.parameters.values() if issubclass(kind, Inputs)]
        object.__setattr__(self, "inputs", forms[0] if forms else None)

    @property
    def form(self) -> Form:
        """The form of its inputs; an empty one if it takes none."""
        return _NO_INPUTS if self.inputs is None else self.inputs.port_form

    def permissions_in(
        self, target: Literal["aws", "kubernetes"], settings: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        """What it may do in AWS, or in its cluster.

        Args:
            target: where.
            settings: of the handler.

        Raises:
            HandlerDefinitionError: its function made a list that cannot be granted.
            SettingError: its function cannot use the settings.
        """
        declared = self.aws_permissions if target == "aws" else self.kubernetes_permissions
        if not callable(declared):
            return _plain(target, declared)
        made = declared(settings)
        if problem := _permission_problem(target, made):
            raise HandlerDefinitionError(self.location, f"@{self.kind} {self.identifier!r}: {problem}")
        return _plain(target, made)

    @property
    def target(self) -> str:
        """`module:function`, the name under which the listener finds it."""
        return f"{self.function.__module__}:{self.function.__qualname__}"


def handler_of(function: object) -> Handler:
    """The handler that a decorator made of a function.

    Raises:
        LookupError: the function is not decorated.
    """
    handler = getattr(function, ATTRIBUTE, None)
    if not isinstance(handler, Handler):
        raise LookupError(f"{function!r} is no handler; decorate it with @action or @automation")
    return handler


def attach(function: Callable[..., Any], options: Mapping[str, Any], unknown: Mapping[str, object]) -> None:
    """Checks the options of a decorator and remembers them on the function.

    Raises:
        HandlerDefinitionError: an option, or the function's signature, cannot work.
    """
    code = inspect.unwrap(function).__code__
    location = SourceLocation(code.co_filename, code.co_firstlineno)
    kind, identifier = options["kind"], options["identifier"]

    def refuse(problem: str) -> typing.NoReturn:
        raise HandlerDefinitionError(location, f"@{kind} {identifier!r}: {problem}")

    if hasattr(function, ATTRIBUTE):
        refuse("the function is a handler already; give each identifier a function of its own")
    if unknown:
        refuse(_unknown_options(unknown, options))
    checked = dict(options)
    for check in (_check_identity, _check_payload, _check_run, _check_definition):
        if problem := check(checked):
            refuse(problem)
    parameters = _parameters(function, refuse)
    if kind == "automation" and any(issubclass(found, Inputs) for found in parameters.values()):
        refuse("automations have no inputs; read run.event")
    handler = Handler(function=function, location=location, parameters=parameters, **checked)
    try:
        handler.form.check_defaults()
    except ValueError as error:
        refuse(f"inputs {error}")
    if problem := _hidden_input(handler):
        refuse(problem)
    setattr(function, ATTRIBUTE, handler)


def _unknown_options(unknown: Mapping[str, object], options: Mapping[str, Any]) -> str:
    import difflib

    known = sorted(set(options) - {"kind"})
    name = next(iter(unknown))
    close = difflib.get_close_matches(name, known, 1)
    return f"unknown option {name}; " + (
        f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
    )


def _check_identity(options: dict[str, Any]) -> str | None:
    identifier = options["identifier"]
    if not isinstance(identifier, str) or not is_identifier(identifier):
        return "the identifier may hold letters, digits and @ _ . + : = - only (Port's rule)"
    if identifier == _RESERVED:
        return "the identifier is taken by the listener; use another"
    for name, choices in (
        ("operation", typing.get_args(Operation)),
        ("mode", typing.get_args(Mode)),
        ("method", typing.get_args(Method)),
        ("scheme", typing.get_args(Scheme)),
        ("on_interrupt", typing.get_args(OnInterrupt)),
    ):
        if name in options and options[name] not in choices:
            return f"{name} is {options[name]!r}; use one of {', '.join(choices)}"
    if options["scheme"] == "official-agent" and not options["agent"]:
        return "the scheme official-agent needs agent=True: only Port's agent signs that way"
    return None


def _check_payload(options: dict[str, Any]) -> str | None:
    payload, manage = options["payload"], options["manage"]
    if not isinstance(payload, Payload):
        return f"payload is {payload!r}; use a Payload, or one of the payloads module such as payloads.LEGACY"
    if manage not in (None, True, False):
        return f"manage is {manage!r}; True declares it in Port, False leaves that to others"
    options["manage"] = manage = payload == ENVELOPE if manage is None else manage
    if payload.header is not None and options["agent"]:
        return (
            "payload has the run id in a header, and agents pass on bodies: use one that has it in the body"
        )
    if options["method"] == "GET" and not payload.empty_body:
        return "method GET sends no body; it needs a payload with empty_body=True"
    if not manage and options.get("permissions") is not None:
        return "permissions are part of the action in Port, which manage=False leaves to others"
    if manage:
        try:
            foreign_body(options["identifier"], payload, automation=options["kind"] == "automation")
        except ValueError as error:
            return str(error)
    return None


def _hidden_input(handler: Handler) -> str | None:
    if handler.payload.inputs != SPREAD:
        return None
    hidden = sorted(handler.payload.reserved & handler.form.schema()["properties"].keys())
    return (
        f"inputs: {hidden[0]} has another meaning in this payload, whose inputs stand beside it; "
        "rename the input, or place the inputs elsewhere"
        if hidden
        else None
    )


def _check_run(options: dict[str, Any]) -> str | None:
    sync = options["mode"] == "sync"
    if isinstance(options["secrets"], str):
        return f"secrets is text; write secrets=[{options['secrets']!r}]"
    options["secrets"] = tuple(options["secrets"])
    for name in options["secrets"]:
        if not isinstance(name, str) or not is_secret_name(name):
            return f"secrets: {name!r} may hold letters, digits, _ and - only"
    if len(set(options["secrets"])) < len(options["secrets"]):
        return "secrets: a name is listed twice"
    seconds = options["timeout_seconds"]
    if seconds is None:
        seconds = _SYNC_DEFAULT if sync else _ASYNC_DEFAULT
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 86_400:
        return "timeout_seconds must be above 0 and at most 86400"
    if sync and seconds > _SYNC_LIMIT:
        return f"timeout_seconds of a synchronous handler is at most {_SYNC_LIMIT:g}: gateways give up at 30"
    options["timeout_seconds"] = seconds
    if sync and options["on_interrupt"] == "retry":
        return 'on_interrupt="retry" needs mode="async": nobody waits for the second try of a synchronous run'
    attempts = options["max_attempts"]
    if attempts is None:
        attempts = 3 if options["on_interrupt"] == "retry" else 1
    options["max_attempts"] = attempts
    for name in ("max_attempts", "max_concurrency"):
        if isinstance(options[name], bool) or not isinstance(options[name], int) or options[name] < 1:
            return f"{name} must be a whole number from 1"
    if sync and attempts > 1:
        return 'max_attempts above 1 needs mode="async"'
    group = options["privilege_group"]
    if not isinstance(group, str) or not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?", group):
        return "privilege_group may hold up to 32 lower-case letters, digits and - inside"
    for target in ("aws", "kubernetes"):
        declared = options[f"{target}_permissions"]
        # A function is asked when the settings are known.
        if callable(declared):
            continue
        if declared and (problem := _permission_problem(target, declared)):
            return problem
        options[f"{target}_permissions"] = tuple(declared)
    return None


def _permission_problem(target: str, permissions: object) -> str | None:
    from port_webhook_handlers.sdk import aws, kubernetes

    return aws.problem_with(permissions) if target == "aws" else kubernetes.problem_with(permissions)


def _plain(target: str, permissions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    from port_webhook_handlers.sdk import aws, kubernetes

    return [*aws.statements(permissions)] if target == "aws" else kubernetes.rules(permissions)


def _check_definition(options: dict[str, Any]) -> str | None:
    if options["kind"] == "automation":
        if not options["manage"] and options["trigger"] is None:
            return None
        if not isinstance(options["trigger"], EventTrigger):
            return (
                'trigger must be an event of the triggers module, such as triggers.entity_updated("service")'
            )
        condition = options["condition"]
        if isinstance(condition, str):
            options["condition"] = (condition,)
        elif condition is not None and not (
            isinstance(condition, Sequence) and all(isinstance(item, str) for item in condition)
        ):
            return "condition must be a JQ expression or a list of them"
        return None
    if options["manage"] and options["operation"] != "CREATE" and not options["blueprint"]:
        return f"operation {options['operation']} runs on an entity; name its blueprint"
    if options["condition"] is not None and options["operation"] == "CREATE":
        return "condition needs an entity, so operation DAY-2 or DELETE (Port's rule)"
    if options["condition"] is not None and not isinstance(options["condition"], Mapping | list | tuple):
        return "condition must be a list of rules or Port's own object"
    for name in ("card_button", "execute_button"):
        text = options[name]
        if text is not None and (not 2 <= len(text) <= 15 or text != text.strip()):
            return f"{name} has 2 to 15 characters, without blanks around them (Port's rule)"
    if options["required_approval"] not in (None, True, False, "ANY", "ALL"):
        return 'required_approval is True, False, "ANY" or "ALL"'
    permissions = options["permissions"]
    if permissions is not None and (
        not isinstance(permissions, Mapping) or not set(permissions) <= {"execute", "approve"}
    ):
        return "permissions has the keys execute and approve (Port's rule)"
    return None


def _parameters(function: Callable[..., Any], refuse: Callable[[str], typing.NoReturn]) -> dict[str, type]:
    """The parameters to fill, by name; each one is an `Inputs` class or `Run`."""
    # Two frames up from here stands the module (or test) that decorates the function.
    local = dict(sys._getframe(3).f_locals)
    try:
        hints = typing.get_type_hints(function, localns=local)
    except NameError as error:
        refuse(f"{error}; types in the signature must be defined above the function")
    parameters: dict[str, type] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = hints.get(name)
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            refuse(f"parameter {name}: a handler takes its inputs class and Run, by name")
        if kind is None:
            refuse(f"parameter {name} has no type; annotate it with an Inputs class or Run")
        if not isinstance(kind, type) or not (kind is Run or issubclass(kind, Inputs)):
            refuse(f"parameter {name} is {kind!r}; annotate it with an Inputs class or Run")
        if kind is Inputs:
            refuse(f"parameter {name}: derive a class from Inputs and declare the inputs in it")
        if any(issubclass(kind, Run) == issubclass(other, Run) for other in parameters.values()):
            refuse(f"parameter {name}: there is a parameter of that kind already")
        parameters[name] = kind
    return parameters
