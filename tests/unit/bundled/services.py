"""Services on this machine, for tests of the handlers that work on them."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from port_webhook_handlers.bundled.deploy import deploy_microservice
from port_webhook_handlers.bundled.deploy.local import Live, members
from port_webhook_handlers.sdk import Failure, Success
from port_webhook_handlers.sdk.testing import Invocation, invoke

SERVER = Path(__file__).parents[3] / "examples" / "microservice"
SPEC: dict[str, Any] = {"artefact": str(SERVER), "command": ["{python}", "server.py"], "health": "/health"}


def entity(service: str = "cart") -> dict[str, Any]:
    return {"identifier": service, "title": service.title(), "blueprint": "service"}


def settings(state: Path, **more: Any) -> dict[str, Any]:
    return {"state_dir": str(state), "services": {"cart": SPEC}} | more


def deploy(state: Path, version: str = "1.0.0") -> Invocation:
    outcome = invoke(
        deploy_microservice, inputs={"version": version}, entity=entity(), settings=settings(state)
    )
    assert isinstance(outcome.result, Success), outcome
    return outcome


def running(state: Path, service: str = "cart") -> list[Live]:
    return members(state / "deployments" / service)


def version_at(live: Live) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{live.port}/", timeout=5) as response:
        return str(json.load(response)["version"])


def failure(outcome: Invocation) -> str:
    assert isinstance(outcome.result, Failure), outcome
    assert outcome.error_type is None, outcome
    return outcome.result.summary
