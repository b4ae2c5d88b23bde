"""Lint: what can be known to be wrong with definitions before Port sees them.

docs/lint-rules.md explains each rule.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from port_webhook_handlers.port.definitions import (
    Action,
    Automation,
    Definition,
    DefinitionError,
    Json,
    definition_from_body,
)
from port_webhook_handlers.port.definitions.node import join
from port_webhook_handlers.port.lint import expressions, forms, references, structure
from port_webhook_handlers.port.lint.finding import BlueprintShape, Context, Finding, Known, Severity

__all__ = ["RULES", "BlueprintShape", "Finding", "Known", "Severity", "lint"]

RULES: Final[Mapping[str, str]] = {
    "PW100": "a definition is a JSON object",
    "PW101": "keys are those of Port",
    "PW102": "required keys are there",
    "PW103": "values have the right JSON type",
    "PW104": "values are among those that Port documents",
    "PW105": "identifiers and input names match Port's pattern",
    "PW106": "the invocation method is one that Port's API reference lists",
    "PW107": "a flag is a boolean or one template",
    "PW108": "button texts have 2 to 15 characters",
    "PW201": "a form has order or steps, not both",
    "PW202": "order, required, steps and dependsOn name inputs of the form",
    "PW203": "DAY-2 and DELETE name a blueprint",
    "PW204": "a CREATE action has no condition",
    "PW205": "the condition is of the kind that the trigger takes",
    "PW206": "step titles have at most 25 characters",
    "PW300": "jq is installed, so that expressions can be checked",
    "PW301": "expressions are jq",
    "PW302": "expressions are jq, not only Port's dialect of it",
    "PW303": "templates are closed and not empty",
    "PW304": "expressions start at something that is there",
    "PW305": "expressions hold no placeholders",
    "PW306": "inputs that are read are in the form",
    "PW307": "secrets that are read are declared",
    "PW401": "an automation that calls Port's API is synchronized",
    "PW402": "identifiers are unique",
    "PW403": "an automation does not start itself",
    "PW404": "blueprints exist",
    "PW405": "properties and relations exist in their blueprint",
    "PW406": "actions that are named exist",
    "PW407": "a route has a handler",
    "PW408": "a handler has a definition",
}
"""What each rule demands, by id."""

_CHECKS: Final = (structure.check, forms.check, expressions.check, references.check)


def lint(
    definitions: Sequence[Definition | Mapping[str, Json]],
    *,
    known: Known | None = None,
    disable: Collection[str] = (),
    unknown: str | None = None,
) -> list[Finding]:
    """Examine a whole set of definitions, without any look-up.

    Args:
        definitions: typed, or bodies as Port's API takes them.
        known: what exists besides them; what is not known is not checked.
        disable: ids of rules to leave out.
        unknown: a text that stands for a value not known yet; nothing is said about such values.

    Returns:
        Findings in the order of the definitions.

    Raises:
        ValueError: `disable` names a rule that does not exist.
    """
    if strange := sorted(set(disable) - RULES.keys()):
        raise ValueError(f"lint has no rule {strange[0]}; docs/lint-rules.md lists them")
    findings: list[Finding] = []
    typed: list[Definition] = []
    for number, item in enumerate(definitions):
        try:
            typed.append(item if isinstance(item, Action | Automation) else definition_from_body(item))
        except DefinitionError as error:
            where = error.path if isinstance(item, Mapping) else f"definitions[{number}]"
            findings.append(Finding("PW100", "error", where, error.problem, error.remedy, _identifier(item)))
    identifiers = frozenset(definition.identifier for definition in typed)
    known = known or Known()
    contexts = [Context(item, item.to_body(), known, identifiers) for item in typed]
    for context in contexts:
        hidden = set() if unknown is None else set(_paths_of(context.body, unknown, ""))
        for check in _CHECKS:
            findings += (finding for finding in check(context) if finding.path not in hidden)
    findings += references.check_set(contexts, known)
    return [finding for finding in findings if finding.rule not in disable]


def _identifier(item: object) -> str:
    identifier = item.get("identifier") if isinstance(item, Mapping) else None
    return identifier if isinstance(identifier, str) else ""


def _paths_of(value: Json, wanted: str, path: str) -> Iterator[str]:
    match value:
        case str():
            if value == wanted:
                yield path
        case dict():
            for key, item in value.items():
                yield from _paths_of(item, wanted, join(path, key))
        case list():
            for index, item in enumerate(value):
                yield from _paths_of(item, wanted, join(path, index))
