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
            {"port-webhook:region": None, "port-webhook:clientId": "only-the-id"},
            {},
            ["port-webhook-stack:listener.publicUrl"],
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
            "port-webhook",
            "PORT_CLIENT_SECRET",
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


@pytest.mark.parametrize(
    ("status", "heals"), [(401, True), (429, True), (500, True), (422, False), (409, False)]
)
def test_port_answering_with_an_error(project: Project, status: int, heals: bool) -> None:
    project.configure({"port-webhook-stack:listener": {}})
    project.cli("up")
    action = project.port("GET", "/v1/actions/deploy_microservice")["action"]
    project.port("DELETE", "/v1/actions/deploy_microservice")
    project.cli("refresh")
    fault = {"prefix": "/v1/actions", "method": "POST", "status": status, **({"count": 1} if heals else {})}
    project.admin("PUT", "/_local/faults", json={"api": [fault]})
    if heals:
        project.cli("up")
    else:
        refused(project, str(status), "webhook-action-deploy_microservice")
        project.admin("DELETE", "/_local/faults")
        project.cli("up")
    mended = project.port("GET", "/v1/actions/deploy_microservice")["action"]
    assert mended["invocationMethod"] == action["invocationMethod"]
    assert set(changes(project.cli("up"))) == {"unchanged"}
