"""The local stack through the command line: real engine, real processes, real HTTP.

One stack serves the whole module; the tests run in order, each leaving it deployed.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import requests
from tests.contract.definitions import VALID
from tests.engine.project import Project, changes, eventually, fresh

from port_webhook_handlers.port.client import PortClient
from port_webhook_localport import control

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    yield from fresh(tmp_path_factory.mktemp("local"))


@pytest.fixture(scope="module")
def first_up(project: Project) -> str:
    return project.cli("up").stdout


def listener_pid(project: Project, **environment: str) -> int:
    line = next(
        line
        for line in project.cli("status", **environment).stdout.splitlines()
        if line.startswith("listener")
    )
    assert "healthy" in line, line
    return int(line.partition("(pid ")[2].split(",")[0])


def deploy(project: Project, version: str) -> str:
    return project.cli(
        "run", "deploy_microservice", "--entity", "cart", "-i", f"version={version}", "--follow"
    ).stdout


def services(project: Project) -> set[int]:
    """Processes that a deployment has started."""
    return {process.pid for process in project.processes() if "server.py" in process.cmdline()}


def test_preview_from_nothing_creates_nothing(project: Project) -> None:
    result = project.cli("preview")
    assert changes(result)["created"] >= 9
    assert not (project.state / "listener").exists()
    assert project.port("GET", "/v1/actions")["actions"] == []


def test_up_from_nothing(project: Project, first_up: str) -> None:
    assert "✓ engine" in first_up
    assert "9 created" in first_up or "10 created" in first_up
    assert [action["identifier"] for action in project.port("GET", "/v1/actions")["actions"]] == [
        "deploy_microservice"
    ]


def test_a_run_ends_in_a_deployment_that_answers(project: Project, first_up: str) -> None:
    shown = deploy(project, "1.4.2")
    assert "deploy_microservice → SUCCESS" in shown
    entities = project.port("GET", "/v1/blueprints/deployment/entities")["entities"]
    assert len(entities) == 1
    assert entities[0]["relations"]["service"] == "cart"
    assert entities[0]["properties"]["version"] == "1.4.2"
    with requests.get(entities[0]["properties"]["url"] + "/health", timeout=5) as answer:
        assert answer.status_code == 200


def test_the_next_version_replaces_the_process(project: Project, first_up: str) -> None:
    deploy(project, "1.4.2")
    before = services(project)
    shown = deploy(project, "1.5.0")
    assert "1.5.0" in shown
    after = services(project)
    assert len(after - before) == 1
    assert before - after, "the process of the former version still runs"


def test_a_second_up_changes_nothing(project: Project, first_up: str) -> None:
    pid = listener_pid(project)
    assert set(changes(project.cli("up"))) == {"unchanged"}
    assert listener_pid(project) == pid


def test_refresh_sees_an_edit_in_port_and_up_mends_it(project: Project, first_up: str) -> None:
    action = project.port("GET", "/v1/actions/deploy_microservice")["action"]
    own = {key: value for key, value in action.items() if key not in ("id", "createdAt", "createdBy")}
    own = {key: value for key, value in own.items() if key not in ("updatedAt", "updatedBy")}
    project.port("PUT", "/v1/actions/deploy_microservice", json={**own, "title": "Edited in the UI"})
    assert changes(project.cli("refresh"))["updated"] == 1
    assert changes(project.cli("preview"))["updated"] == 1
    assert changes(project.cli("up"))["updated"] == 1
    assert project.port("GET", "/v1/actions/deploy_microservice")["action"]["title"] == action["title"]


def test_up_heals_what_was_killed(project: Project, first_up: str) -> None:
    pids = [listener_pid(project), psutil.Process(listener_pid(project)).children(recursive=True)[0].pid]
    local_port = int(project.cli("status").stdout.splitlines()[0].partition("(pid ")[2].rstrip(")"))
    for pid in (*pids, local_port):
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(local_port))
    url = project.cli("up").stdout.partition("url ")[2].split()[0]
    assert listener_pid(project) not in pids
    with requests.get(f"{url}/health", timeout=5) as answer:
        assert answer.status_code == 200
    assert "SUCCESS" in deploy(project, "1.6.0")


def test_new_settings_update_the_listener_in_place(project: Project, first_up: str) -> None:
    pid = listener_pid(project)
    project.configure({"port-webhook-stack:listener": {"syncDeadlineSeconds": 20}})
    assert changes(project.cli("up"))["updated"] == 1
    assert listener_pid(project) == pid
    assert "SUCCESS" in deploy(project, "1.6.1")


def test_a_changed_handler_is_what_runs_next(project: Project, first_up: str) -> None:
    (project.folder / "greet.py").write_text(
        "from port_webhook_handlers.sdk import Run, Success, action\n\n\n"
        '@action("greet", title="Greet", operation="CREATE", mode="sync")\n'
        'def greet(run: Run) -> Success:\n    return Success(response={"said": "hello"})\n',
        encoding="utf-8",
    )
    handlers = ["port_webhook_handlers.bundled.deploy", "greet.py"]
    project.configure({"port-webhook-stack:handlers": handlers})
    counts = changes(project.cli("up"))
    # The listener gets the new bundle, and the proof is made again before the action points at it.
    assert (counts["created"], counts["updated"]) == (1, 2)
    project.cli("run", "greet", "--follow")
    run = project.port("GET", "/v1/actions/runs?action=greet&version=v2")["runs"][0]
    assert (run["status"], run["response"]) == ("SUCCESS", {"said": "hello"})


def test_import_of_an_existing_action(project: Project, first_up: str) -> None:
    body = {
        "identifier": "by_hand",
        "title": "By hand",
        "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
        "invocationMethod": {"type": "WEBHOOK", "url": "https://example.com"},
    }
    project.port("POST", "/v1/actions", json=body)
    result = project.cli("import", "Action", "by-hand", "by_hand")
    assert changes(result)["import"] == 1
    assert changes(result)["unchanged"] >= 9
    assert project.exported("by-hand")["title"] == "By hand"
    # The program does not declare it, so the next deployment removes it again.
    assert changes(project.cli("up"))["deleted"] == 1
    assert "by_hand" not in [action["identifier"] for action in project.port("GET", "/v1/actions")["actions"]]


HELLO = """\
identifier: hello
title: Hello
trigger: {type: self-service, operation: CREATE, userInputs: {properties: {name: {type: string}}}}
invocationMethod:
  type: WEBHOOK
  url: https://hooks.example.com/{{ .secrets.HOOK }}
  body: {name: "{{ .inputs.name }}"}
"""


def test_definitions_in_files_are_checked_against_port_before_anything_changes(
    project: Project, first_up: str
) -> None:
    file = project.folder / "port" / "hello.yaml"
    file.parent.mkdir()
    file.write_text(HELLO.replace(".inputs.name", ".inputs.nmae"), encoding="utf-8")
    project.configure({"port-webhook-stack:definitions": ["port"]})
    before = project.port("GET", "/v1/actions")
    result = project.cli("preview", check=False)
    assert result.code == 1
    assert "port/hello.yaml:1: hello: invocationMethod.body.name: reads the input 'nmae'" in result.text
    assert "reads the secret 'HOOK', which nobody declares" in result.text
    assert "Traceback" not in result.text
    assert project.port("GET", "/v1/actions") == before

    file.write_text(HELLO, encoding="utf-8")
    project.port("POST", "/v1/organization/secrets", json={"secretName": "HOOK", "secretValue": "v"})
    assert changes(project.cli("preview"))["created"] == 1
    assert changes(project.cli("up"))["created"] == 1
    assert project.port("GET", "/v1/actions/hello")["action"]["title"] == "Hello"

    project.configure({"port-webhook-stack:definitions": None})
    assert changes(project.cli("up"))["deleted"] == 1


PROGRAM = """
from port_definitions import DEFINITIONS  # generated

import pulumi
from port_webhook_handlers.bundled.deploy import blueprints
from port_webhook_stack import Settings, WebhookStack

stack = WebhookStack(
    "webhook",
    Settings.load(),
    blueprints=[blueprints.SERVICE, blueprints.DEPLOYMENT],
    entities=[{"blueprint": "service", "identifier": "cart", "title": "Cart", "properties": {"language": "Python"}}],
    definitions=DEFINITIONS,
)
pulumi.export("url", stack.url)
pulumi.export("digest", stack.digest)
"""


def without_sealed(body: dict[str, Any]) -> dict[str, Any]:
    """A documented form without the input whose public key is only a placeholder."""
    copy: dict[str, Any] = json.loads(json.dumps(body))
    copy["trigger"].get("userInputs", {}).get("properties", {}).pop("sealed", None)
    return copy


def test_existing_definitions_become_code_without_any_change(project: Project, first_up: str) -> None:
    existing = [
        without_sealed(VALID[name])
        for name in (
            "webhook",
            "approval by all",
            "steps",
            "headings",
            "search condition",
            "RUN_UPDATED",
            "upsert with one team",
        )
    ]
    form = {"properties": {"b": {"type": "string"}, "a": {"type": "number"}}}
    unordered = {"type": "self-service", "operation": "CREATE", "userInputs": form}
    existing.append({**existing[0], "trigger": unordered, "publish": True})
    names = ["deploy", *(f"existing_{number}" for number in range(1, len(existing)))]
    project.port("POST", "/v1/organization/secrets", json={"secretName": "TOKEN", "secretValue": "v"})
    for name, body in zip(names, existing, strict=True):
        reply = project.port("POST", "/v1/actions", json={**body, "identifier": name})
        assert reply["ok"], reply
    before = {item["identifier"]: item for item in project.port("GET", "/v1/actions")["actions"]}

    options = [option for name in names for option in ("--action", name)]
    project.cli("import-code", *options, "--out", ".")
    program = (project.folder / "__main__.py").read_text(encoding="utf-8")
    (project.folder / "__main__.py").write_text(PROGRAM, encoding="utf-8")
    assert changes(project.cli("import", "--file", "import.json"))["import"] == len(names)
    assert set(changes(project.cli("preview"))) == {"unchanged"}
    assert set(changes(project.cli("up"))) == {"unchanged"}
    assert {item["identifier"]: item for item in project.port("GET", "/v1/actions")["actions"]} == before

    (project.folder / "__main__.py").write_text(program, encoding="utf-8")
    assert changes(project.cli("up"))["deleted"] == len(names)


def test_import_says_what_is_wrong(project: Project, first_up: str) -> None:
    for arguments, message in (
        (("Action", "x", "no_such_action"), "no_such_action: Port has no such object"),
        (("Automation", "x", "deploy_microservice"), "import it as port-webhook:index:Action"),
        (("Actoin", "x", "deploy_microservice"), "did you mean port-webhook:index:Action?"),
        (("Action", "x", "deploy_microservice", "--parent", "nobody"), "no resource of stack local"),
        (("Action", "x"), "import takes TYPE NAME ID"),
        (("--file", "none.json"), "cannot be read"),
    ):
        result = project.cli("import", *arguments, check=False)
        assert result.code != 0, arguments
        assert message in result.text, arguments
        assert "Traceback" not in result.text, arguments


def test_the_ledger_and_the_state_hold_no_secret_in_plain_text(project: Project, first_up: str) -> None:
    secret = project.endpoint()["client_secret"].encode()
    deploy(project, "1.7.0")
    holders = [
        path.relative_to(project.folder)
        for path in project.folder.rglob("*")
        if path.is_file()
        and not path.is_symlink()
        and ".venv" not in path.parts
        and secret in path.read_bytes()
    ]
    assert holders == []
    for process in psutil.process_iter():
        try:
            assert secret.decode() not in " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def test_another_port_gets_everything_and_the_listener_stays(
    project: Project, first_up: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pid = listener_pid(project)
    home = tmp_path_factory.mktemp("other-port")
    other = control.ensure_running(home)
    try:
        project.configure({"port-webhook:region": None, "port-webhook:baseUrl": other.url})
        credentials = {"PORT_CLIENT_ID": other.client_id, "PORT_CLIENT_SECRET": other.client_secret}
        project.cli("up", **credentials)
        assert set(changes(project.cli("up", **credentials))) == {"unchanged"}
        assert listener_pid(project, **credentials) == pid
        with PortClient(other.url, other.client_id, other.client_secret) as port:
            port.request(
                "POST", "/v1/blueprints/service/entities", json={"identifier": "cart", "title": "Cart"}
            )
        run = project.cli(
            "run", "deploy_microservice", "--entity", "cart", "-i", "version=2.0.0", "--follow", **credentials
        )
        assert "SUCCESS" in run.stdout
        # Back to the first one, which was removed with all that was in it.
        project.configure({"port-webhook:region": "local", "port-webhook:baseUrl": None})
        project.cli("up", **credentials)
        assert "SUCCESS" in deploy(project, "2.0.1")
        assert listener_pid(project) == pid
    finally:
        control.stop(home)


def test_down_leaves_nothing_behind(project: Project, first_up: str) -> None:
    assert project.processes()
    project.cli("down")
    eventually(lambda: not project.processes())
    assert not (project.folder / ".state").exists()
    assert not any(project.user_state.rglob("*.key"))
    with pytest.raises(FileNotFoundError):
        project.endpoint()
