"""All actions and automations of a stack: gathered, linted as a whole, and named for their environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pulumi
from pulumi.runtime.rpc import UNKNOWN

from port_webhook_handlers.bundle import Bundle
from port_webhook_handlers.port.definitions import DefinitionError, definition_from_body
from port_webhook_handlers.port.lint import RULES, BlueprintShape, Finding, Known, lint
from port_webhook_handlers.port.names import action_run_by
from port_webhook_stack import definition_files
from port_webhook_stack.catalog import renamed
from port_webhook_stack.definition_files import DefinitionFileError
from port_webhook_stack.errors import DefinitionsError, SettingsError
from port_webhook_stack.organisation import Organisation
from port_webhook_stack.port.resources import Definition, HasBody
from port_webhook_stack.settings import MODULE, Settings

Body = Mapping[str, Any]

# What an organisation has that nobody looked at is not wrong to name.
_NEEDS_SECRETS, _NEEDS_BLUEPRINTS, _NEEDS_ACTIONS = "PW307", "PW404", "PW406"


@dataclass(frozen=True)
class Declared:
    """A definition as it was written: Port's body, perhaps with outputs in it and symbolic URLs."""

    body: Body
    source: str | None = None


def gather(settings: Settings, bundle: Bundle, given: Iterable[Definition]) -> list[Declared]:
    """The definitions of handlers, of the program and of the files that the settings name, in this order.

    Raises:
        SettingsError: a file cannot be read.
    """
    found = [
        Declared(_in_catalog(body, bundle, settings), bundle.routes.get(identifier, {}).get("source"))
        for identifier, body in bundle.definitions.items()
    ]
    for item in given:
        body = item.to_body() if isinstance(item, HasBody) else item
        found.append(Declared(body, getattr(item, "source", None)))
    try:
        files = definition_files.find(settings.definitions, settings.project)
        for file in files:
            for definition in definition_files.read(file):
                source = f"{_shown(file, settings)}:{definition.line()}"
                found.append(Declared(definition.body, source))
    except DefinitionFileError as error:
        raise SettingsError(
            f"{MODULE}:definitions", str(error), "Paths start at the folder of Pulumi.yaml"
        ) from None
    return found


def _in_catalog(body: Body, bundle: Bundle, settings: Settings) -> Body:
    """A definition with the organisation's names of blueprints, if it is one of a bundled handler."""
    handler = str(bundle.routes.get(str(body["identifier"]), {}).get("handler", ""))
    if not settings.catalog or not handler.startswith("port_webhook_handlers.bundled."):
        return body
    return renamed(body, settings)


def check(
    declared: Sequence[Declared],
    settings: Settings,
    *,
    blueprints: Sequence[Body] = (),
    routes: Iterable[str] = (),
    unmanaged: Iterable[str] = (),
    organisation: Organisation | None = None,
) -> list[Finding]:
    """Lints the whole set.

    Args:
        declared: all definitions of the stack.
        settings: names the rules to leave out and the secrets that the stack creates in Port.
        blueprints: bodies that the stack creates or expects.
        routes: names of the routes that handlers serve.
        unmanaged: those of them whose definitions others keep in Port.
        organisation: what exists in Port; None if nobody looked.

    Returns:
        The warnings.

    Raises:
        DefinitionsError: lint finds errors; the message lists all of them.
        SettingsError: `lintDisabled` names a rule that does not exist.
    """
    organisation = organisation or Organisation()
    disabled = {*settings.lint_disabled}
    if strange := sorted(disabled - RULES.keys()):
        raise SettingsError(
            f"{MODULE}:lintDisabled", f"{strange[0]} is no rule of lint", "docs/lint-rules.md lists them"
        )
    disabled |= {_NEEDS_BLUEPRINTS} if organisation.blueprints is None else set()
    disabled |= {_NEEDS_SECRETS} if organisation.secrets is None else set()
    disabled |= {_NEEDS_ACTIONS} if organisation.actions is None else set()
    known = Known(
        secrets={*settings.port_secrets, *(organisation.secrets or ())},
        blueprints=_shapes(settings, blueprints, organisation.blueprints or {}),
        actions=organisation.actions or (),
        routes=[*routes],
        unmanaged=[*unmanaged],
    )
    findings = lint([_typed(item) for item in declared], known=known, disable=disabled, unknown=UNKNOWN)
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        noun = "error" if len(errors) == 1 else "errors"
        raise DefinitionsError(
            f"lint finds {len(errors)} {noun} in the definitions, and nothing was changed:\n"
            + "\n".join(f"  {finding}" for finding in errors)
            + f"\ndocs/lint-rules.md explains each rule; {MODULE}:lintDisabled leaves rules out."
        )
    return [finding for finding in findings if finding.severity == "warning"]


def by_identifier(declared: Sequence[Declared]) -> dict[str, Body]:
    """Bodies by identifier.

    Raises:
        DefinitionsError: an identifier is missing, not known before the deployment, or there twice.
    """
    found: dict[str, Body] = {}
    for item in declared:
        identifier = item.body.get("identifier")
        where = f"{item.source}: " if item.source else ""
        if not isinstance(identifier, str) or not identifier:
            raise DefinitionsError(f"{where}a definition has no identifier; write it as a plain string")
        if identifier in found:
            raise DefinitionsError(f"{where}{identifier}: another definition has this identifier; rename one")
        found[identifier] = item.body
    return found


def with_suffix(bodies: Mapping[str, Body], suffix: str) -> dict[str, dict[str, Any]]:
    """Bodies by their own identifier, with `suffix` behind every identifier in them that is one of the set.

    Environments that share an organisation differ in it. Renamed are the definitions themselves, the actions whose
    runs start an automation, and the actions that are executed through Port's API. The envelope's
    `port_context.action` stays: it names the handler.
    """
    return {name: _renamed(body, bodies.keys(), suffix) for name, body in bodies.items()}


def _renamed(body: Body, names: Iterable[str], suffix: str) -> dict[str, Any]:
    known = frozenset(names)
    copy = {**body, "identifier": f"{body['identifier']}{suffix}"}
    trigger = body.get("trigger", {})
    event = trigger.get("event", {})
    if event.get("actionIdentifier") in known:
        renamed = {**event, "actionIdentifier": f"{event['actionIdentifier']}{suffix}"}
        copy["trigger"] = {**trigger, "event": renamed}
    method = body.get("invocationMethod", {})
    url = method.get("url")
    called = action_run_by(url) if isinstance(url, str) else None
    if called in known:
        name = quote(f"{called}{suffix}", safe="")
        changed = re.sub(r"(/v1/actions/)[^/?]+", lambda match: f"{match[1]}{name}", url, count=1)
        copy["invocationMethod"] = {**method, "url": changed}
    return copy


def _typed(item: Declared) -> Any:
    try:
        return definition_from_body(_plain(item.body)).replace(source=item.source)
    except DefinitionError:
        return item.body  # no object at all: lint says so


def _plain(value: Any) -> Any:
    # Of an output of another resource lint says nothing.
    if isinstance(value, pulumi.Output):
        return UNKNOWN
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _shapes(
    settings: Settings, declared: Sequence[Body], present: Mapping[str, Body]
) -> dict[str, BlueprintShape]:
    """What blueprints have once the stack is deployed: its own word counts where it writes them."""
    bodies: dict[str, Body] = dict(present)
    for body in declared:
        before = present.get(body["identifier"], {})
        ours = settings.blueprints == "create"
        bodies[body["identifier"]] = {**before, **body} if ours else {**body, **before}
    return Known.shapes(_plain(body) for body in bodies.values())


def _shown(file: Any, settings: Settings) -> str:
    return str(file.relative_to(settings.project) if file.is_relative_to(settings.project) else file)
