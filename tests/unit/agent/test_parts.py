"""Watermarks, configuration, environment, metrics and the definitions of a stack with an agent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_handlers.agent import config as configuration
from port_webhook_handlers.agent.config import AgentConfigError
from port_webhook_handlers.agent.credentials import EnvironmentSecrets, trigger_token
from port_webhook_handlers.agent.environment import from_environment
from port_webhook_handlers.agent.metrics import AgentMetrics
from port_webhook_handlers.agent.watermark import Watermark
from port_webhook_handlers.port.envelope import action_webhook
from port_webhook_handlers.runtime.secret_file import SecretFileError
from port_webhook_stack.agent import settings as agent_settings
from port_webhook_stack.agent.definitions import hosts, identifiers, with_agent
from port_webhook_stack.errors import SettingsError


@given(st.lists(st.integers(0, 30), unique=True), st.randoms())
def test_the_watermark_is_the_lowest_offset_that_is_not_settled(offsets: list[int], random: Any) -> None:
    watermark = Watermark()
    assert watermark.position is None
    ordered = sorted(offsets)
    for offset in ordered:
        watermark.begin(offset)
    left = set(ordered)
    for offset in random.sample(ordered, len(ordered)):
        assert watermark.position == min(left)
        watermark.settle(offset)
        left.discard(offset)
    assert watermark.position == (ordered[-1] + 1 if ordered else None)


BASE: dict[str, Any] = {"source": "polling", "port_base_url": "https://x", "allowed_hosts": ["h"]}


def test_a_configuration_survives_being_written(tmp_path: Path) -> None:
    body = {
        **BASE,
        "mapping_file": str(tmp_path / "m"),
        "kafka": {"ca_file": str(tmp_path), "username": None},
    }
    config = configuration.from_json(body)
    assert configuration.parse(config.dumps()) == config
    assert config.kafka.ca_file == tmp_path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "pigeon"}, "agent.source: 'pigeon'"),
        ({"source": None}, "agent.source"),
        ({"allowed_hosts": []}, "agent.allowed_hosts: is empty"),
        ({"polling": {"batch": "x"}}, "agent.polling.batch: has the wrong type"),
        ({"polling": {"bach": 1}}, "agent.polling.bach: unknown key"),
        ({"limits": {"attempt_seconds": 0}}, "agent.limits.attempt_seconds: must be above zero"),
        ({"limits": {"delivery_seconds": 3600}}, "570"),
        ({"health_port": True}, "agent.health_port: has the wrong type"),
        ({"mapping_file": "m.json"}, "must be an absolute path"),
        ({"secrets_file": "/x"}, "secrets_key_file"),
        ({"port_base_url": None}, "port_endpoint_file"),
    ],
)
def test_a_mistake_in_the_configuration_names_its_key(change: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentConfigError) as caught:
        configuration.from_json({**BASE, **change})
    assert words in str(caught.value)


def test_the_environment_of_a_container() -> None:
    config = from_environment(
        {
            "STREAMER_NAME": "polling",
            "AGENT_ALLOWED_HOSTS": "a, b:80",
            "POLLING_RUNS_BATCH_SIZE": "7",
            "WEBHOOK_INVOKER_TIMEOUT": "12.5",
            "WEBHOOK_VERIFY_SSL": "false",
            "KAFKA_CONSUMER_AUTO_OFFSET_RESET": "largest",
            "AGENT_WORKFLOWS": "true",
            "AGENT_RUN_LOGS": "no",
        }
    )
    assert (config.polling.workflows, config.run_logs) == (True, False)
    assert (config.source, config.allowed_hosts, config.polling.batch) == ("polling", ("a", "b:80"), 7)
    assert (config.limits.attempt_seconds, config.verify_tls) == (12.5, False)
    assert config.kafka.auto_offset_reset == "latest"
    for variables, word in (
        ({"STREAMER_NAME": "X"}, "STREAMER_NAME"),
        ({"POLLING_RUNS_BATCH_SIZE": "x"}, "POLLING"),
    ):
        with pytest.raises(AgentConfigError) as caught:
            from_environment(variables)
        assert word in str(caught.value)


def test_secrets_of_a_container_come_from_variables_or_files(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from-file\n")
    found = EnvironmentSecrets({"PORT_CLIENT_ID": "id", "PORT_CLIENT_SECRET_FILE": str(file)})
    content = found.read()
    assert content.api is not None
    assert content.api.client_secret == "from-file"
    assert [item.value for item in content.signing] == ["from-file"]
    before = found.stamp()
    file.write_text("rotated-secret")
    assert found.stamp() != before
    with pytest.raises(SecretFileError) as caught:
        EnvironmentSecrets({"PORT_CLIENT_ID": "id"}).read()
    assert "PORT_CLIENT_SECRET" in str(caught.value)


def test_a_project_of_gitlab_cannot_be_named_like_a_secret_of_the_agent() -> None:
    own = {"KAFKA_PASSWORD": "k", "PORT_CLIENT_SECRET": "s"}
    assert [trigger_token(name, own, own) for name in own] == [None, None]
    assert trigger_token("a_b_app", {**own, "a_b_app": "stored"}, {"a_b_app": "variable"}) == "stored"
    assert trigger_token("a_b_app", own, {**own, "a_b_app": "variable"}) == "variable"
    assert trigger_token("a_b_app", own, own) is None


def test_metrics_are_cumulative_histograms_and_escaped_counters() -> None:
    metrics = AgentMetrics()
    for seconds in (0.004, 0.04, 400):
        metrics.observe(seconds)
    metrics.count("port_webhook_agent_messages_total", ("outcome", "delivered"), amount=2)
    lines = metrics.render().splitlines()
    assert 'port_webhook_agent_message_seconds_bucket{le="0.05"} 2' in lines
    assert 'port_webhook_agent_message_seconds_bucket{le="+Inf"} 3' in lines
    assert 'port_webhook_agent_messages_total{outcome="delivered"} 2' in lines


def bodies() -> dict[str, dict[str, Any]]:
    trigger = {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}}
    return {
        "mine": {
            "identifier": "mine-dev",
            "trigger": trigger,
            "invocationMethod": action_webhook("mine", synchronized=True).to_body(),
        },
        "other": {
            "identifier": "other",
            "trigger": trigger,
            "invocationMethod": {"type": "WEBHOOK", "url": "https://example.com"},
        },
        "internal": {
            "identifier": "internal",
            "trigger": trigger,
            "invocationMethod": {"type": "WEBHOOK", "url": "http://ci:8080/x", "agent": True},
        },
        **{
            kind.lower(): {
                "identifier": kind.lower(),
                "trigger": trigger,
                "invocationMethod": {"type": kind, "projectName": "p", "groupName": "g"},
            }
            for kind in ("GITLAB", "KAFKA")
        },
    }


def test_what_points_at_a_route_goes_through_the_agent() -> None:
    found = with_agent(bodies())
    method = found["mine"]["invocationMethod"]
    assert method["agent"] is True
    assert method["body"]["port_context"] == {"action": "mine", "runId": "{{ .run.id }}"}
    # The identifier in Port tells environments of one organisation apart.
    assert method["body"]["action"] == "mine-dev"
    inner = method["body"]["payload"]["action"]["invocationMethod"]
    assert inner["url"] == method["url"] == "route:mine"
    assert inner["synchronized"] is True
    assert found["other"] == bodies()["other"]
    assert identifiers(found, "GITLAB") == ["gitlab", "internal", "mine-dev"]
    assert identifiers(found, "KAFKA") == ["internal", "kafka", "mine-dev"]
    assert hosts(found) == ["ci:8080"]
    assert with_agent(bodies(), ["another"]) == bodies()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "agent.source"),
        ({"source": "kafka", "snik": "direct"}, "agent.snik"),
        ({"source": "kafka", "image": "official", "sink": "direct"}, "agent.sink"),
        ({"source": "kafka", "kafka": {"broker": "x"}}, "agent.kafka.broker"),
        ({"source": "kafka", "limits": {"maxInFlight": "many"}}, "max_in_flight"),
        ({"source": "kafka", "allowedHosts": "x"}, "agent.allowedHosts"),
        ({"source": "kafka", "limits": 5}, "agent.limits"),
    ],
)
def test_a_mistake_in_the_settings_names_its_key(values: dict[str, Any], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        agent_settings.parse(values, Path("/project"))
    assert key in str(caught.value)


def test_settings_become_the_agents_configuration() -> None:
    found = agent_settings.parse(
        {
            "source": "kafka",
            "mappingFile": "m.json",
            "caFile": "own.pem",
            "gitlabUrl": "https://gitlab.internal",
            "verifyTls": False,
            "detailed": True,
            "kafka": {"caFile": "ca.pem", "brokers": "b:1"},
            "limits": {"maxInFlight": 5},
        },
        Path("/project"),
    )
    assert (found.sink, found.image, found.brokers) == ("direct", "builtin", "b:1")
    assert json.loads(json.dumps(found.options)) == {
        "mapping_file": "/project/m.json",
        "ca_file": "/project/own.pem",
        "gitlab_url": "https://gitlab.internal",
        "verify_tls": False,
        "detailed": True,
        "kafka": {"ca_file": "/project/ca.pem", "brokers": "b:1"},
        "polling": {},
        "limits": {"max_in_flight": 5},
    }
