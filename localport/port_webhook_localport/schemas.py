"""JSON Schemas of request bodies (Port's rules; unknown keys are refused where Port refuses them)."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from port_webhook_localport.web import invalid_request

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
STRINGS: Schema = {"type": "array", "items": STRING}
NULLABLE_STRING: Schema = {"type": ["string", "null"]}


def closed(required: str = "", /, **properties: Schema) -> Schema:
    """An object with these keys only; `required` names some of them, separated by blanks."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def constant(value: str) -> Schema:
    return {"const": value}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


JQ_QUERY = closed("jqQuery", jqQuery=STRING)
BOOLEAN_OR_JQ: Schema = {"anyOf": [BOOLEAN, JQ_QUERY]}
BOOLEAN_OR_TEMPLATE: Schema = {"anyOf": [BOOLEAN, {"type": "string", "pattern": r"^\s*\{\{[\s\S]*\}\}\s*$"}]}
BUTTON: Schema = {"type": "string", "maxLength": 15, "pattern": r"^\S.*\S$"}
NUMBER_OR_JQ: Schema = {"anyOf": [{"type": "number"}, JQ_QUERY]}

IDENTIFIER: Schema = {"type": "string", "format": "identifier"}
SEARCH_CONDITION = closed(
    "type rules",
    type=constant("SEARCH"),
    combinator=one_of("and", "or"),
    rules={"type": "array", "items": OBJECT},
)
JQ_CONDITION = closed(
    "type expressions", type=constant("JQ"), combinator=one_of("and", "or"), expressions=STRINGS
)

INPUT: Schema = closed(
    "type",
    type=one_of("string", "number", "boolean", "object", "array"),
    title=STRING,
    description=STRING,
    icon=STRING,
    format=one_of(
        "date-time", "url", "email", "ipv4", "ipv6", "yaml", "entity", "user", "team", "proto",
        "markdown", "multi-line", "labeled-url",
    ),
    spec={},
    blueprint=STRING,
    default={},
    enum={"anyOf": [{"type": "array"}, JQ_QUERY]},
    enumColors=OBJECT,
    pattern={"anyOf": [STRING, JQ_QUERY]},
    minLength=NUMBER_OR_JQ,
    maxLength=NUMBER_OR_JQ,
    minimum=NUMBER_OR_JQ,
    maximum=NUMBER_OR_JQ,
    exclusiveMinimum=NUMBER_OR_JQ,
    exclusiveMaximum=NUMBER_OR_JQ,
    items=OBJECT,
    minItems=NUMBER_OR_JQ,
    maxItems=NUMBER_OR_JQ,
    uniqueItems=BOOLEAN,
    properties=OBJECT,
    required={},
    dependsOn=STRINGS,
    visible=BOOLEAN_OR_JQ,
    disabled=BOOLEAN_OR_JQ,
    dataset={"anyOf": [OBJECT, STRING]},
    sort=closed("property order", property=STRING, order=one_of("ASC", "DESC")),
    encryption={
        "anyOf": [
            constant("aes256-gcm"),
            closed("algorithm key", algorithm=constant("client-side"), key=STRING),
        ]
    },
)  # fmt: skip
STEP = closed("title order", title=STRING, order=STRINGS, visible=BOOLEAN_OR_JQ)
TITLE = closed(
    "title",
    title={"type": "string", "minLength": 1, "maxLength": 140},
    description={"type": "string", "maxLength": 1000},
    visible=BOOLEAN_OR_JQ,
)
USER_INPUTS: Schema = {
    **closed(
        "properties",
        properties={
            "type": "object",
            "propertyNames": {"pattern": r"^[A-Za-z0-9@_=\\-]+$"},
            "additionalProperties": INPUT,
        },
        required={"anyOf": [STRINGS, JQ_QUERY]},
        titles={"type": "object", "additionalProperties": TITLE},
        order=STRINGS,
        steps={"type": "array", "items": STEP},
    ),
    "not": {"required": ["order", "steps"]},
}
SELF_SERVICE_TRIGGER = closed(
    "type operation userInputs",
    type=constant("self-service"),
    operation=one_of("CREATE", "DAY-2", "DELETE"),
    blueprintIdentifier=STRING,
    userInputs=USER_INPUTS,
    actionCardButtonText=BUTTON,
    executeActionButtonText=BUTTON,
    condition=SEARCH_CONDITION,
)

ENTITY_EVENTS = ("ENTITY_CREATED", "ENTITY_UPDATED", "ENTITY_DELETED", "ANY_ENTITY_CHANGE")
RUN_EVENTS = ("RUN_CREATED", "RUN_UPDATED", "ANY_RUN_CHANGE")
TIMER_EVENT = "TIMER_PROPERTY_EXPIRED"
_EVENTS: dict[str, Schema] = {
    **{
        name: closed("type blueprintIdentifier", type=constant(name), blueprintIdentifier=STRING)
        for name in ENTITY_EVENTS
    },
    TIMER_EVENT: closed(
        "type blueprintIdentifier propertyIdentifier",
        type=constant(TIMER_EVENT),
        blueprintIdentifier=STRING,
        propertyIdentifier=STRING,
    ),
    **{
        name: closed("type actionIdentifier", type=constant(name), actionIdentifier=STRING)
        for name in RUN_EVENTS
    },
}
AUTOMATION_TRIGGER = closed("type event", type=constant("automation"), event=OBJECT, condition=JQ_CONDITION)

_WEBHOOK = closed(
    "type url",
    type=one_of("WEBHOOK", "SLACK"),
    url=STRING,
    agent=BOOLEAN_OR_TEMPLATE,
    synchronized=BOOLEAN_OR_TEMPLATE,
    method=STRING,
    headers={"type": "object", "additionalProperties": STRING},
    body={"type": ["object", "array"]},
)
_GITHUB_KEYS: dict[str, Schema] = {
    "org": STRING,
    "repo": STRING,
    "workflow": STRING,
    "workflowInputs": OBJECT,
    "reportWorkflowStatus": BOOLEAN_OR_TEMPLATE,
}
INVOCATIONS: dict[str, Schema] = {
    "WEBHOOK": _WEBHOOK,
    "SLACK": _WEBHOOK,
    "KAFKA": closed("type", type=constant("KAFKA"), payload={"type": ["object", "array"]}),
    "GITHUB": closed("type org repo workflow", type=constant("GITHUB"), **_GITHUB_KEYS),
    "INTEGRATION_ACTION": closed(
        "type installationId integrationActionType integrationActionExecutionProperties",
        type=constant("INTEGRATION_ACTION"),
        installationId=STRING,
        integrationActionType=constant("dispatch_workflow"),
        integrationActionExecutionProperties=closed("org repo workflow", **_GITHUB_KEYS),
    ),
    "GITLAB": closed(
        "type projectName groupName",
        type=constant("GITLAB"),
        projectName=STRING,
        groupName=STRING,
        defaultRef=STRING,
        pipelineVariables=OBJECT,
    ),
    "AZURE_DEVOPS": closed(
        "type webhook org",
        type=constant("AZURE_DEVOPS"),
        webhook=STRING,
        org=STRING,
        payload={"type": ["object", "array"]},
    ),
    "UPSERT_ENTITY": closed(
        "type blueprintIdentifier mapping",
        type=constant("UPSERT_ENTITY"),
        blueprintIdentifier=STRING,
        mapping=closed(
            "",
            identifier=STRING,
            title=STRING,
            team={"anyOf": [STRING, STRINGS]},
            icon=STRING,
            properties=OBJECT,
            relations=OBJECT,
        ),
    ),
}

ACTION = closed(
    "identifier trigger invocationMethod",
    identifier=IDENTIFIER,
    title=STRING,
    icon=STRING,
    description=STRING,
    trigger=OBJECT,
    invocationMethod=OBJECT,
    requiredApproval={"anyOf": [BOOLEAN, closed("type", type=one_of("ANY", "ALL"))]},
    approvalNotification={
        "anyOf": [
            closed("type", type=constant("email")),
            closed("type url format", type=constant("webhook"), url=STRING, format=one_of("json", "slack")),
        ]
    },
    publish=BOOLEAN,
    allowAnyoneToViewRuns=BOOLEAN,
)

_POLICY: Schema = {
    "anyOf": [
        {"type": "null"},
        closed(
            "queries conditions",
            queries=OBJECT,
            conditions={"type": "array", "items": STRING, "minItems": 1},
        ),
    ]
}
PERMISSIONS = closed(
    "",
    execute=closed(
        "",
        users=STRINGS,
        roles=STRINGS,
        teams=STRINGS,
        ownedByTeam={"type": ["boolean", "null"]},
        policy=_POLICY,
    ),
    approve=closed("", users=STRINGS, roles=STRINGS, teams=STRINGS, policy=_POLICY),
)

WEBHOOK = closed(
    "",
    identifier=IDENTIFIER,
    title=STRING,
    icon=STRING,
    description=STRING,
    enabled=BOOLEAN,
    security=closed(
        "",
        secret=STRING,
        signatureHeaderName=STRING,
        signatureAlgorithm=STRING,
        signaturePrefix=STRING,
        requestIdentifierPath=STRING,
    ),
    mappings={
        "type": "array",
        "items": closed(
            "blueprint entity",
            blueprint=STRING,
            filter=STRING,
            itemsToParse=STRING,
            operation={
                "anyOf": [
                    one_of("create", "delete"),
                    closed("type", type=one_of("create", "delete"), deleteDependents=BOOLEAN),
                ]
            },
            entity=closed(
                "identifier",
                identifier={},
                title=STRING,
                icon=STRING,
                team={},
                properties=OBJECT,
                relations=OBJECT,
            ),
        ),
    },
)

AUTHENTICATION = closed("clientId clientSecret", clientId=STRING, clientSecret=STRING)
ORGANIZATION = closed("", name={"type": "string", "minLength": 1}, settings=OBJECT)
_SECRET_DESCRIPTION: Schema = {"type": "string", "maxLength": 200}
SECRET = closed(
    "secretName secretValue",
    secretName={"type": "string", "minLength": 1, "maxLength": 100, "pattern": r"^[A-Za-z0-9\-_]*$"},
    secretValue=STRING,
    description=_SECRET_DESCRIPTION,
)
SECRET_CHANGE = closed("", secretValue=STRING, description=_SECRET_DESCRIPTION)

BLUEPRINT: Schema = {
    "type": "object",
    "required": ["identifier", "title", "schema"],
    "properties": {
        "identifier": {"type": "string", "format": "blueprint-identifier", "maxLength": 100},
        "title": {"type": "string", "maxLength": 100},
        "icon": NULLABLE_STRING,
        "description": {"type": ["string", "null"], "maxLength": 200},
        "schema": {
            "type": "object",
            "required": ["properties"],
            "properties": {
                "properties": {
                    "type": "object",
                    "additionalProperties": {
                        "type": "object",
                        "required": ["type"],
                        "properties": {
                            "type": one_of("string", "number", "boolean", "object", "array"),
                        },
                    },
                },
                "required": STRINGS,
            },
        },
        "relations": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["target", "required", "many"],
                "properties": {"target": STRING, "required": BOOLEAN, "many": BOOLEAN},
            },
        },
        "mirrorProperties": OBJECT,
        "calculationProperties": OBJECT,
        "aggregationProperties": OBJECT,
        "changelogDestination": {
            "anyOf": [
                closed("type", type=one_of("KAFKA")),
                closed("type url", type=one_of("WEBHOOK"), url=STRING, agent=BOOLEAN),
                {"type": "null"},
            ]
        },
    },
}

ENTITY: Schema = {
    "type": "object",
    "properties": {
        "identifier": {"type": "string", "format": "entity-identifier", "maxLength": 1000},
        "title": NULLABLE_STRING,
        "icon": NULLABLE_STRING,
        "team": {"anyOf": [NULLABLE_STRING, STRINGS]},
        "properties": OBJECT,
        "relations": OBJECT,
        "blueprint": STRING,
    },
    "additionalProperties": False,
}

EXECUTE = closed("properties", properties=OBJECT, entity=NULLABLE_STRING)
RUN_CHANGE = closed(
    "",
    status=one_of("SUCCESS", "FAILURE"),
    statusLabel=NULLABLE_STRING,
    link={"anyOf": [STRING, STRINGS]},
    summary=STRING,
    message=OBJECT,
    externalRunId=STRING,
)
RUN_LOG = closed(
    "message", message=STRING, terminationStatus=one_of("SUCCESS", "FAILURE"), statusLabel=STRING
)
APPROVAL = closed("status", status=one_of("APPROVE", "DECLINE"), description=STRING)
RUN_RESPONSE = closed("response", response={})
CLAIM = closed(
    "installationId",
    installationId=STRING,
    limit={"type": "integer", "minimum": 1, "maximum": 1000},
    invocationMethod=STRING,
    visibilityTimeoutMs={"type": "integer", "minimum": 1, "maximum": 600_000},
    exclude=STRINGS,
)
ACKNOWLEDGE: Schema = {
    "anyOf": [closed("runIds", runIds=STRINGS), closed("runId", runId=STRING)],
}


def check(schema: Schema, value: Any, where: str = "") -> None:
    """Refuses a body that does not match.

    Args:
        where: prefix of the field's path in the message.

    Raises:
        ApiError: 422 invalid_request naming the field; never quotes the value.
    """
    problem = first_problem(schema, value)
    if problem is not None:
        path, text = problem
        field = ".".join(part for part in (where, path) if part)
        raise invalid_request(f"{field or 'the body'}: {text}")


def check_action(body: Any) -> None:
    """Refuses an action or automation that does not match the schema of its kinds.

    Raises:
        ApiError: 422 invalid_request.
    """
    check(ACTION, body)
    trigger = body["trigger"]
    automation = trigger.get("type") == "automation"
    check(AUTOMATION_TRIGGER if automation else SELF_SERVICE_TRIGGER, trigger, "trigger")
    if automation:
        kind = trigger["event"].get("type")
        if kind not in _EVENTS:
            raise invalid_request(f"trigger.event.type: must be one of {', '.join(_EVENTS)}")
        check(_EVENTS[kind], trigger["event"], "trigger.event")
    method = body["invocationMethod"].get("type")
    if method not in INVOCATIONS:
        raise invalid_request(f"invocationMethod.type: must be one of {', '.join(INVOCATIONS)}")
    check(INVOCATIONS[method], body["invocationMethod"], "invocationMethod")


def first_problem(schema: Schema, value: Any) -> tuple[str, str] | None:
    """Path and description of what is wrong with a value, without quoting it; None when nothing is.

    Args:
        schema: one of this module's, or one that lives as long as the process.
    """
    key = id(schema)
    if key not in _STATIC:
        _STATIC[key] = (schema, _validator(schema))
    return _problem(_STATIC[key][1], value)


def first_problem_by_text(schema_text: str, value: Any) -> tuple[str, str] | None:
    """Like `first_problem`, for a schema made from a stored document, given as JSON text."""
    return _problem(_validator_of_text(schema_text), value)


# A validator takes longer to build than to run. The schema is kept so that its id stays its own.
_STATIC: dict[int, tuple[Schema, Any]] = {}


@lru_cache(maxsize=2048)
def _validator_of_text(schema_text: str) -> Any:
    return _validator(json.loads(schema_text))


def _validator(schema: Schema) -> Any:
    from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

    return Draft202012Validator(schema, format_checker=_formats())


def _problem(validator: Any, value: Any) -> tuple[str, str] | None:
    from jsonschema.exceptions import best_match  # type: ignore[import-untyped]

    error = best_match(validator.iter_errors(value))
    return None if error is None else (".".join(str(part) for part in error.absolute_path), _describe(error))


@lru_cache(maxsize=1)
def _formats() -> Any:
    from port_webhook_localport.formats import FORMATS

    return FORMATS


def _describe(error: Any) -> str:
    kind, wanted = error.validator, error.validator_value
    if kind == "required":
        missing = [name for name in wanted if name not in error.instance]
        return f"{', '.join(missing)} is required"
    if kind == "additionalProperties":
        known = error.schema.get("properties", {})
        return f"unknown key {', '.join(sorted(set(error.instance) - set(known)))}"
    if kind == "type":
        return f"must be of type {wanted if isinstance(wanted, str) else ' or '.join(wanted)}"
    if kind == "enum":
        return f"must be one of {', '.join(str(item) for item in wanted)}"
    if kind in ("const", "format"):
        return f"must be {'a valid ' if kind == 'format' else ''}{wanted}"
    if kind == "pattern":
        return f"must match the pattern {wanted}"
    if kind == "not":
        return f"{' and '.join(wanted.get('required', []))} exclude each other"
    limits = {
        "minLength": "must have at least {} characters",
        "maxLength": "must have at most {} characters",
        "minimum": "must be at least {}",
        "maximum": "must be at most {}",
        "exclusiveMinimum": "must be more than {}",
        "exclusiveMaximum": "must be less than {}",
        "minItems": "must have at least {} items",
        "maxItems": "must have at most {} items",
    }
    return limits.get(kind, f"breaks the rule {kind}").format(wanted)


def defect(schema: Schema) -> str | None:
    """What is wrong with a schema that somebody else wrote, None when it can be used."""
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        return f"{'.'.join(str(part) for part in error.absolute_path)}: {_describe(error)}"
    return _bad_pattern(schema, "")


def _bad_pattern(schema: Any, where: str) -> str | None:
    if not isinstance(schema, dict):
        return None
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        try:
            re.compile(pattern)
        except re.error:
            return f"{where}pattern: is not a regular expression"
    nested = [(f"{where}items.", schema.get("items"))]
    properties = schema.get("properties")
    if isinstance(properties, dict):
        nested += [(f"{where}properties.{name}.", rule) for name, rule in properties.items()]
    return next((found for path, rule in nested if (found := _bad_pattern(rule, path))), None)
