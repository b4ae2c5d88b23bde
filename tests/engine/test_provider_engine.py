"""The provider under the real engine: a real plugin process, and an API of Port on the loopback."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pulumi
import pytest
from pulumi import automation as auto
from semver import VersionInfo
from tests.component.provider import half_made
from tests.component.provider.fake_port import CLIENT_ID, CLIENT_SECRET, FakePort, error, running

from port_webhook_stack.engine import Engine, EngineError, resolve
from port_webhook_stack.port.resources import Action, Blueprint, Entity, Secret

pytestmark = [
    pytest.mark.engine,
    # The Automation API leaves the event loop of a failed program open.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parents[2]
ACTION: dict[str, Any] = {
    "identifier": "deploy",
    "title": "Deploy",
    "trigger": {
        "type": "self-service",
        "operation": "DAY-2",
        "blueprintIdentifier": "service",
        "userInputs": {
            "properties": {
                "version": {"type": "string", "pattern": "[0-9]+"},
                "count": {"type": "number", "default": 2},
            },
            "required": ["version", "count"],
        },
    },
    "invocationMethod": {"type": "WEBHOOK", "url": "https://hooks.example.com/port", "body": {"n": 1}},
}
SIGNATURE = "4dabf18193072939515e22adb298388d"
BLUEPRINT = {
    "identifier": "service",
    "title": "Service",
    "schema": {"properties": {"tier": {"type": "string"}}},
}


@pytest.fixture
def port() -> Iterator[FakePort]:
    with running() as fake:
        yield fake


class Project:
    """One stack of an inline program, each operation as `pulumi` does it."""

    def __init__(self, folder: Path, engine: Engine, base_url: str) -> None:
        self.folder = folder
        self.use_plugin(Path(sys.executable).parent)
        (folder / "backend").mkdir()
        self.program: Callable[[], None] = lambda: None
        self.environment = {
            "PULUMI_HOME": str(folder / "home"),
            "PULUMI_BACKEND_URL": (folder / "backend").as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": "test",
            "PULUMI_SKIP_UPDATE_CHECK": "1",
            "PORT_CLIENT_SECRET": CLIENT_SECRET,
        }
        command = auto.PulumiCommand.__new__(auto.PulumiCommand)
        command.command, command.version = str(engine.executable), VersionInfo.parse(engine.version)
        self.stack = auto.create_or_select_stack(
            "test",
            project_name="project",
            program=lambda: self.program(),
            opts=auto.LocalWorkspaceOptions(
                work_dir=str(folder), env_vars=self.environment, pulumi_command=command
            ),
        )
        self.configure(baseUrl=base_url, clientId=CLIENT_ID)

    def use_plugin(self, folder: Path) -> None:
        plugins = {"providers": [{"name": "port-webhook", "path": str(folder)}]}
        project = {"name": "project", "runtime": "python", "plugins": plugins}
        (self.folder / "Pulumi.yaml").write_text(json.dumps(project))

    def configure(self, **values: str) -> None:
        self.stack.set_all_config(
            {f"port-webhook:{key}": auto.ConfigValue(value) for key, value in values.items()}
        )

    def up(self) -> dict[str, int]:
        changes = self.stack.up(suppress_progress=True).summary.resource_changes or {}
        return {str(operation): count for operation, count in changes.items()}

    def preview(self) -> dict[str, list[str]]:
        """Detailed differences by resource name."""
        events: list[Any] = []
        self.stack.preview(on_event=events.append)
        return details(events)

    def refresh(self) -> dict[str, list[str]]:
        events: list[Any] = []
        self.stack.refresh(on_event=events.append, suppress_progress=True)
        return details(events)

    def state(self) -> dict[str, Any]:
        """Resources by name as they are in the backend's file."""
        (file,) = (self.folder / "backend").glob(".pulumi/stacks/**/test.json")
        resources = json.loads(file.read_text())["checkpoint"]["latest"]["resources"]
        return {entry["urn"].split("::")[-1]: entry for entry in resources}


def details(events: list[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for event in events:
        pre = event.resource_pre_event or event.res_outputs_event
        if pre and pre.metadata.detailed_diff:
            paths = sorted(
                f"{value.diff_kind.value} {path}" for path, value in pre.metadata.detailed_diff.items()
            )
            found[pre.metadata.urn.split("::")[-1]] = paths
    return found


@pytest.fixture(scope="session")
def engine() -> Engine:
    try:
        return resolve(report=lambda line: None)
    except EngineError as problem:
        pytest.skip(str(problem))


@pytest.fixture
def project(tmp_path: Path, engine: Engine, port: FakePort) -> Iterator[Project]:
    yield Project(tmp_path, engine, port.url)
    gc.collect()


def edited(path: str, value: Any) -> dict[str, Any]:
    """The action with one value changed."""
    action: dict[str, Any] = json.loads(json.dumps(ACTION))
    *steps, last = path.split(".")
    target = action
    for step in steps:
        target = target[step]
    target[last] = value
    return action


def test_life_of_an_action(project: Project, port: FakePort) -> None:
    pattern = "trigger.userInputs.properties.version.pattern"
    project.program = lambda: _export(Action("deploy", ACTION))
    assert project.up()["create"] == 2  # stack and action; the default provider is not counted
    assert port.calls_of() == ["GET /v1/organization", "POST /v1/actions"]
    assert port.tokens == 1
    assert port.objects["actions/deploy"]["trigger"]["userInputs"]["order"] == ["version", "count"]
    assert (
        type(port.objects["actions/deploy"]["trigger"]["userInputs"]["properties"]["count"]["default"]) is int
    )

    port.calls.clear()
    assert project.up() == {"same": 2}
    assert port.calls == []  # nothing changed, so Port is not asked, not even for a token

    project.program = lambda: _export(Action("deploy", edited(pattern, "v[0-9]+")))
    assert project.preview() == {"deploy": [f"update {pattern}"]}
    assert project.up()["update"] == 1
    assert port.calls_of("PUT") == ["PUT /v1/actions/deploy"]

    # Somebody saves the action in Port's UI: one real change, and the defaults that the UI makes explicit.
    outside = port.objects["actions/deploy"]
    outside["title"] = "Changed in Port"
    outside["requiredApproval"] = False
    outside["invocationMethod"] |= {"agent": False, "synchronized": False, "method": "POST", "headers": {}}
    outside["trigger"]["userInputs"]["required"].reverse()
    assert project.refresh() == {"deploy": ["update title"]}

    renamed = {**edited(pattern, "v[0-9]+"), "identifier": "release"}
    project.program = lambda: _export(Action("deploy", renamed))
    assert project.up()["update"] == 1  # in place, and the title is ours again
    assert set(port.objects) == {"actions/release"}
    assert port.objects["actions/release"]["title"] == "Deploy"

    del port.objects["actions/release"]
    project.refresh()
    assert "deploy" not in project.state()
    project.up()
    assert set(port.objects) == {"actions/release"}
    project.stack.destroy()
    assert port.objects == {}


def _export(resource: pulumi.CustomResource) -> None:
    pulumi.export("id", resource.id)


def test_catalogue_secret_and_import(project: Project, port: FakePort) -> None:
    port.objects["actions/existing"] = {
        **ACTION,
        "identifier": "existing",
        "createdAt": "2026-01-01T00:00:00Z",
    }

    def program() -> None:
        blueprint = Blueprint("service", BLUEPRINT, force_destroy=True)
        Entity(
            "cart",
            {"identifier": "cart", "title": "Cart", "properties": {"tier": "gold"}},
            blueprint=blueprint.identifier,
        )
        Secret("token", "HOOK_TOKEN", "s3cr3t-value")
        order = {"order": ["version", "count"]}
        existing = edited("trigger.userInputs", ACTION["trigger"]["userInputs"] | order) | {
            "identifier": "existing"
        }
        Action("existing", existing, opts=pulumi.ResourceOptions(import_="existing"))

    project.program = program
    assert project.up()["import"] == 1
    assert port.calls_of("GET").count("GET /v1/actions/existing") >= 1
    state = project.state()
    # The order in which Port shows the inputs becomes explicit, and the object itself is not written.
    assert state["existing"]["inputs"]["trigger"]["userInputs"]["order"] == ["version", "count"]
    assert "order" not in port.objects["actions/existing"]["trigger"]["userInputs"]
    assert state["cart"]["id"] == "service|cart"
    assert set(state["token"]["outputs"]["secretValue"]) == {SIGNATURE, "ciphertext"}
    assert set(state["token"]["inputs"]["secretValue"]) == {SIGNATURE, "ciphertext"}
    assert "s3cr3t-value" not in json.dumps(state)
    assert CLIENT_SECRET not in json.dumps(state)

    port.objects["blueprints/service/entities/made-by-a-run"] = {"identifier": "made-by-a-run"}
    project.stack.destroy()
    assert port.objects == {}


def test_failures_are_one_clean_line(project: Project, port: FakePort) -> None:
    project.program = lambda: _export(Action("deploy", {**ACTION, "titel": "Deploy"}))
    with pytest.raises(auto.CommandError) as failed:
        project.preview()
    assert "titel" in str(failed.value)
    assert "did you mean title?" in str(failed.value)
    assert "Traceback" not in str(failed.value)

    project.program = lambda: _export(Action("deploy", ACTION))
    port.on(
        "POST /v1/actions",
        error(422, "invalid_request", "body/trigger/userInputs/properties/version/pattern must be a regex"),
    )
    with pytest.raises(auto.CommandError) as failed:
        project.up()
    text = str(failed.value)
    assert "action deploy: trigger.userInputs.properties.version.pattern: Port refuses it" in text
    assert "trace-1" in text
    assert "Traceback" not in text


def test_another_port_replaces_everything(project: Project, port: FakePort) -> None:
    project.program = lambda: _export(Action("deploy", ACTION))
    project.up()
    with running() as other:
        project.configure(baseUrl=other.url)
        assert project.up()["replace"] == 1
        assert set(other.objects) == {"actions/deploy"}
        assert port.objects == {}
        other.organization = "org_1"
        project.stack.destroy()
        assert other.objects == {}


class Half(pulumi.CustomResource):
    def __init__(self, folder: Path) -> None:
        super().__init__(half_made.TOKEN, "half", {"folder": str(folder), "secret": "s3cr3t-value"})


def test_a_half_made_object_is_recorded_and_updated(project: Project, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin" / "pulumi-resource-port-webhook"
    plugin.parent.mkdir()
    plugin.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from port_webhook_stack.port import provider, provider_server\n"
        f"provider.REGISTRY[{half_made.TOKEN!r}] = 'tests.component.provider.half_made:Half'\n"
        "provider_server.main()\n"
    )
    plugin.chmod(0o755)
    project.use_plugin(plugin.parent)
    project.program = lambda: _export(Half(tmp_path))
    with pytest.raises(auto.CommandError) as failed:
        project.up()
    assert "it is not ready yet ([secret])" in str(failed.value)
    assert project.state()["half"]["outputs"]["phase"] == "created"
    assert "s3cr3t-value" not in json.dumps(project.state())

    assert project.up()["update"] == 1
    assert project.state()["half"]["outputs"]["phase"] == "updated"
    project.stack.destroy()
    assert (tmp_path / "deleted").exists()


def test_configuration_errors_name_the_key_and_the_remedy(project: Project) -> None:
    project.program = lambda: _export(Action("deploy", ACTION))
    project.configure(region="ue", clientID="x")
    with pytest.raises(auto.CommandError) as failed:
        project.preview()
    assert "clientID" in str(failed.value)
    assert "did you mean clientId?" in str(failed.value)
