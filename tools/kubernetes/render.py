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
from port_webhook_handlers.port.regions import API_BASE_URLS
from port_webhook_stack.kubernetes import jobs
from port_webhook_stack.kubernetes.plan import Plan
from port_webhook_stack.kubernetes.stack import assemble
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
    handlers = [settings.project / name if name.endswith(".py") else name for name in settings.handlers]
    bundle = build(handlers, work, settings.handler_settings)
    base_url = API_BASE_URLS.get(settings.region or "", settings.base_url or API_BASE_URLS["eu"])
    return assemble(settings, settings.kubernetes, bundle, base_url)


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
