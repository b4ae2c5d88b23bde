import pytest

from port_webhook_handlers.port import port_api
from port_webhook_handlers.port.names import (
    Route,
    action_run_by,
    is_identifier,
    is_input_name,
    is_secret_name,
    port_api_path,
    resolve_urls,
    route_name,
    route_path,
)


@pytest.mark.parametrize("text", ["a", "service", "a.b", "...", "a@b_c.d+e:f=g-h", "Zoë", "デプロイ", "0"])
def test_identifiers(text):
    assert is_identifier(text)


@pytest.mark.parametrize("text", ["", ".", "..", "a b", "a/b", "a\n", "a%", "½", "a\u0301"])
def test_not_identifiers(text):
    assert not is_identifier(text)


def test_other_names():
    assert is_input_name("a-b_1@=\\")
    assert not is_input_name("a.b")
    assert not is_input_name("a\n")
    assert is_secret_name("A-b_1")
    assert not is_secret_name("")
    assert not is_secret_name("a" * 101)
    assert not is_secret_name("ä")


def test_routes():
    assert Route("deploy") == "route:deploy"
    assert Route("deploy").name == "deploy"
    assert route_name("route:deploy") == "deploy"
    assert route_name("https://example.com") is None
    assert route_path("a:b@c") == "/webhooks/a%3Ab%40c"
    with pytest.raises(ValueError, match="not an identifier"):
        Route("a/b")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("port-api:/v1/actions", "/v1/actions"),
        ("https://api.getport.io/v1/actions/a/runs?run_as=x", "/v1/actions/a/runs?run_as=x"),
        ("https://api.us.port.io/v1/x/{{ .run.id }}", "/v1/x/{{ .run.id }}"),
        ("https://api.getport.io", ""),
        ("https://API.getport.io:443/v1/x", "/v1/x"),
        ("https://api.getport.io@example.com/v1", None),
        ("https://api.getport.io.example.com/v1", None),
        ("https://example.com/?u=https://api.getport.io/", None),
        ("{{ .secrets.URL }}/v1", None),
        ("route:api.getport.io", None),
        ("https://[bad", None),
    ],
)
def test_port_api_path(url, path):
    assert port_api_path(url) == path


def test_action_run_by():
    assert action_run_by("port-api:/v1/actions/slack%3Anotify/runs?run_as=a") == "slack:notify"
    assert action_run_by("https://api.getport.io/v1/actions/slack_notify/runs") == "slack_notify"
    assert action_run_by("port-api:/v1/actions/runs/r_1/approval") is None
    assert action_run_by("port-api:/v1/actions/{{ .x }}/runs") is None
    assert action_run_by("https://example.com/v1/actions/a/runs") is None


def test_resolve_urls_everywhere_and_leave_the_rest():
    body = {
        "invocationMethod": {
            "url": "route:deploy",
            "body": {
                "payload": {"action": {"invocationMethod": {"url": "route:deploy", "x": 1}}},
                "note": "route:x",
            },
        }
    }
    resolved = resolve_urls(
        body, route=lambda name: f"https://l/{name}", port_api=lambda path: f"https://p{path}"
    )
    method = resolved["invocationMethod"]
    assert method["url"] == "https://l/deploy"
    assert method["body"]["payload"]["action"]["invocationMethod"] == {"url": "https://l/deploy", "x": 1}
    assert method["body"]["note"] == "route:x"
    assert body["invocationMethod"]["url"] == "route:deploy"

    def unexpected(_):
        raise AssertionError

    port = {"invocationMethod": {"url": "port-api:/v1/x"}}
    assert resolve_urls(port, route=unexpected, port_api=lambda path: f"https://p{path}") == {
        "invocationMethod": {"url": "https://p/v1/x"}
    }
    for other in ({}, {"invocationMethod": None}, {"invocationMethod": {"url": 5, "body": []}}):
        assert resolve_urls(other, route=unexpected, port_api=unexpected) == other


def test_port_api_run_action():
    webhook = port_api.run_action(
        "slack_notify", run_as="a+b@example.com", properties={"m": "{{ .event.x }}"}
    )
    assert webhook.to_body() == {
        "type": "WEBHOOK",
        "url": "port-api:/v1/actions/slack_notify/runs?run_as=a%2Bb@example.com",
        "synchronized": True,
        "method": "POST",
        "body": {"properties": {"m": "{{ .event.x }}"}},
    }
    templated = port_api.run_action("x", run_as="{{ .trigger.by.user.email }}", entity="{{ .event.e }}")
    assert templated.url == "port-api:/v1/actions/x/runs?run_as={{ .trigger.by.user.email }}"
    assert templated.body == {"properties": {}, "entity": "{{ .event.e }}"}


def test_port_api_request():
    assert port_api.request("/v1/blueprints", method="GET").to_body() == {
        "type": "WEBHOOK",
        "url": "port-api:/v1/blueprints",
        "synchronized": True,
        "method": "GET",
    }
    with pytest.raises(ValueError, match="/v1/"):
        port_api.request("https://api.getport.io/v1/x")
