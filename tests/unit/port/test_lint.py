import json
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.contract.definitions import EVENTS, VALID, WEBHOOK, action, automation
from tests.contract.test_definitions import JSON, corpus, shaped

from port_webhook_handlers.port import port_api
from port_webhook_handlers.port.builders import entity_updated, run_updated, self_service
from port_webhook_handlers.port.definitions import Action, Automation, NumberInput, StringInput, Webhook
from port_webhook_handlers.port.envelope import action_webhook, automation_webhook
from port_webhook_handlers.port.lint import RULES, BlueprintShape, Finding, Known, lint
from port_webhook_handlers.port.lint.jq import judge
from port_webhook_handlers.port.names import Route

DOCS = Path(__file__).parents[3] / "docs" / "lint-rules.md"
SECTIONS = {
    rule: (severity, json.loads(example))
    for rule, severity, example in re.findall(
        r"^### (PW\d{3}) \(([a-z ]+)\)\n.*?^```json\n(.*?)^```$", DOCS.read_text(), re.DOTALL | re.MULTILINE
    )
}


def run(example):
    """Lint a documented example: a definition, a list of them, or definitions with what is known."""
    known = None
    if isinstance(example, dict) and "definitions" in example:
        facts = dict(example["known"])
        if "blueprints" in facts:
            facts["blueprints"] = Known.shapes(facts["blueprints"])
        known, example = Known(**facts), example["definitions"]
    return lint(example if isinstance(example, list) else [example], known=known)


def test_every_rule_is_documented():
    assert list(SECTIONS) == list(RULES)


@pytest.mark.parametrize("rule", RULES)
def test_each_example_breaks_its_rule_and_no_other(rule, monkeypatch):
    severity, example = SECTIONS[rule]
    if rule == "PW300":
        monkeypatch.setitem(sys.modules, "jq", None)
        judge.cache_clear()
    findings = run(example)
    assert {finding.rule for finding in findings} == {rule}, [str(finding) for finding in findings]
    assert {finding.severity for finding in findings} <= set(severity.split(" or "))
    for finding in findings:
        assert finding.path
        assert finding.message
        assert finding.remedy


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_can_be_switched_off(rule):
    example = SECTIONS[rule][1]
    items = example["definitions"] if isinstance(example, dict) and "definitions" in example else example
    assert lint(items if isinstance(items, list) else [items], disable={rule}) == []


def test_switching_off_a_rule_that_does_not_exist():
    with pytest.raises(ValueError, match="no rule PW999"):
        lint([], disable=["PW999"])


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in VALID.items()])
def test_valid_definitions_have_no_findings(body):
    findings = lint([body])
    assert [str(finding) for finding in findings if "icon: is null" not in str(finding)] == []


# Port's API takes CREATE, DAY-2 and DELETE only; one page of the documentation shows another operation.
WRONG_IN_THE_DOCUMENTATION = {("stop_azure_webapp", "trigger.operation", "PW104")}


@pytest.mark.parametrize("body", corpus())
def test_documentation_has_no_errors(body):
    errors = {(f.definition, f.path, f.rule) for f in lint([body]) if f.severity == "error"}
    assert errors <= WRONG_IN_THE_DOCUMENTATION


def only(findings):
    assert len(findings) == 1, [str(finding) for finding in findings]
    return findings[0]


def found(body, **options):
    return only(lint([body], **options))


def webhook(**keys):
    return action({**WEBHOOK, **keys})


def form(**properties):
    return {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": properties}}


def with_body(expression, **properties):
    return action({**WEBHOOK, "body": {"x": expression}}, trigger=form(**properties))


def test_a_finding_says_where_what_and_how():
    deploy = Action(
        "deploy",
        trigger=self_service("CREATE"),
        invocation_method=Webhook("u", extra={"sync": True}),
        source="d.py:3",
    )
    finding = only(lint([deploy]))
    assert finding == Finding(
        "PW101",
        "error",
        "invocationMethod.sync",
        "is not a key of type WEBHOOK",
        "write one of url, agent, synchronized, method, headers, body, type",
        "deploy",
        "d.py:3",
    )
    assert str(finding).startswith("d.py:3: deploy: invocationMethod.sync: is not a key")
    assert str(finding).endswith("[PW101 error]")


@pytest.mark.parametrize(
    ("body", "rule", "severity", "path", "remedy"),
    [
        (webhook(synchronised=True), "PW101", "error", "invocationMethod.synchronised", "synchronized"),
        (action(WEBHOOK, createdAt="x"), "PW101", "error", "createdAt", "leave it out"),
        (
            with_body("x", a={"type": "string", "patern": "x"}),
            "PW101",
            "error",
            "trigger.userInputs.properties.a.patern",
            "pattern",
        ),
        (
            with_body("x", a={"type": "string", "examples": ["x"]}),
            "PW101",
            "warning",
            "trigger.userInputs.properties.a.examples",
            "write one of",
        ),
        (
            with_body("x", a={"type": "number", "maxLength": 3}),
            "PW101",
            "warning",
            "trigger.userInputs.properties.a.maxLength",
            "change the type",
        ),
        (
            action({"type": "GITHUB", "org": "o", "repo": "r"}),
            "PW102",
            "error",
            "invocationMethod.workflow",
            "write",
        ),
        (
            automation({"type": "TIMER_PROPERTY_EXPIRED", "blueprintIdentifier": "b"}, WEBHOOK),
            "PW102",
            "error",
            "trigger.event.propertyIdentifier",
            "TIMER_PROPERTY_EXPIRED",
        ),
        (
            with_body("x", a={"type": "string", "format": "entity"}),
            "PW102",
            "error",
            "trigger.userInputs.properties.a.blueprint",
            "blueprint",
        ),
        (
            action(WEBHOOK, approvalNotification={"type": "webhook", "url": "u"}),
            "PW102",
            "error",
            "approvalNotification.format",
            "needs it",
        ),
        (webhook(body=None), "PW103", "warning", "invocationMethod.body", "leave the key out"),
        (action(WEBHOOK, identifier=None), "PW102", "error", "identifier", "write it"),
        (webhook(headers={"A": 1}), "PW103", "error", "invocationMethod.headers.A", "a string"),
        (
            with_body("x", a={"type": "string", "visible": "yes"}),
            "PW103",
            "error",
            "trigger.userInputs.properties.a.visible",
            "true or false",
        ),
        (webhook(method="TRACE"), "PW104", "warning", "invocationMethod.method", "POST"),
        (webhook(method="post"), "PW104", "error", "invocationMethod.method", "POST"),
        (
            with_body("x", a={"type": "string", "format": "emial"}),
            "PW104",
            "error",
            "trigger.userInputs.properties.a.format",
            "email",
        ),
        (
            automation({"type": "ENTITY_CHANGED"}, WEBHOOK),
            "PW104",
            "error",
            "trigger.event.type",
            "did you mean",
        ),
        (action(WEBHOOK, trigger={"type": "automaton"}), "PW104", "error", "trigger.type", "automation"),
        (
            with_body("x", **{"a.b": {"type": "string"}}),
            "PW105",
            "error",
            "trigger.userInputs.properties['a.b']",
            "ASCII",
        ),
        (action({"type": "KAFKAA"}), "PW106", "warning", "invocationMethod.type", "KAFKA"),
        (webhook(agent="{{ .a }} {{"), "PW107", "error", "invocationMethod.agent", "one {{"),
        (
            with_body("{{ .inputs.cluster-name }}", **{"cluster-name": {"type": "string"}}),
            "PW301",
            "error",
            None,
            '["',
        ),
        (with_body("{{ .run.id | tostrng }}"), "PW302", "warning", "invocationMethod.body.x", "tostring"),
        (with_body("{{ spreadValue() }}"), "PW302", "warning", "invocationMethod.body.x", "key"),
        (with_body("{{ .input.a }}"), "PW304", "warning", "invocationMethod.body.x", "inputs"),
        (
            automation(EVENTS[0], {**WEBHOOK, "body": ["{{ .diff.after }}"]}),
            "PW304",
            "warning",
            "invocationMethod.body[0]",
            ".event.diff",
        ),
        (with_body("{{ .event.diff }}"), "PW304", "warning", "invocationMethod.body.x", "no event"),
        (
            with_body('{{ .inputs["verison"] }}', version={"type": "string"}),
            "PW306",
            "error",
            None,
            "version",
        ),
        (with_body('{{ .inputs."verison" }}', version={"type": "string"}), "PW306", "error", None, "version"),
        (
            with_body('{{ .inputs | has("verison") }}', version={"type": "string"}),
            "PW306",
            "error",
            None,
            "version",
        ),
        (
            with_body("{{ .inputs.other }}", version={"type": "string"}),
            "PW306",
            "warning",
            None,
            "add the input",
        ),
        (
            with_body("x", a={"type": "string", "visible": {"jqQuery": ".form.bb"}}, cc={"type": "string"}),
            "PW306",
            "warning",
            "trigger.userInputs.properties.a.visible.jqQuery",
            "add",
        ),
        (
            with_body("x", a={"type": "string", "default": {"jqQuery": ".inputs.a"}}),
            "PW304",
            "warning",
            "trigger.userInputs.properties.a.default.jqQuery",
            ".form",
        ),
    ],
)
def test_single_findings(body, rule, severity, path, remedy):
    findings = [f for f in lint([body]) if f.rule == rule]
    finding = only(findings)
    assert finding.severity == severity
    assert path is None or finding.path == path
    assert remedy in finding.remedy


def test_keys_are_checked_too():
    body = action({**WEBHOOK, "body": {"{{ if .inputs.a then }}": 1, "{{ spreadValue() }}": "{{ .inputs }}"}})
    assert found(body, disable=["PW306"]).rule == "PW301"


@pytest.mark.parametrize(
    "expression",
    [
        ".inputs",
        '.inputs."from"',
        ".trigger | {by, origin, at}",
        "(if .entity == {} then null else .entity end)",
        '.action.identifier[("vm_" | length):]',
        '.inputs.a | if type == "array" then map(.identifier) else .identifier end',
        '.secrets.A + ":" + .secrets.B | @base64',
        '"x \\(.run.id) y"',
        '.a as $x | $x | test("^main$|^master$")',
        "now | todateiso8601",
    ],
)
def test_jq(expression):
    assert judge(expression) is None


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        (".a.incidents.0.status", "dialect"),
        (".a.0.b.1.2", "dialect"),
        ('.a."b c".0', "dialect"),
        (".a == 'x' or .b == 'y'", "dialect"),
        (".a != .b || .c && .d", "dialect"),
        (".a | toTFVariables", "dialect"),
        ('if eq .a "x"', "dialect"),
        ('else if eq .a "y"', "dialect"),
        ("else", "dialect"),
        ("end", "dialect"),
        (".a.0 | toTFVariables", "dialect"),
        (".secrets.TOKEN_<TEAM-ID>", "placeholder"),
        (".a.<NAME>.0", "placeholder"),
        (".a | ", "syntax"),
        (".a.0 | ", "syntax"),
        ("if .a then 1", "syntax"),
        ("(.a", "syntax"),
        ('"open', "syntax"),
        (".a 'x'", "syntax"),
        ("$missing", "syntax"),
        (".a <B>", "syntax"),
        (".a <", "syntax"),
        (".<NAME> |", "syntax"),
    ],
)
def test_what_jq_refuses(expression, kind):
    verdict = judge(expression)
    assert verdict is not None
    assert verdict.kind == kind, verdict


def test_text_inside_strings_is_no_reference():
    known = Known(secrets=[])
    body = with_body('{{ "see .secrets.X and .inputs.y" }}', z={"type": "string"})
    assert lint([body], known=known) == []


def test_secrets():
    known = Known(secrets=["A-B", "C"])
    body = action(
        {**WEBHOOK, "url": 'https://e.example/{{ .secrets["A-B"] }}{{ .secrets.C }}', "headers": {}}
    )
    assert lint([body], known=known) == []
    body["invocationMethod"]["headers"]["x"] = '{{ .secrets["A-C"] + .secrets.C }}'
    finding = found(body, known=known)
    assert (finding.rule, finding.path) == ("PW307", "invocationMethod.headers.x")
    assert lint([body]) == []


BLUEPRINTS = Known.shapes(
    [
        {
            "identifier": "service",
            "schema": {"properties": {"tier": {}, "ttl": {}}},
            "relations": {"system": {}},
            "mirrorProperties": {"owner": {}},
            "calculationProperties": {"score": {}},
            "aggregationProperties": {},
        }
    ]
)


def upsert(**mapping):
    return {
        "type": "UPSERT_ENTITY",
        "blueprintIdentifier": "service",
        "mapping": {"identifier": "i", **mapping},
    }


@pytest.mark.parametrize(
    ("body", "path", "severity"),
    [
        (action(upsert(properties={"owner": 1})), "invocationMethod.mapping.properties.owner", "error"),
        (action(upsert(relations={"sytem": 1})), "invocationMethod.mapping.relations.sytem", "error"),
        (
            automation(
                {
                    "type": "TIMER_PROPERTY_EXPIRED",
                    "blueprintIdentifier": "service",
                    "propertyIdentifier": "tll",
                },
                WEBHOOK,
            ),
            "trigger.event.propertyIdentifier",
            "error",
        ),
        (
            Automation(
                "a",
                trigger=entity_updated("service").when(".diff.after.properties.teir == 1"),
                invocation_method=Webhook("https://e.example"),
            ).to_body(),
            "trigger.condition.expressions[0]",
            "warning",
        ),
        (
            automation(
                {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"},
                {**WEBHOOK, "body": {"x": "{{ .event.diff.before.relations.x }}"}},
            ),
            "invocationMethod.body.x",
            "warning",
        ),
        (
            action(
                WEBHOOK,
                trigger=form(
                    s={
                        "type": "string",
                        "format": "entity",
                        "blueprint": "service",
                        "dataset": {
                            "combinator": "and",
                            "rules": [
                                {
                                    "combinator": "or",
                                    "rules": [{"property": "teir", "operator": "=", "value": 1}],
                                }
                            ],
                        },
                    }
                ),
            ),
            "trigger.userInputs.properties.s.dataset.rules[0].rules[0].property",
            "warning",
        ),
    ],
)
def test_properties_of_blueprints(body, path, severity):
    finding = found(body, known=Known(blueprints=BLUEPRINTS))
    assert (finding.rule, finding.path, finding.severity) == ("PW405", path, severity)
    assert lint([body]) == []


def test_existing_properties_pass():
    bodies = [
        action(
            upsert(properties={"tier": 1, "{{ .inputs.x }}": 2}, relations={"system": "s"}),
            trigger=form(x={"type": "string"}),
        ),
        automation(
            {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"},
            {
                **WEBHOOK,
                "body": ["{{ .event.diff.after.properties.owner + .event.diff.after.relations.system }}"],
            },
        ),
    ]
    assert lint(bodies, known=Known(blueprints=BLUEPRINTS)) == []


def test_port_s_own_blueprints_and_templates_are_not_checked():
    known = Known(blueprints={})
    assert (
        lint(
            [
                action(
                    upsert() | {"blueprintIdentifier": "{{ .inputs.x }}"}, trigger=form(x={"type": "string"})
                )
            ],
            known=known,
        )
        == []
    )
    assert (
        lint([automation({"type": "ENTITY_CREATED", "blueprintIdentifier": "_user"}, WEBHOOK)], known=known)
        == []
    )


def test_actions_of_the_set_are_known():
    notify = Action("notify", trigger=self_service("CREATE"), invocation_method=Webhook("https://e.example"))
    automation_ = Automation(
        "after", trigger=run_updated("notify"), invocation_method=port_api.run_action("notify"), publish=True
    )
    assert lint([notify, automation_], known=Known(actions=[])) == []
    paths = [finding.path for finding in lint([automation_], known=Known(actions=["other"]))]
    assert paths == ["trigger.event.actionIdentifier", "invocationMethod.url"]


def test_port_api_url_of_a_region_is_recognised():
    body = automation(
        {"type": "ENTITY_CREATED", "blueprintIdentifier": "b"},
        {"type": "WEBHOOK", "url": "https://api.us.getport.io/v1/actions/x/runs", "synchronized": False},
    )
    assert [finding.rule for finding in lint([body], known=Known(actions=[]))] == ["PW401", "PW406"]


def test_an_automation_that_writes_what_starts_it():
    event = {"type": "ENTITY_UPDATED", "blueprintIdentifier": "service"}
    assert found(automation(event, upsert())).rule == "PW403"
    condition = {"type": "JQ", "combinator": "and", "expressions": [".diff.before.properties.tier == null"]}
    assert (
        lint(
            [
                automation(
                    event, upsert(), trigger={"type": "automation", "event": event, "condition": condition}
                )
            ]
        )
        == []
    )
    assert lint([automation(event | {"type": "ENTITY_CREATED"}, upsert())]) == []


def test_routes_and_handlers_must_meet():
    deploy = Action("deploy", trigger=self_service("CREATE"), invocation_method=Webhook(Route("deploy")))
    assert lint([deploy], known=Known(routes=["deploy"])) == []
    findings = lint([deploy], known=Known(routes=["deploi"]))
    assert [(f.rule, f.path) for f in findings] == [
        ("PW407", "invocationMethod.url"),
        ("PW408", "routes.deploi"),
    ]


@pytest.mark.parametrize("agent", [False, True])
def test_our_own_envelopes_are_clean(agent):
    definitions = [
        Action(
            "deploy",
            trigger=self_service("DAY-2", "service", inputs={"v": StringInput(), "n": NumberInput()}),
            invocation_method=action_webhook("deploy", agent=agent),
        ),
        Automation(
            "on_change",
            trigger=entity_updated("service"),
            invocation_method=automation_webhook("on_change", agent=agent),
            publish=True,
        ),
    ]
    known = Known(
        routes=["deploy", "on_change"], blueprints={"service": BlueprintShape()}, secrets=[], actions=[]
    )
    assert lint(definitions, known=known) == []


def test_values_not_known_yet_are_left_alone():
    body = action(
        {"type": "WEBHOOK", "url": "?", "headers": "?", "method": "?", "agent": "?"},
        trigger={"type": "self-service", "operation": "?", "userInputs": {"properties": "?"}},
        requiredApproval="?",
    )
    assert {finding.rule for finding in lint([body])} == {"PW103", "PW104", "PW107"}
    assert lint([body], unknown="?") == []
    assert found({**body, "titel": 1}, unknown="?").rule == "PW101"


def test_what_is_no_definition_does_not_hide_the_others():
    findings = lint([None, ["x"], action(WEBHOOK, titel="x"), {"identifier": "bad", "x": float("inf")}])
    assert [(f.rule, f.path, f.definition) for f in findings] == [
        ("PW100", "definitions[0]", ""),
        ("PW100", "definitions[1]", ""),
        ("PW100", "x", "bad"),
        ("PW101", "titel", "deploy"),
    ]


@given(st.lists(JSON | shaped(), max_size=3))
def test_lint_never_fails(bodies):
    known = Known(secrets=[], blueprints=BLUEPRINTS, actions=[], routes=["a"])
    for finding in lint(bodies, known=known):
        assert finding.rule in RULES
