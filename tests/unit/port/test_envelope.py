import pytest

from port_webhook_handlers.port.definitions import Action
from port_webhook_handlers.port.envelope import (
    ACTION_PATH,
    RUN_ID_PATH,
    action_body,
    action_webhook,
    automation_body,
    automation_webhook,
)
from port_webhook_handlers.port.names import resolve_urls


def at(body, path):
    for key in path:
        body = body[key]
    return body


def test_action():
    assert action_body("deploy") == {
        "port_context": {"action": "deploy", "runId": "{{ .run.id }}"},
        "inputs": "{{ .inputs }}",
        "entity": "{{ .entity }}",
        "trigger": "{{ .trigger }}",
    }
    assert "entity" not in action_body("create", entity=False)


def test_automation():
    assert automation_body("on_change") == {
        "port_context": {"action": "on_change", "runId": "{{ .run.id }}"},
        "event": "{{ .event }}",
        "trigger": "{{ .trigger }}",
    }


@pytest.mark.parametrize("webhook", [action_webhook, automation_webhook])
def test_paths_lead_to_action_and_run(webhook):
    for agent in (False, True):
        body = webhook("deploy", agent=agent).body
        assert at(body, ACTION_PATH) == "deploy"
        assert at(body, RUN_ID_PATH) == "{{ .run.id }}"


def test_webhook():
    assert action_webhook("deploy", synchronized=True, method="PUT").to_body() == {
        "type": "WEBHOOK",
        "url": "route:deploy",
        "agent": False,
        "synchronized": True,
        "method": "PUT",
        "body": action_body("deploy"),
    }


@pytest.mark.parametrize(
    ("webhook", "plain"), [(action_webhook, action_body), (automation_webhook, automation_body)]
)
def test_agent_gets_the_legacy_envelope_beside(webhook, plain):
    body = webhook("deploy", agent=True, synchronized=True).body
    assert body | plain("deploy") == body
    assert body["context"]["runId"] == "{{ .run.id }}"
    assert body["resourceType"] == "run"
    assert body["payload"]["action"]["invocationMethod"] == {
        "type": "WEBHOOK",
        "agent": True,
        "synchronized": True,
        "method": "POST",
        "url": "route:deploy",
        "headers": {},
    }


def test_agent_url_is_resolved_in_both_places():
    body = Action("deploy", invocation_method=action_webhook("deploy", agent=True)).to_body()
    resolved = resolve_urls(body, route=lambda name: f"https://l/{name}", port_api=str)
    assert "route:" not in str(resolved)
