"""Scaling, restarting and looking at real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.unit.bundled.services import SPEC, deploy, entity, failure, running, settings, version_at

from port_webhook_handlers.bundled.running import what_runs_where
from port_webhook_handlers.bundled.scale_restart import restart_service, scale_service
from port_webhook_handlers.sdk import Success
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.testing import Invocation, invoke


def scale(state: Path, replicas: int, **more: Any) -> Invocation:
    return invoke(
        scale_service, inputs={"replicas": replicas}, entity=entity(), settings=settings(state, **more)
    )


def restart(state: Path, **more: Any) -> Invocation:
    return invoke(restart_service, entity=entity(), settings=settings(state, **more))


def look(state: Path, **inputs: Any) -> Invocation:
    return invoke(what_runs_where, inputs=inputs, settings=settings(state))


def seen(state: Path, **inputs: Any) -> Any:
    response = look(state, **inputs).result.response
    assert response is not None
    return response["services"]["cart"]


def test_scaling_restarting_and_the_next_version(state: Path) -> None:
    identifier = deploy(state).entities[0]["body"]["identifier"]
    (first,) = running(state)
    outcome = scale(state, 3)
    assert isinstance(outcome.result, Success)
    assert outcome.result.summary == "cart runs 3 copies of 1.0.0"
    assert outcome.entities[0]["body"]["identifier"] == identifier
    three = running(state)
    assert three[0] == first
    assert [version_at(live) for live in three] == ["1.0.0"] * 3

    assert seen(state) == {
        "version": "1.0.0",
        "revision": first.revision,
        "replicas": 3,
        "healthy": 3,
        "url": f"http://127.0.0.1:{first.port}",
    }
    os.kill(three[2].pid, signal.SIGKILL)
    assert seen(state, service="cart")["healthy"] == 2

    outcome = restart(state)
    assert isinstance(outcome.result, Success)
    restarted = running(state)
    assert len(restarted) == 3
    assert not {live.pid for live in three} & {live.pid for live in restarted}
    assert not any(live.process.is_alive() for live in three)
    assert outcome.result.link == f"http://127.0.0.1:{restarted[0].port}"
    assert outcome.entities[0]["body"]["properties"]["url"] == outcome.result.link

    assert scale(state, 2).logs == ["stopped 1 of 3 copies"]
    assert running(state) == restarted[:2]
    assert not restarted[2].process.is_alive()

    deploy(state, "1.1.0")
    assert [version_at(live) for live in running(state)] == ["1.1.0"] * 2
    assert not any(live.process.is_alive() for live in restarted)
    assert len(list((state / "deployments").glob("*.json"))) == 2


def test_bounds(state: Path) -> None:
    bounds = {"*": {"minimum": 2}, "cart": {"minimum": 1, "maximum": 2}}
    assert failure(scale(state, 4)).startswith("inputs.replicas: cart may have 1 to 3 copies")
    assert "1 to 2 copies" in failure(scale(state, 3, bounds=bounds))
    assert "2 to 3 copies" in failure(scale(state, 1, bounds={"*": {"minimum": 2}}))
    assert failure(scale(state, 1, bounds={"cart": {"max": 2}})).startswith("bounds.cart.max: unknown key")
    assert failure(scale(state, 1, bounds={"cart": {"minimum": 3, "maximum": 2}})).startswith(
        "bounds.cart.maximum: must be a number from 3"
    )
    assert "at least one copy" in failure(scale(state, 0, bounds={"cart": {"minimum": 0}}))


def test_what_was_never_deployed(state: Path) -> None:
    assert failure(scale(state, 1)) == "cart is not deployed here; deploy a version first"
    assert failure(restart(state)) == "cart is not deployed here; deploy a version first"
    assert look(state).result == Success(
        "0 of 1 services run", response={"target": "local", "services": {"cart": None}}
    )
    assert failure(look(state, service="shop")).startswith("services.shop: is not in the settings")


def test_a_restart_that_fails_changes_nothing(state: Path) -> None:
    deploy(state)
    before = running(state)
    (program,) = (state / "deployments").rglob("artefact/server.py")
    program.write_text("raise SystemExit('disk full')\n")
    assert "disk full" in failure(restart(state))
    assert "disk full" in failure(scale(state, 2))
    assert running(state) == before
    assert version_at(before[0]) == "1.0.0"
    assert len(list((state / "deployments").glob("*.json"))) == 1


def test_a_state_that_cannot_be_read_is_an_error_of_that_service(state: Path) -> None:
    deploy(state)
    (spec,) = (state / "deployments").rglob("spec.json")
    spec.unlink()
    assert seen(state)["error"].startswith("how version 1.0.0 was started is not known")


def test_an_unknown_target_is_named(state: Path) -> None:
    assert failure(restart(state, target="mainframe")).startswith("target: 'mainframe' is not known")


INTERRUPTED = """\
import json, sys
from port_webhook_handlers.sdk.invoke import run_request
run_request(json.loads(sys.stdin.read()), lambda message: print(json.dumps(message), flush=True))
"""


def test_interrupted_in_the_middle_it_runs_again(state: Path) -> None:
    handler, inputs, copies = scale_service, {"replicas": 3}, 3
    declared = handler_of(handler)
    for either in (declared, handler_of(restart_service)):
        assert (either.on_interrupt, either.max_attempts) == ("retry", 3)
    deploy(state)
    before = running(state)
    request = {
        "run": {
            "id": "r_1",
            "action": declared.identifier,
            "entity": entity(),
            "deadline": time.time() + 60,
        },
        "inputs": inputs,
        "handler": declared.target,
        "settings": settings(state),
    }
    # Copies that never answer, so that the run can be killed while it waits for the first of them.
    (program,) = (state / "deployments").rglob("artefact/server.py")
    original = program.read_text()
    program.write_text("import time; time.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        while b"started version" not in child.stdout.readline():
            assert child.poll() is None
        child.kill()
    assert running(state) == before
    assert len(list((state / "deployments").glob("*.json"))) == 2

    program.write_text(original)
    outcome = invoke(
        handler, inputs=inputs, entity=entity(), settings=settings(state, services={"cart": SPEC}), attempt=2
    )
    assert isinstance(outcome.result, Success)
    live = running(state)
    assert len(live) == copies
    assert all(version_at(copy) == "1.0.0" for copy in live)
    assert len(list((state / "deployments").glob("*.json"))) == copies
