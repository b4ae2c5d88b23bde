"""Interrupted deployments: Ctrl-C and SIGKILL in the middle, then a plain `up`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.engine.project import Project, changes, eventually, fresh

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    yield from fresh(tmp_path)


def begun(project: Project) -> bool:
    """Whether the engine has begun to create things: the secrets store is the first of them."""
    return (project.state / "secrets").exists()


def actions(project: Project) -> list[str]:
    return [action["identifier"] for action in project.port("GET", "/v1/actions")["actions"]]


def test_ctrl_c_finishes_what_is_under_way_and_up_goes_on(project: Project) -> None:
    process = project.start("up")
    eventually(lambda: begun(project), 60)
    os.kill(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode != 0, stdout
    assert "stopping" in stdout
    assert "Traceback" not in stderr
    project.cli("up")
    assert set(changes(project.cli("up"))) == {"unchanged"}
    assert actions(project) == ["deploy_microservice"]
    project.cli("down")
    eventually(lambda: not project.processes())


@pytest.mark.parametrize("delay", [0.0, 0.6])
def test_after_sigkill_up_removes_the_lock_and_goes_on(project: Project, delay: float) -> None:
    process = project.start("up")
    eventually(lambda: begun(project), 60)
    time.sleep(delay)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    for member in family:
        if "pulumi" in member.name():
            member.kill()
    process.communicate(timeout=30)
    result = project.cli("up")
    assert "SIGKILL" not in result.text
    assert set(changes(project.cli("up"))) == {"unchanged"}
    assert actions(project) == ["deploy_microservice"]
    project.cli("down")
    eventually(lambda: not project.processes())
