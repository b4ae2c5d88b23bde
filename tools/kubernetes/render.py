"""Writes the manifests of a kubernetes stack as YAML files, without a cluster and without Pulumi's plugin.

Usage: .venv/bin/python tools/kubernetes/render.py <stack> <folder>

For looking at them and for checkers. Secrets hold placeholders. What is deployed comes from `port-webhook up`, or
from `renderYamlToDirectory`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from port_webhook_handlers.bundle import build
from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.config import Limits
from port_webhook_stack.kubernetes import jobs
from port_webhook_stack.kubernetes.plan import Plan
from port_webhook_stack.kubernetes.shards import shards
from port_webhook_stack.listener import kubernetes as listener
from port_webhook_stack.secrets_store import kubernetes as secrets_store
from port_webhook_stack.settings import Settings, parse

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = "placeholder"


def settings_of(stack: str) -> Settings:
    """Settings of a stack file, with placeholders for what is secret."""
    text = (ROOT / "stacks" / f"Pulumi.{stack}.yaml").read_text(encoding="utf-8")
    values = yaml.safe_load(text)["config"]
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    credentials = {"PORT_CLIENT_ID": PLACEHOLDER, "PORT_CLIENT_SECRET": PLACEHOLDER}
    return parse(stack, texts, frozenset(), credentials, ROOT)


def plan_of(settings: Settings, work: Path) -> Plan:
    """The deployment of a stack file.

    Args:
        settings: of the stack.
        work: folder for the bundle.
    """
    if settings.kubernetes is None:
        raise SystemExit(f"stack {settings.stack} has not target kubernetes")
    bundle = build(
        [settings.project / name if name.endswith(".py") else name for name in settings.handlers], work
    )
    return Plan(
        stack=settings.stack,
        settings=settings.kubernetes,
        routes=manifests.load(bundle.path)[0].routes,
        digest=bundle.digest,
        shards=shards(bundle),
        port_base_url=settings.base_url or "https://api.getport.io",
        limits=Limits(sync_deadline_seconds=settings.listener.sync_deadline_seconds),
        handler_settings=settings.handler_settings,
    )


def render(plan: Plan) -> list[dict[str, Any]]:
    """All manifests, and the Jobs that the dispatcher makes."""
    names = {name for route in plan.routes.values() for name in route.secrets}
    store = {
        "signing": [{"value": PLACEHOLDER, "not_after": None}],
        "api": {"client_id": PLACEHOLDER, "client_secret": PLACEHOLDER},
        "decryption": [PLACEHOLDER],
        "secrets": dict.fromkeys(names, PLACEHOLDER),
    }
    texts = {key: json.dumps(part) for key, part in secrets_store.contents(plan, store).items()}
    return [*listener.manifests(plan, texts, "1"), *jobs.templates(plan).values()]


def main() -> None:
    """Writes one file for each object."""
    stack, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for index, manifest in enumerate(render(plan_of(settings_of(stack), folder / ".bundles"))):
        name = f"{index:02d}-{manifest['kind'].lower()}-{manifest['metadata']['name']}.yaml"
        (folder / name).write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    sys.stdout.write(f"{index + 1} objects in {folder}\n")


if __name__ == "__main__":
    main()
