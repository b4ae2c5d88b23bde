"""The set of a stack's definitions: lint over all of them, and names for environments that share an organisation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi
import pytest

from port_webhook_handlers.bundle import Bundle
from port_webhook_handlers.port import Action, Route, Webhook, self_service
from port_webhook_stack.definitions import Declared, by_identifier, check, gather, with_suffix
from port_webhook_stack.errors import DefinitionsError, SettingsError
from port_webhook_stack.organisation import Organisation
from port_webhook_stack.settings import Settings, parse

SERVICE = {"identifier": "service", "title": "S", "schema": {"properties": {"tier": {"type": "string"}}}}


def settings(project: Path = Path("/project"), **values: object) -> Settings:
    texts = {f"port-webhook-stack:{key}": json.dumps(value) for key, value in values.items()}
    texts = {key: value.strip('"') for key, value in texts.items()}
    return parse("dev", {"port-webhook:region": "local", **texts}, frozenset(), {}, project)


def action(identifier: str = "deploy", **changes: Any) -> dict[str, Any]:
    return {
        "identifier": identifier,
        "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
        "invocationMethod": {"type": "WEBHOOK", "url": "https://hooks.example.com", "body": {}},
        **changes,
    }


def automation(identifier: str, event: Mapping[str, str], url: str) -> dict[str, Any]:
    return {
        "identifier": identifier,
        "trigger": {"type": "automation", "event": dict(event)},
        "invocationMethod": {"type": "WEBHOOK", "url": url, "synchronized": True},
    }


def errors(*bodies: Any, config: Settings | None = None, **facts: Any) -> str:
    with pytest.raises(DefinitionsError) as caught:
        check([Declared(body) for body in bodies], config or settings(), **facts)
    return str(caught.value)


def test_every_error_is_in_the_one_message() -> None:
    text = errors(action(titel="x"), action("other", trigger={"type": "self-service", "operation": "UPDATE"}))
    assert "lint finds 2 errors" in text
    assert "deploy: titel: is not a key of an action; did you mean title? [PW101 error]" in text
    assert "other: trigger.operation: is 'UPDATE'" in text
    assert "lintDisabled" in text


def test_warnings_are_returned_and_stop_nothing() -> None:
    (found,) = check([Declared(action(invocationMethod={"type": "SLACK", "url": "https://x"}))], settings())
    assert (found.rule, found.severity) == ("PW106", "warning")


def test_the_source_is_named() -> None:
    with pytest.raises(DefinitionsError, match=r"deploy\.py:31: deploy: titel"):
        check([Declared(action(titel="x"), "deploy.py:31")], settings())


def test_rules_can_be_left_out_and_strange_ones_are_refused() -> None:
    disabled = settings(lintDisabled=["PW101"])
    assert check([Declared(action(titel="x"))], disabled) == []
    with pytest.raises(SettingsError, match=r"port-webhook-stack:lintDisabled: PW9 is no rule of lint"):
        check([], settings(lintDisabled=["PW9"]))


def test_outputs_of_resources_are_not_judged() -> None:
    loop_free: pulumi.Output[str] = pulumi.Output.__new__(pulumi.Output)
    body = action()
    body["invocationMethod"] = {"type": "WEBHOOK", "url": loop_free, "method": loop_free}
    assert check([Declared(body)], settings()) == []


def test_routes_must_have_a_handler_and_handlers_a_definition() -> None:
    body = action(invocationMethod={"type": "WEBHOOK", "url": "route:deploi"})
    assert "did you mean deploy?" in errors(body, routes=["deploy"])
    (unused,) = check([], settings(), routes=["deploy"])
    assert unused.rule == "PW408"


SECRET = action(
    invocationMethod={"type": "WEBHOOK", "url": "https://x", "headers": {"A": "{{ .secrets.TOKEN }}"}}
)
CALLER = automation(
    "notify",
    {"type": "ENTITY_UPDATED", "blueprintIdentifier": "service"},
    "port-api:/v1/actions/deploi/runs",
)


def test_what_nobody_looked_up_is_not_called_missing() -> None:
    assert (
        check([Declared(body) for body in (SECRET | {"identifier": "s"}, CALLER, action())], settings()) == []
    )


def test_what_is_neither_in_port_nor_in_the_stack_is_an_error() -> None:
    nothing = Organisation(blueprints={}, secrets=(), actions=())
    text = errors(SECRET | {"identifier": "s"}, CALLER, action(), organisation=nothing)
    assert "reads the secret 'TOKEN', which nobody declares" in text
    assert "names the blueprint 'service', which does not exist" in text
    assert "names the action 'deploi', which does not exist; did you mean deploy?" in text

    everything = Organisation({"service": SERVICE}, {"TOKEN"}, {"deploi"})
    assert check([Declared(SECRET), Declared(CALLER)], settings(), organisation=everything) == []
    mine = Organisation(blueprints={}, secrets=(), actions={"deploi"})
    assert check([Declared(CALLER)], settings(), blueprints=[SERVICE], organisation=mine) == []


UPSERT = action(
    invocationMethod={
        "type": "UPSERT_ENTITY",
        "blueprintIdentifier": "service",
        "mapping": {"identifier": "x", "properties": {"owner": "{{ .inputs }}"}},
    }
)


def test_properties_are_those_after_the_deployment() -> None:
    with_owner = {**SERVICE, "schema": {"properties": {"owner": {"type": "string"}}}}
    before = Organisation(blueprints={"service": with_owner}, secrets=(), actions=())
    after = Organisation(blueprints={"service": SERVICE}, secrets=(), actions=())
    # The stack writes the blueprint: what Port has now is replaced.
    assert "the property 'owner'" in errors(UPSERT, blueprints=[SERVICE], organisation=before)
    assert check([Declared(UPSERT)], settings(), blueprints=[with_owner], organisation=after) == []
    # The stack only expects it: what Port has counts.
    existing = settings(blueprints="existing")
    assert check([Declared(UPSERT)], existing, blueprints=[SERVICE], organisation=before) == []


@pytest.mark.parametrize(
    ("bodies", "message"),
    [
        ([{"title": "x"}], "has no identifier"),
        ([action(), action()], "deploy: another definition"),
    ],
)
def test_identifiers_are_needed_even_if_lint_is_silent(bodies: list[Any], message: str) -> None:
    with pytest.raises(DefinitionsError, match=message):
        by_identifier([Declared(body) for body in bodies])


def test_all_three_ways_of_writing_are_gathered(tmp_path: Path) -> None:
    (tmp_path / "port").mkdir()
    (tmp_path / "port" / "a.yaml").write_text("# one\nidentifier: from_file\n", encoding="utf-8")
    typed = Action(
        "typed", trigger=self_service("CREATE"), invocation_method=Webhook(Route("x")), source="a.py:3"
    )
    bundle = Bundle(tmp_path, "sha256:0", {"h": {"source": "h.py:9"}}, {"h": action("h")}, {})
    found = gather(settings(tmp_path, definitions=["port/*.yaml"]), bundle, [action("plain"), typed])
    assert [(item.body["identifier"], item.source) for item in found] == [
        ("h", "h.py:9"),
        ("plain", None),
        ("typed", "a.py:3"),
        ("from_file", "port/a.yaml:2"),
    ]
    with pytest.raises(SettingsError, match=r"definitions: nothing\.json matches no file"):
        gather(settings(tmp_path, definitions=["nothing.json"]), bundle, [])


def test_the_suffix_reaches_references_within_the_set_and_nothing_else() -> None:
    run_event = {"type": "RUN_UPDATED", "actionIdentifier": "deploy"}
    foreign_event = {"type": "RUN_UPDATED", "actionIdentifier": "foreign"}
    bodies = {
        "deploy": action(
            invocationMethod={
                "type": "WEBHOOK",
                "url": "route:deploy",
                "body": {"port_context": {"action": "deploy"}},
            }
        ),
        "a": automation("a", run_event, "port-api:/v1/actions/deploy/runs?run_as=x@example.com"),
        "b": automation("b", foreign_event, "https://api.getport.io/v1/actions/foreign/runs"),
        "c": automation(
            "c", {"type": "ENTITY_CREATED", "blueprintIdentifier": "deploy"}, "https://x.example"
        ),
    }
    before = json.dumps(bodies)
    named = with_suffix(bodies, "-dev")
    assert json.dumps(bodies) == before
    assert [body["identifier"] for body in named.values()] == ["deploy-dev", "a-dev", "b-dev", "c-dev"]
    assert named["deploy"]["invocationMethod"] == bodies["deploy"]["invocationMethod"]
    assert named["a"]["trigger"]["event"]["actionIdentifier"] == "deploy-dev"
    assert (
        named["a"]["invocationMethod"]["url"] == "port-api:/v1/actions/deploy-dev/runs?run_as=x@example.com"
    )
    assert named["b"]["trigger"]["event"] == foreign_event
    assert named["b"]["invocationMethod"]["url"] == "https://api.getport.io/v1/actions/foreign/runs"
    assert named["c"]["trigger"]["event"]["blueprintIdentifier"] == "deploy"


def test_a_suffix_is_part_of_an_identifier() -> None:
    assert settings(identifierSuffix="-dev").identifier_suffix == "-dev"
    with pytest.raises(SettingsError, match="port-webhook-stack:identifierSuffix: ' dev' has characters"):
        settings(identifierSuffix=" dev")
