"""PW3xx: JQ expressions and `{{ … }}` templates."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from port_webhook_handlers.port.definitions import Action, Automation, JqCondition, JqQuery
from port_webhook_handlers.port.definitions.node import join
from port_webhook_handlers.port.lint.finding import Context, Finding, suggestion
from port_webhook_handlers.port.lint.forms import form_names
from port_webhook_handlers.port.lint.jq import JqMissingError, judge, strings
from port_webhook_handlers.port.lint.structure import walk
from port_webhook_handlers.port.templates import TemplateError, parse_template, templates

SPREAD = "spreadValue()"

_RULES = {"syntax": "PW301", "dialect": "PW302", "placeholder": "PW305"}
_FIRST_PATH = re.compile(r"[\s(\[{]*\.([A-Za-z_]\w*)")
# `.inputs.x`, `.inputs["x"]`, `.inputs."x"` and `.inputs | has("x")`, but not `.event.inputs.x`.
_MEMBER = re.compile(
    r"""(?<![\w"\])?.])\.(?P<root>inputs|form|secrets)
        (?: \.?\s*\[\s*"(?P<bracket>[^"\\]*)"\s*\] | \."(?P<quoted>[^"\\]*)" | \.(?P<plain>[A-Za-z_]\w*)
          | \s*\|\s*has\(\s*"(?P<has>[^"\\]*)"\s*\) )""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Use:
    """An expression where it stands.

    Attributes:
        place: `template` (invocation), `condition` (of an automation) or `form`.
    """

    path: str
    jq: str
    place: str


# What an expression can see, by where it stands.
_ROOTS = {
    "condition": {"action", "resourceType", "trigger", "context", "diff", "id", "status"},
    "form": {"form", "entity", "user"},
    "action": {"inputs", "trigger", "entity", "action", "run", "secrets"},
    "automation": {"event", "trigger", "action", "run", "secrets"},
}
_HINTS = {
    ("condition", "event"): "start at .diff, .context or .trigger: a condition sees the event itself",
    ("automation", "diff"): "write .event.diff: only conditions see the event itself",
    ("automation", "context"): "write .event.context: only conditions see the event itself",
    ("automation", "inputs"): "use .event: an automation has no form",
    ("automation", "entity"): "use .event.diff.after or .event.context",
    ("action", "event"): "use .inputs, .entity or .trigger: a self-service action has no event",
    ("form", "inputs"): "use .form: inputs have no values yet while the form is open",
}


def check(context: Context) -> Iterator[Finding]:
    """Every expression: compiled, its root known, inputs and secrets declared."""
    missing_jq = False
    for item in _uses(context):
        if isinstance(item, Finding):
            yield item
            continue
        try:
            verdict = judge(item.jq)
        except JqMissingError:
            missing_jq, verdict = True, None
        if verdict is not None:
            report = context.error if verdict.kind == "syntax" else context.warning
            yield report(_RULES[verdict.kind], item.path, verdict.message, verdict.remedy)
        yield from _root(context, item)
        yield from _members(context, item)
    if missing_jq:
        yield context.warning(
            "PW300", "invocationMethod", "was not checked for jq", "install the package jq (extra: lint)"
        )


def uses(context: Context) -> Iterator[Use]:
    """The readable expressions of a definition."""
    return (item for item in _uses(context) if isinstance(item, Use))


def _uses(context: Context) -> Iterator[Use | Finding]:
    for path, text, is_key in templates(context.body.get("invocationMethod"), "invocationMethod"):
        try:
            expressions = parse_template(text).expressions
        except TemplateError as error:
            yield context.error("PW303", path, str(error), "write {{ <jq> }}")
            continue
        for expression in expressions:
            if expression.jq.replace(" ", "") == SPREAD:
                if not is_key:
                    yield context.warning(
                        "PW302", path, f"{SPREAD} is a value", "Port documents it as a key only"
                    )
                continue
            yield Use(path, expression.jq, "template")
    for path, node in walk(context.definition):
        match node:
            case JqCondition(expressions=tuple() as conditions):
                for number, jq in enumerate(conditions):
                    yield Use(join(join(path, "expressions"), number), jq, "condition")
            case JqQuery(jq_query=str() as jq) if jq:
                yield Use(join(path, "jqQuery"), jq, "form")


def _root(context: Context, use: Use) -> Iterator[Finding]:
    place = use.place
    if place == "template":
        place = "automation" if isinstance(context.definition, Automation) else "action"
    match = _FIRST_PATH.match(use.jq)
    known = _ROOTS[place]
    if match is None or match[1] in known:
        return
    root = match[1]
    remedy = _HINTS.get((place, root)) or suggestion(
        root, known, f"start at one of {', '.join(f'.{name}' for name in sorted(known))}"
    )
    yield context.warning("PW304", use.path, f"starts at .{root}, which is not there", remedy)


def members(use: Use) -> Iterator[tuple[str, str]]:
    """The members of `.inputs`, `.form` and `.secrets` that an expression reads, as (root, name)."""
    literals = strings(use.jq)
    for match in _MEMBER.finditer(use.jq):
        if not any(start < match.start() < end for start, end in literals):
            name = next(
                value for key, value in match.groupdict().items() if key != "root" and value is not None
            )
            yield match["root"], name


def _members(context: Context, use: Use) -> Iterator[Finding]:
    form = form_names(context.body) if isinstance(context.definition, Action) else None
    secrets = context.known.secrets
    for root, name in dict.fromkeys(members(use)):
        if root == "secrets":
            if secrets is not None and name not in secrets:
                yield context.error(
                    "PW307",
                    use.path,
                    f"reads the secret {name!r}, which nobody declares",
                    suggestion(name, secrets, "declare it, or create it in Port"),
                )
        elif form is not None and name not in form:
            remedy = suggestion(name, form, "add the input, or leave the expression out")
            # Port evaluates it to null, which an author may want; a near miss is a typing error.
            report = context.error if remedy.startswith("did you mean") else context.warning
            yield report("PW306", use.path, f"reads the input {name!r}, which the form lacks", remedy)
