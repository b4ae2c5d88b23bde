"""A stack for the tests: handlers, their bundle, the plan and its manifests."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from port_webhook_handlers.bundle import build
from port_webhook_handlers.runtime import manifest as manifests_of_bundles
from port_webhook_stack.kubernetes import settings as target
from port_webhook_stack.kubernetes.plan import Plan
from port_webhook_stack.kubernetes.shards import shards
from port_webhook_stack.listener import kubernetes as listener
from port_webhook_stack.secrets_store import kubernetes as secrets_store

IMAGE = f"registry.example.com/runtime@sha256:{'a' * 64}"
OPS_IMAGE = f"registry.example.com/ops@sha256:{'b' * 64}"
SIGNING = "signing-secret-0123456789-0123456789"
TOKEN = "handler-token-0123456789"

HANDLERS = """
import os, time
from port_webhook_handlers.sdk import Failure, HandedOver, Inputs, RetryableError, Run, Success, action

class Seconds(Inputs):
    seconds: float = 0

@action("work", title="Work", operation="CREATE", max_concurrency=24)
def work(inputs: Seconds, run: Run):
    run.log("working")
    run.progress("half")
    time.sleep(inputs.seconds)
    run.log("worked")
    return Success(summary="done")

@action("refuse", title="Refuse", operation="CREATE")
def refuse(run: Run):
    return Failure(summary="not today")

@action("pass_on", title="Pass on", operation="CREATE")
def pass_on(run: Run):
    return HandedOver("Waiting for a worker.", "https://example.com/queue")

@action("vanish", title="Vanish", operation="CREATE")
def vanish(run: Run):
    os._exit(3)

@action("again", title="Again", operation="CREATE", max_attempts=3)
def again(run: Run):
    run.log(f"attempt {run.attempt}")
    if run.attempt < 2:
        raise RetryableError("not yet")
    return Success(summary=f"attempt {run.attempt}")

@action("guarded", title="Guarded", operation="CREATE", secrets=["TOKEN"], privilege_group="ops")
def guarded(run: Run):
    print("token is", run.secret("TOKEN"))
    run.log("token is " + run.secret("TOKEN"))
    return Success(summary="token of " + str(len(run.secret("TOKEN"))))

@action("hello", title="Hello", operation="CREATE", mode="sync")
def hello(run: Run):
    return Success(response={"hello": run.id})

@action("privileged@hello", title="Privileged", operation="CREATE", mode="sync", privilege_group="ops")
def privileged(run: Run):
    return Success(response={"group": "ops"})
"""

SETTINGS: dict[str, Any] = {
    "image": IMAGE,
    "apiServer": ["127.0.0.1/32"],
    "ingress": {"host": "hooks.example.com", "tlsSecret": "hooks-tls", "className": "nginx"},
    "monitoringNamespaces": ["monitoring"],
    "groups": {"ops": {"image": OPS_IMAGE, "egress": ["10.1.0.0/16"]}},
    "agent": {"kind": "own"},
}


def plan(
    folder: Path,
    values: Mapping[str, Any] | None = None,
    *,
    port: str = "https://api.getport.io",
    handlers: str = HANDLERS,
) -> Plan:
    """A deployment of the handlers above, in namespaces of its own."""
    name = f"s{uuid.uuid4().hex[:8]}"
    source = folder / "cluster_handlers.py"
    source.write_text(handlers, encoding="utf-8")
    bundle = build([source], folder / "bundles")
    own = {"namespace": name, "runsNamespace": f"{name}-runs"}
    return Plan(
        stack="test",
        settings=target.parse({**SETTINGS, **own, **(values or {})}),
        routes=manifests_of_bundles.load(bundle.path)[0].routes,
        digest=bundle.digest,
        shards=shards(bundle),
        port_base_url=port,
    )


def store(client_id: str = "id", client_secret: str = SIGNING) -> dict[str, Any]:
    """The secrets store's whole content."""
    return {
        "signing": [{"value": client_secret, "not_after": None}],
        "api": {"client_id": client_id, "client_secret": client_secret},
        "decryption": [client_secret],
        "secrets": {"TOKEN": TOKEN},
    }


def manifests(plan: Plan, content: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Everything that is applied."""
    content = content or store()
    parts = secrets_store.contents(plan, content)
    texts = {key: json.dumps(part, sort_keys=True) for key, part in parts.items()}
    return listener.manifests(plan, texts, secrets_store.version(content))
