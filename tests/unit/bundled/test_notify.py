"""The Slack example: bodies as Port's documentation describes them."""

from __future__ import annotations

from port_webhook_handlers.bundled import notify
from port_webhook_handlers.bundled.deploy import blueprints
from port_webhook_handlers.port.lint import Known, lint


def test_lint_finds_nothing_once_the_secret_is_declared() -> None:
    known = Known(
        secrets={notify.SECRET}, blueprints=Known.shapes(blueprints.BLUEPRINTS), actions=(), routes=()
    )
    assert lint(notify.definitions(), known=known) == []


def test_the_automation_runs_the_action_through_ports_api() -> None:
    body = notify.on_service_failure(run_as="someone@example.com").to_body()
    method = body["invocationMethod"]
    assert method["url"] == "port-api:/v1/actions/slack_notify/runs?run_as=someone@example.com"
    assert method["synchronized"] is True
    assert set(method["body"]) == {"properties"}
    assert body["trigger"]["event"] == {"type": "ENTITY_UPDATED", "blueprintIdentifier": "service"}
    assert body["trigger"]["condition"]["combinator"] == "and"


def test_the_address_of_the_channel_is_in_no_definition() -> None:
    assert notify.SLACK_NOTIFY.to_body()["invocationMethod"]["url"] == "{{ .secrets.SLACK_WEBHOOK_URL }}"
