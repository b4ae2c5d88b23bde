"""Definitions written for these tests: every trigger, event, method and option that Port documents."""

from typing import Any


def action(method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    body = {
        "identifier": "deploy",
        "title": "Deploy",
        "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
        "invocationMethod": method,
    }
    return body | changes


def automation(event: dict[str, Any], method: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "identifier": "on_event",
        "trigger": {"type": "automation", "event": event},
        "invocationMethod": method,
        "publish": True,
    } | changes


WEBHOOK = {"type": "WEBHOOK", "url": "https://hooks.example.com/port", "body": {"run": "{{ .run.id }}"}}

INPUTS = {
    "text": {
        "type": "string",
        "title": "Text",
        "description": "d",
        "icon": "Git",
        "pattern": "^a+$",
        "minLength": 1,
        "maxLength": 9,
        "default": "a",
        "dependsOn": ["count"],
        "visible": {"jqQuery": '.form.count == 1 and (.user.email | endswith("@example.com"))'},
        "disabled": False,
    },
    "choice": {
        "type": "string",
        "enum": ["a", "b"],
        "enumColors": {"a": "red", "b": "blue"},
        "default": {"jqQuery": ".entity.title"},
    },
    "dynamic": {"type": "string", "enum": {"jqQuery": '["x", .form.text]'}, "pattern": {"jqQuery": '"^x"'}},
    "service": {
        "type": "string",
        "format": "entity",
        "blueprint": "service",
        "dataset": {
            "combinator": "and",
            "rules": [
                {
                    "property": "$team",
                    "operator": "containsAny",
                    "value": {"jqQuery": "[.user.teams[].name]"},
                },
                {"combinator": "or", "rules": [{"property": "tier", "operator": "=", "value": None}]},
            ],
        },
        "sort": {"property": "$updatedAt", "order": "DESC"},
    },
    "secret": {"type": "string", "encryption": "aes256-gcm", "format": "multi-line"},
    "sealed": {
        "type": "object",
        "encryption": {"algorithm": "client-side", "key": "-----BEGIN PUBLIC KEY-----"},
    },
    "count": {"type": "number", "minimum": 0, "maximum": 10, "enum": [1, 2.5], "default": 1},
    "on": {"type": "boolean", "default": False},
    "rows": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
    "tags": {
        "type": "array",
        "items": {"type": "string", "enum": ["x"], "format": "url"},
        "minItems": 1,
        "maxItems": {"jqQuery": ".form.count"},
        "default": [],
        "uniqueItems": True,
    },
}

METHODS: dict[str, dict[str, Any]] = {
    "webhook": {
        "type": "WEBHOOK",
        "url": "https://example.com/{{ .inputs.text | @uri }}?t={{ .secrets.TOKEN }}",
        "agent": "{{ .inputs.on }}",
        "synchronized": True,
        "method": "PATCH",
        "headers": {"RUN_ID": "{{ .run.id }}"},
        "body": {
            "{{ spreadValue() }}": "{{ .inputs }}",
            "list": [None, 1, {"a": "{{ .trigger | {by, at} }}"}],
        },
    },
    "webhook with a list": {
        "type": "WEBHOOK",
        "url": "https://example.com",
        "body": [{"a": "{{ .run.id }}"}],
    },
    "route": {"type": "WEBHOOK", "url": "route:deploy", "agent": False, "headers": {}, "body": {}},
    "port": {"url": "port-api:/v1/actions/notify/runs", "type": "WEBHOOK", "synchronized": True, "body": {}},
    "kafka": {"type": "KAFKA", "payload": {"run": "{{ .run.id }}"}},
    "kafka without payload": {"type": "KAFKA"},
    "github": {
        "type": "GITHUB",
        "org": "o",
        "repo": "r",
        "workflow": "w.yml",
        "workflowInputs": {"n": 1, "port_context": {"runId": "{{ .run.id }}"}},
        "reportWorkflowStatus": "{{ .inputs.on }}",
    },
    "gitlab": {
        "type": "GITLAB",
        "projectName": "p",
        "groupName": "g",
        "defaultRef": "main",
        "pipelineVariables": {"RUN": "{{ .run.id }}"},
    },
    "azure": {"type": "AZURE_DEVOPS", "webhook": "w", "org": "o", "payload": {"run": "{{ .run.id }}"}},
    "upsert": {
        "type": "UPSERT_ENTITY",
        "blueprintIdentifier": "service",
        "mapping": {
            "identifier": "{{ .inputs.text }}",
            "title": "t",
            "icon": None,
            "team": ["a"],
            "properties": {'{{ if .inputs.on then "on" else null end }}': "{{ .inputs.count }}"},
            "relations": {"system": "{{ .inputs.service.identifier }}"},
        },
    },
    "upsert with one team": {
        "type": "UPSERT_ENTITY",
        "blueprintIdentifier": "service",
        "mapping": {"identifier": "i", "team": "{{ .inputs.text }}"},
    },
    "integration": {
        "type": "INTEGRATION_ACTION",
        "installationId": "i",
        "integrationActionType": "dispatch_workflow",
        "integrationActionExecutionProperties": {
            "org": "o",
            "repo": "r",
            "workflow": "w.yml",
            "workflowInputs": {"a": "{{ .inputs.text }}"},
            "reportWorkflowStatus": True,
        },
    },
}

EVENTS: list[dict[str, Any]] = [
    {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"},
    {"type": "ENTITY_UPDATED", "blueprintIdentifier": "service"},
    {"type": "ENTITY_DELETED", "blueprintIdentifier": "service"},
    {"type": "ANY_ENTITY_CHANGE", "blueprintIdentifier": "service"},
    {"type": "TIMER_PROPERTY_EXPIRED", "blueprintIdentifier": "service", "propertyIdentifier": "ttl"},
    {"type": "RUN_CREATED", "actionIdentifier": "deploy"},
    {"type": "RUN_UPDATED", "actionIdentifier": "deploy"},
    {"type": "ANY_RUN_CHANGE", "actionIdentifier": "deploy"},
]

_FORM = {"properties": INPUTS, "required": ["text"], "order": ["text", "choice", "heading"]}

VALID: dict[str, dict[str, Any]] = {
    **{
        name: action(
            method,
            trigger={
                "type": "self-service",
                "operation": "DAY-2",
                "blueprintIdentifier": "service",
                "userInputs": {"properties": INPUTS, "required": [], "order": []},
            },
        )
        for name, method in METHODS.items()
    },
    **{event["type"]: automation(event, WEBHOOK) for event in EVENTS},
    "headings": action(
        WEBHOOK,
        trigger={
            "type": "self-service",
            "operation": "CREATE",
            "blueprintIdentifier": "service",
            "userInputs": {
                **_FORM,
                "titles": {"heading": {"title": "H", "description": "d", "visible": True}},
            },
            "actionCardButtonText": "Deploy",
            "executeActionButtonText": "Go",
        },
    ),
    "steps": action(
        WEBHOOK,
        trigger={
            "type": "self-service",
            "operation": "CREATE",
            "userInputs": {
                "properties": INPUTS,
                "required": {"jqQuery": '["text"]'},
                "steps": [
                    {"title": "One", "order": ["text"]},
                    {"title": "Two", "order": [], "visible": {"jqQuery": ".form.on"}},
                ],
            },
        },
    ),
    "search condition": action(
        WEBHOOK,
        trigger={
            "type": "self-service",
            "operation": "DELETE",
            "blueprintIdentifier": "service",
            "userInputs": {"properties": {}},
            "condition": {
                "type": "SEARCH",
                "combinator": "and",
                "rules": [{"property": "tier", "operator": "=", "value": "gold"}],
            },
        },
    ),
    "jq condition": automation(
        EVENTS[1],
        WEBHOOK,
        trigger={
            "type": "automation",
            "event": EVENTS[1],
            "condition": {
                "type": "JQ",
                "combinator": "or",
                "expressions": [".diff.before.properties.tier != .diff.after.properties.tier"],
            },
        },
    ),
    "approval by all": action(
        WEBHOOK,
        requiredApproval={"type": "ALL"},
        approvalNotification={"type": "webhook", "url": "https://example.com", "format": "slack"},
    ),
    "approval": action(
        WEBHOOK,
        icon="Git",
        description="d",
        requiredApproval=True,
        approvalNotification={"type": "email"},
        publish=True,
        allowAnyoneToViewRuns=False,
    ),
    "explicit defaults": action(
        {
            "type": "WEBHOOK",
            "url": "https://e.example",
            "agent": False,
            "synchronized": False,
            "headers": {},
            "body": {},
        },
        requiredApproval=False,
    ),
}

ODD: dict[str, Any] = {
    "nothing": {},
    "fragment": {"trigger": {"type": "automation"}},
    "null everywhere": {"identifier": None, "trigger": None, "invocationMethod": None, "title": None},
    "version 1": {
        "identifier": "a",
        "trigger": "CREATE",
        "userInputs": {"properties": {}},
        "invocationMethod": {"type": "AZURE-DEVOPS", "omitPayload": True},
    },
    "slack": action({"type": "SLACK", "url": "<URL>", "body": {"text": "{{ .run.id }}"}}),
    "unknown method": action({"kind": "?"}),
    "method of a wrong type": action("WEBHOOK"),  # type: ignore[arg-type]
    "unknown trigger": {"identifier": "a", "trigger": {"type": "cron", "at": 5}},
    "unknown keys": action(WEBHOOK | {"retries": 3}, owner="me"),
    "inputs as a list": action(
        WEBHOOK, trigger={"type": "self-service", "operation": "CREATE", "userInputs": {"properties": [1]}}
    ),
    "input without a type": action(
        WEBHOOK,
        trigger={
            "type": "self-service",
            "operation": "CREATE",
            "userInputs": {"properties": {"a": {}, "b": {"type": "file"}, "c": {"type": 5, "title": ["x"]}}},
        },
    ),
    "half a query": action(
        WEBHOOK,
        trigger={
            "type": "self-service",
            "operation": "CREATE",
            "userInputs": {
                "properties": {"a": {"type": "string", "default": {"jqQuery": 1}, "visible": "yes"}}
            },
        },
    ),
    "empty strings": action({"type": "WEBHOOK", "url": ""}, identifier="", title=""),
}
