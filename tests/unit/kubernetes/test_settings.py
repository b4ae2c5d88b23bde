"""What `port-webhook-stack:kubernetes` takes, and what it refuses by name."""

from __future__ import annotations

from typing import Any

import pytest

from port_webhook_stack.errors import SettingsError
from port_webhook_stack.kubernetes.settings import JOB_RESOURCES, parse

IMAGE = f"registry.example.com/runtime@sha256:{'a' * 64}"
LEAST: dict[str, Any] = {"image": IMAGE, "apiServer": ["10.0.0.1/32"]}


def test_image_and_api_server_are_enough() -> None:
    found = parse(LEAST)
    assert (found.namespace, found.runs_namespace, found.replicas) == ("port-webhook", "port-webhook-runs", 2)
    assert found.create_namespaces
    assert found.network_policies
    assert found.admission_policies
    assert found.ingress is None
    assert found.agent is None
    assert found.group("any").resources == JOB_RESOURCES


def test_resources_are_changed_one_by_one() -> None:
    found = parse({**LEAST, "groups": {"ops": {"resources": {"limits": {"memory": "2Gi"}}}}})
    resources = found.group("ops").resources
    assert resources["limits"] == {**JOB_RESOURCES["limits"], "memory": "2Gi"}
    assert resources["requests"] == JOB_RESOURCES["requests"]


@pytest.mark.parametrize(
    ("values", "key", "part"),
    [
        ({"image": None}, "image", "is missing"),
        ({"image": "runtime:latest"}, "image", "by digest"),
        ({"image": 7}, "image", "is not a string"),
        ({"imagee": IMAGE}, "imagee", "did you mean image?"),
        ({"apiServer": None}, "apiServer", "is missing"),
        ({"apiServer": ["kubernetes.default"]}, "apiServer[0]", "is no CIDR"),
        ({"namespace": "Port"}, "namespace", "no name of an object"),
        ({"runsNamespace": "port-webhook"}, "runsNamespace", "own namespace"),
        ({"replicas": 0}, "replicas", "out of range"),
        ({"replicas": True}, "replicas", "is not a whole number"),
        ({"replicas": 9}, "maxReplicas", "less than replicas"),
        ({"ingress": {"tlsSecret": "tls"}}, "ingress.host", "is missing"),
        ({"ingress": {"host": "https://x.example.com", "tlsSecret": "tls"}}, "ingress.host", "no host name"),
        ({"ingress": {"host": "x.example.com"}}, "ingress.tlsSecret", "is missing"),
        (
            {"ingress": {"host": "x.example.com", "tlsSecret": "t", "tlsSecrets": 1}},
            "ingress.tlsSecrets",
            "did you mean",
        ),
        ({"groups": {"ops": {"image": "x"}}}, "groups.ops.image", "by digest"),
        ({"groups": {"ops": []}}, "groups.ops", "is not a map"),
        (
            {"groups": {"ops": {"resources": {"limits": {"gpu": "1"}}}}},
            "groups.ops.resources.limits.gpu",
            "no resource",
        ),
        (
            {"groups": {"ops": {"resources": {"limits": {"cpu": "lots"}}}}},
            "groups.ops.resources.limits.cpu",
            "no quantity",
        ),
        ({"agent": {"kind": "theirs"}}, "agent.kind", "not supported"),
        ({"agent": {"kind": "official"}}, "agent.image", "is missing"),
        ({"existingSecrets": {"listener": 1}}, "existingSecrets.listener", "is not a string"),
    ],
)
def test_mistakes_are_named(values: dict[str, Any], key: str, part: str) -> None:
    merged = {name: value for name, value in {**LEAST, **values}.items() if value is not None}
    with pytest.raises(SettingsError) as caught:
        parse(merged)
    assert caught.value.key == f"port-webhook-stack:kubernetes.{key}"
    assert part in str(caught.value)
