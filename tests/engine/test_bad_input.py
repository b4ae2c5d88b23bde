"""Mistakes and faults: one clear message each, and the next `up` succeeds once they are mended."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from tests.engine.project import Project, changes, fresh

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield from fresh(tmp_path_factory.mktemp("bad"))


def refused(project: Project, *parts: str, **environment: str) -> None:
    """`up` fails with one message that holds all parts, and no traceback."""
    result = project.cli("up", check=False, **environment)
    assert result.code == 1, result.text
    for part in parts:
        assert part in result.stderr, result.stderr
    assert "Traceback" not in result.text
    assert len(result.stderr.strip().splitlines()) <= 6, result.stderr


HANDLER = (
    "from port_webhook_handlers.sdk import Run, Success, action\n\n\n"
    '@action("{name}", title="T", operation="CREATE")\n'
    "def handle(run: Run) -> Success:\n    return Success()\n"
)


@pytest.mark.parametrize(
    ("values", "files", "parts"),
    [
        (
            {"port-webhook-stack:hanlders": ["x"]},
            {},
            ["port-webhook-stack:hanlders", "did you mean handlers"],
        ),
        ({"port-webhook:region": "eup"}, {}, ["port-webhook:region", "eu, us or local"]),
        ({"port-webhook-stack:handlers": ["nowhere.py"]}, {}, ["port-webhook-stack:handlers", "nowhere.py"]),
        (
            {"port-webhook-stack:handlers": ["broken.py"]},
            {"broken.py": "import json\nimport nothing_of_that_name\n"},
            ["port-webhook-stack:handlers", "broken.py:2", "nothing_of_that_name"],
        ),
        (
            {"port-webhook-stack:handlers": ["one.py", "two.py"]},
            {"one.py": HANDLER.format(name="same"), "two.py": HANDLER.format(name="same")},
            ["port-webhook-stack:handlers", "same"],
        ),
        (
            {"port-webhook:region": "eu", "port-webhook:clientId": "only-the-id"},
            {},
            ["port-webhook-stack:listener.publicUrl", "tunnel"],
        ),
    ],
)
def test_a_mistake_is_refused_before_anything_is_made(
    project: Project, values: dict[str, Any], files: dict[str, str], parts: list[str]
) -> None:
    before = (project.folder / "stacks" / "Pulumi.local.yaml").read_text(encoding="utf-8")
    try:
        for name, content in files.items():
            (project.folder / name).write_text(content, encoding="utf-8")
        project.configure(values)
        refused(project, *parts)
        assert not (project.state / "listener").exists()
    finally:
        (project.folder / "stacks" / "Pulumi.local.yaml").write_text(before, encoding="utf-8")


def test_wrong_credentials_name_the_keys(project: Project) -> None:
    project.cli("preview")
    url = project.endpoint()["url"]
    project.configure({"port-webhook:region": None, "port-webhook:baseUrl": url})
    try:
        refused(
            project,
            "port-webhook:clientId",
            "port-webhook:clientSecret",
            "refuses the credentials",
            PORT_CLIENT_ID="nobody",
            PORT_CLIENT_SECRET="planted-wrong-secret",
        )
        result = project.cli(
            "up", check=False, PORT_CLIENT_ID="nobody", PORT_CLIENT_SECRET="planted-wrong-secret"
        )
        assert "planted-wrong-secret" not in result.text
    finally:
        project.configure({"port-webhook:region": "local", "port-webhook:baseUrl": None})


def test_a_taken_port_is_named_and_the_next_up_goes_on(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        project.configure({"port-webhook-stack:listener": {"port": taken.getsockname()[1]}})
        refused(project, "listener.port", str(taken.getsockname()[1]))
    assert project.port("GET", "/v1/actions")["actions"] == []
    project.cli("up")
    assert set(changes(project.cli("up"))) == {"unchanged"}


def without_its_action(project: Project) -> None:
    """The stack is deployed, but somebody deleted the action in Port."""
    project.configure({"port-webhook-stack:listener": {}})
    project.cli("up")
    project.port("DELETE", "/v1/actions/deploy_microservice")
    project.cli("refresh")


def fault(status: int, count: int | None = None) -> dict[str, Any]:
    """Port answers with a status when an action is created; without a count every time."""
    return {
        "prefix": "/v1/actions",
        "method": "POST",
        "status": status,
        **({"count": count} if count else {}),
    }


def test_passing_faults_of_port_are_waited_out(project: Project) -> None:
    without_its_action(project)
    project.admin("DELETE", "/_local/calls")
    project.admin("PUT", "/_local/faults", json={"api": [fault(401, 1), fault(429, 1), fault(500, 1)]})
    project.cli("up")
    assert project.port("GET", "/v1/actions/deploy_microservice")["ok"] is True
    assert "POST /v1/actions" in str(project.admin("GET", "/_local/calls"))
    assert set(changes(project.cli("up"))) == {"unchanged"}


@pytest.mark.parametrize(
    ("status", "reason"), [(422, "asked for through /_local/faults"), (409, "is taken in Port")]
)
def test_lasting_refusals_of_port_name_resource_and_reason(
    project: Project, status: int, reason: str
) -> None:
    without_its_action(project)
    project.admin("PUT", "/_local/faults", json={"api": [fault(status)]})
    refused(project, "webhook-action-deploy_microservice", reason)
    project.admin("DELETE", "/_local/faults")
    project.cli("up")
    assert set(changes(project.cli("up"))) == {"unchanged"}


def test_a_program_with_mistakes_can_still_be_removed(project: Project) -> None:
    project.configure({"port-webhook-stack:hanlders": ["x"]})
    result = project.cli("down")
    assert "without the program" in result.stdout
    assert not project.state.exists()
