"""The deploy handler with real processes: start, replace, keep the old one when the new one is unhealthy."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from port_webhook_handlers.bundled.deploy import deploy_microservice
from port_webhook_handlers.bundled.deploy.blueprints import BLUEPRINTS
from port_webhook_handlers.bundled.deploy.local import current, folder_name
from port_webhook_handlers.process import ProcessIdentity
from port_webhook_handlers.runtime.deployments import end_deployments
from port_webhook_handlers.sdk import Failure, InputError, Success
from port_webhook_handlers.sdk.testing import Invocation, invoke

PROJECT = Path(__file__).parents[3]
SERVER = PROJECT / "examples" / "microservice"
RUN = ["{python}", "server.py"]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "project" / ".state" / "local"
    folder.mkdir(parents=True)
    yield folder
    end_deployments(folder / "deployments")


def deploy(state: Path, version: str = "1.0.0", service: str = "cart", **spec: Any) -> Invocation:
    spec = {"artefact": str(SERVER), "command": RUN, "health": "/health"} | spec
    settings = {"state_dir": str(state), "services": {service: spec}}
    return invoke(
        deploy_microservice,
        inputs={"version": version},
        entity={"identifier": service, "title": "Cart", "blueprint": "service"},
        settings=settings,
    )


def answer(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)


def failure(outcome: Invocation) -> str:
    assert isinstance(outcome.result, Failure), outcome
    return outcome.result.summary


def link(outcome: Invocation) -> str:
    assert isinstance(outcome.result, Success), outcome
    assert isinstance(outcome.result.link, str)
    return outcome.result.link


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def live(state: Path, service: str = "cart") -> ProcessIdentity:
    found = current(state / "deployments" / service)
    assert found is not None
    return found.process


def test_the_first_version_goes_live(state: Path) -> None:
    outcome = deploy(state)
    url = link(outcome)
    assert answer(url) == {"service": "microservice", "version": "1.0.0"}
    assert outcome.result.summary == f"cart 1.0.0 runs at {url}"
    assert outcome.progress == ["Deploying"]
    assert outcome.logs[0] == "took microservice"
    assert outcome.logs[-1] == "version 1.0.0 is healthy"
    (entity,) = outcome.entities
    body = entity["body"]
    assert entity["blueprint"] == "deployment"
    assert body["identifier"].startswith("cart-1.0.0-")
    assert body["properties"] | {"deployedAt": ""} == {
        "version": "1.0.0",
        "status": "Running",
        "url": url,
        "deployedAt": "",
        "run": "r_0123456789abcdef",
    }
    assert body["relations"] == {"service": "cart"}
    file = state / "deployments" / "cart" / "current.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert set(json.loads(file.read_text())) == {"pid", "start_time", "version", "port", "revision", "others"}


def test_a_new_version_replaces_the_old_one(state: Path) -> None:
    first = deploy(state)
    before = live(state)
    second = deploy(state, "1.1.0")
    assert answer(link(second))["version"] == "1.1.0"
    assert not before.is_alive()
    assert live(state).is_alive()
    assert "stopped version 1.0.0" in second.logs
    replaced = second.entities[1]["body"]
    assert replaced["identifier"] == first.entities[0]["body"]["identifier"]
    assert replaced["properties"] == {"status": "Replaced"}
    deploy(state, "1.2.0")
    folders = [path.name for path in (state / "deployments" / "cart").iterdir() if path.is_dir()]
    assert sorted(name.rpartition("-")[0] for name in folders) == ["1.1.0", "1.2.0"]


UNHEALTHY: list[tuple[dict[str, Any], str]] = [
    (
        {"command": ["{python}", "-c", "raise SystemExit('no database')"]},
        "ended before it was healthy; the end of",
    ),
    ({"health": "/nothing", "start_seconds": 1.5}, "did not get healthy in time (/nothing: 404)"),
    (
        {"command": ["{python}", "-c", "import time; time.sleep(60)"], "start_seconds": 0.3},
        "ConnectionRefusedError",
    ),
    ({"command": ["{artefact}/nothing"]}, "cannot be started"),
    ({"artefact": "nothing-{version}.zip"}, "nothing-2.0.0.zip does not exist"),
    (
        {"command": ["{python}", "-c", "pass"], "health": None},
        "ended before it was healthy; its log is empty",
    ),
]


@pytest.mark.parametrize(("spec", "message"), UNHEALTHY)
def test_a_version_that_does_not_work_changes_nothing(
    spec: dict[str, Any], message: str, state: Path
) -> None:
    url = link(deploy(state))
    before = live(state)
    outcome = deploy(state, "2.0.0", **spec)
    assert message in failure(outcome)
    assert outcome.entities == []
    assert live(state) == before
    assert answer(url)["version"] == "1.0.0"
    (folder,) = [path for path in (state / "deployments" / "cart").iterdir() if path.is_dir()]
    assert folder.name.startswith("1.0.0-")


def test_the_failure_shows_the_end_of_the_log(state: Path) -> None:
    outcome = deploy(state, command=["{python}", "-c", "raise SystemExit('no database')"])
    assert failure(outcome).endswith("```\nno database\n```")


def test_without_a_health_path_it_has_to_stay_alive(state: Path) -> None:
    began = time.monotonic()
    link(deploy(state, command=["{python}", "-c", "import time; time.sleep(60)"], health=None))
    assert time.monotonic() - began > 0.9
    assert live(state).is_alive()


def test_words_and_environment(state: Path) -> None:
    program = (
        "import json, os, sys; from pathlib import Path\n"
        "Path('seen.json').write_text(json.dumps([sys.argv[1:], os.environ['A'], os.environ['VERSION'], os.getcwd()]))\n"
        "import runpy; runpy.run_path('server.py', run_name='__main__')\n"
    )
    command = ["{python}", "-c", program, "{artefact}", "{port}", "{version}", "{other}", "$HOME; exit"]
    url = link(deploy(state, command=command, environment={"A": "{version}!"}))
    (seen,) = (state / "deployments").rglob("seen.json")
    artefact = str(seen.parent)
    assert json.loads(seen.read_text()) == [
        [artefact, url.rpartition(":")[2], "1.0.0", "{other}", "$HOME; exit"],
        "1.0.0!",
        "1.0.0",
        os.path.realpath(artefact),
    ]


def test_artefacts_of_every_shape(state: Path) -> None:
    project = state.parents[1]
    (project / "server.py").write_text((SERVER / "server.py").read_text())
    with zipfile.ZipFile(project / "cart-1.0.1.zip", "w") as package:
        package.write(SERVER / "server.py", "bin/server.py")
        package.getinfo("bin/server.py").external_attr = 0o100755 << 16
    with zipfile.ZipFile(project / "cart.whl", "w") as package:
        package.write(SERVER / "server.py", "cart/__main__.py")
    assert answer(link(deploy(state, artefact="server.py")))["version"] == "1.0.0"
    zipped = deploy(
        state, "1.0.1", artefact="cart-{version}.zip", command=["{python}", "{artefact}/bin/server.py"]
    )
    assert answer(link(zipped))["version"] == "1.0.1"
    (program,) = (state / "deployments").rglob("bin/server.py")
    assert program.stat().st_mode & 0o111
    wheel = deploy(state, "1.0.2", artefact="cart.whl", command=["{python}", "-m", "cart"])
    assert answer(link(wheel))["version"] == "1.0.2"


def _escaping(package: zipfile.ZipFile) -> None:
    package.writestr("../outside.py", "")


def _linking(package: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("link")
    entry.external_attr = 0o120777 << 16
    package.writestr(entry, "/etc/passwd")


@pytest.mark.parametrize(
    ("fill", "message"),
    [(_escaping, "outside its own folder"), (_linking, "holds the link"), (None, "cannot be used")],
)
def test_archives_that_are_refused(
    fill: Callable[[zipfile.ZipFile], None] | None, message: str, state: Path
) -> None:
    path = state.parents[1] / "cart.zip"
    if fill is None:
        path.write_bytes(b"no archive")
    else:
        with zipfile.ZipFile(path, "w") as package:
            fill(package)
    assert message in failure(deploy(state, artefact="cart.zip"))
    assert not list(state.rglob("outside.py"))


@pytest.mark.parametrize("service", ["..", "a/b", "Cart", "é", "x" * 400])
def test_no_service_leaves_its_folder(service: str, state: Path) -> None:
    link(deploy(state, service=service))
    (folder,) = [path for path in (state / "deployments").iterdir() if path.is_dir()]
    assert (folder / "current.json").exists()
    assert len(folder.name) < 255


def test_folders_of_services_differ() -> None:
    services = ["cart", "Cart", "CART", "ca.rt", "ca%2Ert", ".", "..", "x" * 150, "x" * 149 + "y"]
    assert len({folder_name(service).lower() for service in services}) == len(services)
    assert folder_name("cart_1-b") == "cart_1-b"


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"command": "server.py"}, "services.cart.command: must be a list of texts"),
    ({"command": []}, "services.cart.command: must be a list of texts"),
    ({"artefact": 1}, "services.cart.artefact: must be the path"),
    ({"health": "health"}, "services.cart.health: must be a path that starts with /"),
    ({"environment": {"A": 1}}, "services.cart.environment: must map"),
    ({"start_seconds": 0}, "services.cart.start_seconds: must be a number above zero"),
    ({"replicas": 2}, "services.cart.replicas: unknown key; remove it"),
]


@pytest.mark.parametrize(("spec", "message"), SETTINGS)
def test_settings_that_cannot_be_used_are_named(spec: dict[str, Any], message: str, state: Path) -> None:
    assert failure(deploy(state, **spec)).startswith(message)


def test_a_service_without_settings_is_named(state: Path) -> None:
    outcome = invoke(
        deploy_microservice,
        inputs={"version": "1.0.0"},
        entity="shop",
        settings={"state_dir": str(state), "services": {"cart": {}}},
    )
    assert failure(outcome).startswith(
        "services.shop: the settings of this handler do not say how to start it"
    )
    assert "known: cart" in failure(outcome)


def test_a_listener_without_state_is_named() -> None:
    outcome = invoke(
        deploy_microservice,
        inputs={"version": "1.0.0"},
        entity="cart",
        settings={"services": {"cart": {"command": ["x"], "artefact": "x"}}},
    )
    assert failure(outcome).startswith("state_dir: ")


@pytest.mark.parametrize("version", ["1.0", "01.0.0", "1.0.0\n", "../1.0.0", "1.0.0-", "v1.0.0"])
def test_versions_are_semantic(version: str, state: Path) -> None:
    with pytest.raises(InputError, match="version"):
        deploy(state, version)


def test_one_deployment_of_a_service_at_a_time(state: Path) -> None:
    outcomes: list[Invocation] = []
    threads = [
        threading.Thread(target=lambda version=version: outcomes.append(deploy(state, version)))
        for version in ("1.0.0", "2.0.0", "3.0.0")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(outcome.result, Success) for outcome in outcomes)
    ended = end_deployments(state / "deployments")
    assert len(ended) == 1


KILLED = """\
import sys
from pathlib import Path
from port_webhook_handlers.bundled.deploy.local import LocalDeployer
spec = {"command": ["{python}", "server.py"], "artefact": sys.argv[2], "health": "/never"}
deployer = LocalDeployer(Path(sys.argv[1]), Path("/"), {"services": {"cart": spec}})
deployer.deploy("cart", "9.0.0", report=lambda line: None, timeout_seconds=60)
"""


def test_what_a_killed_deployment_left_running_is_ended(state: Path) -> None:
    deployments = state / "deployments"
    link(deploy(state))
    before = live(state)
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(deployments), str(SERVER)])
    until(lambda: bool(list(deployments.glob("cart+9.0.0-*.json"))))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (file,) = deployments.glob("cart+9.0.0-*.json")
    left = json.loads(file.read_text())
    stray = ProcessIdentity(left["pid"], left["start_time"])
    assert stray.is_alive()
    assert live(state) == before
    link(deploy(state, "1.1.0"))
    assert not stray.is_alive()
    assert not file.exists()
    assert len(list(deployments.glob("*.json"))) == 1


def test_removal_ends_what_runs_and_what_was_interrupted(state: Path) -> None:
    deployments = state / "deployments"
    link(deploy(state))
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(deployments), str(SERVER)])
    until(lambda: bool(list(deployments.glob("cart+9.0.0-*.json"))))
    killed.kill()
    killed.wait()
    assert len(end_deployments(deployments)) == 2
    assert not live(state).is_alive()


IN_A_CHILD = """\
import json, os, sys, time
from port_webhook_handlers.sdk.invoke import run_request
run_request(json.loads(sys.argv[1]), lambda message: print(json.dumps(message), flush=True))
time.sleep(60)
"""


def test_a_service_outlives_the_process_group_of_its_handler(state: Path) -> None:
    request = {
        "run": {"id": "r_1", "action": "deploy_microservice", "entity": "cart", "deadline": time.time() + 60},
        "inputs": {"version": "1.0.0"},
        "handler": "port_webhook_handlers.bundled.deploy:deploy_microservice",
        "settings": {
            "state_dir": str(state),
            "services": {"cart": {"artefact": str(SERVER), "command": RUN, "health": "/health"}},
        },
    }
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_CHILD, json.dumps(request)],
        stdout=subprocess.PIPE,
        env={"PATH": os.environ["PATH"]},
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        messages = [json.loads(child.stdout.readline())]
        while "result" not in messages[-1]:
            messages.append(json.loads(child.stdout.readline()))
        os.killpg(child.pid, signal.SIGKILL)
    assert messages[-1]["result"]["status"] == "SUCCESS"
    assert answer(messages[-1]["result"]["link"])["version"] == "1.0.0"


def test_blueprints_fit_the_entities(state: Path) -> None:
    from port_webhook_handlers.port.names import is_identifier

    bodies = {body["identifier"]: body for body in BLUEPRINTS}
    deployment = bodies["deployment"]
    (entity,) = deploy(state, "1.0.0-RC.1").entities
    assert is_identifier(entity["body"]["identifier"])
    assert set(entity["body"]["properties"]) == set(deployment["schema"]["properties"])
    assert set(entity["body"]["relations"]) == set(deployment["relations"])
    assert deployment["relations"]["service"]["target"] == bodies["service"]["identifier"]
    assert bodies["service"]["schema"]["properties"]["passed"]["enum"] == ["Passed", "Not passed"]
