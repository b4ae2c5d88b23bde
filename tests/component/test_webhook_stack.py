"""The facade with Pulumi's mocks: what is registered, in which order, with which inputs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pulumi
import pytest
from tests.fixtures_localport import LocalPort, local_port

from port_webhook_handlers.bundled.deploy import blueprints
from port_webhook_handlers.port import Action as PortAction
from port_webhook_handlers.port import Webhook as PortWebhook
from port_webhook_handlers.port import self_service
from port_webhook_handlers.port.envelope import action_webhook
from port_webhook_stack import (
    BlueprintSet,
    DefinitionsError,
    Settings,
    SettingsError,
    StackError,
    WebhookStack,
    catalog,
)
from port_webhook_stack.settings import parse

__all__ = ["local_port"]

CLIENT_SECRET = "planted-client-secret"


class Mocks(pulumi.runtime.Mocks):
    """Answers as the provider would, and keeps what was registered."""

    def __init__(self) -> None:
        self.registered: dict[str, pulumi.runtime.MockResourceArgs] = {}
        self.order: list[str] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.registered[args.name] = args
        self.order.append(args.name)
        outputs = dict(args.inputs)
        match args.typ:
            case "port-webhook:local:Listener":
                outputs |= {"url": "http://127.0.0.1:4000", "port": 4000}
            case "port-webhook:local:SecretsStore":
                outputs |= {"version": "v1"}
            case "port-webhook:local:LocalPort":
                outputs |= {"clientId": "local-id", "clientSecret": CLIENT_SECRET}
            case "port-webhook:index:Verification":
                outputs |= {"checks": ["signed"]}
        return f"{args.name}-id", outputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:
        return {}


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Mocks]:
    """Runs the facade to its end and returns what it registered."""

    def go(
        values: Mapping[str, object] | None = None,
        provider: Mapping[str, str] | None = None,
        secret: tuple[str, ...] = (),
        **arguments: Any,
    ) -> Mocks:
        mocks = Mocks()
        pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="dev", preview=False)
        settings = make_settings(tmp_path, values, provider, secret)

        @pulumi.runtime.test
        def program() -> pulumi.Output[str]:
            return WebhookStack("w", settings, **arguments).url

        program()
        return mocks

    return go


def make_settings(
    project: Path,
    values: Mapping[str, object] | None = None,
    provider: Mapping[str, str] | None = None,
    secret: tuple[str, ...] = (),
) -> Settings:
    merged: dict[str, object] = {"handlers": ["port_webhook_handlers.bundled.deploy"], **(values or {})}
    texts = {f"port-webhook-stack:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in merged.items()}
    texts |= {f"port-webhook:{k}": v for k, v in (provider or {"region": "local"}).items()}
    return parse("dev", texts, frozenset(f"port-webhook-stack:{k}" for k in secret), {}, project)


def test_the_local_stack_registers_everything_once(run: Callable[..., Mocks]) -> None:
    mocks = run(
        blueprints=[blueprints.SERVICE, blueprints.DEPLOYMENT],
        entities=[{"blueprint": "service", "identifier": "cart", "title": "Cart"}],
    )
    types = {name: args.typ for name, args in mocks.registered.items()}
    assert types == {
        "w": "port-webhook:index:WebhookStack",
        "w-port": "port-webhook:local:LocalPort",
        "w-secrets": "port-webhook:local:SecretsStore",
        "w-listener": "port-webhook:local:Listener",
        "w-verification": "port-webhook:index:Verification",
        "w-blueprint-service": "port-webhook:index:Blueprint",
        "w-blueprint-deployment": "port-webhook:index:Blueprint",
        "w-entity-service-cart": "port-webhook:index:Entity",
        "w-action-deploy_microservice": "port-webhook:index:Action",
    }


def test_the_action_points_at_the_route_and_is_bound_to_it(run: Callable[..., Mocks]) -> None:
    inputs = run().registered["w-action-deploy_microservice"].inputs
    method = inputs["invocationMethod"]
    assert method["url"] == "http://127.0.0.1:4000/webhooks/deploy_microservice"
    assert method["body"]["port_context"] == {
        **method["body"]["port_context"],
        "action": "deploy_microservice",
        "runId": "{{ .run.id }}",
    }
    assert method["body"]["inputs"] == "{{ .inputs }}"


def test_a_tunnel_is_what_port_and_the_probes_see(run: Callable[..., Mocks]) -> None:
    mocks = run({"listener": {"publicUrl": "https://hooks.example.com/a/"}})
    url = mocks.registered["w-action-deploy_microservice"].inputs["invocationMethod"]["url"]
    assert url == "https://hooks.example.com/a/webhooks/deploy_microservice"
    assert mocks.registered["w-verification"].inputs["url"] == "https://hooks.example.com/a"


def test_definitions_come_after_the_proof(run: Callable[..., Mocks]) -> None:
    order = run(blueprints=[blueprints.SERVICE, blueprints.DEPLOYMENT]).order
    assert (
        order.index("w-listener")
        < order.index("w-verification")
        < order.index("w-action-deploy_microservice")
    )
    assert order.index("w-blueprint-service") < order.index("w-blueprint-deployment")
    assert order.index("w-port") < order.index("w-blueprint-service")


def test_verification_can_be_left_out(run: Callable[..., Mocks]) -> None:
    assert "w-verification" not in run({"verify": "off"}).registered


def test_the_keys_are_separate_and_default_to_the_client_secret(run: Callable[..., Mocks]) -> None:
    provider = {"region": "eu", "clientId": "org", "clientSecret": CLIENT_SECRET}
    public = {"listener": {"publicUrl": "https://h.example"}}
    store = run(public, provider).registered["w-secrets"].inputs
    assert plain(store["signing"]) == [{"value": CLIENT_SECRET}]
    assert plain(store["api"]) == {"clientId": "org", "clientSecret": CLIENT_SECRET}
    assert plain(store["decryption"]) == [CLIENT_SECRET]

    own = {
        **public,
        "signingSecrets": [{"value": "sign-new"}, {"value": "sign-old", "notAfter": "2027-01-01T00:00:00Z"}],
        "apiCredentials": {"clientId": "svc", "clientSecret": "svc-secret"},
        "decryptionKeys": ["key"],
    }
    secret = ("signingSecrets", "apiCredentials", "decryptionKeys")
    store = run(own, provider, secret).registered["w-secrets"].inputs
    assert plain(store["signing"])[0] == {"value": "sign-new"}
    assert plain(store["api"])["clientId"] == "svc"
    assert plain(store["decryption"]) == ["key"]
    assert CLIENT_SECRET not in json.dumps({name: plain(value) for name, value in store.items()})

    # A private key opens other inputs than the client secret does.
    pem = "-----BEGIN PRIVATE KEY-----"
    store = (
        run({**public, "decryptionKeys": [pem]}, provider, ("decryptionKeys",)).registered["w-secrets"].inputs
    )
    assert plain(store["decryption"]) == [pem, CLIENT_SECRET]


def test_everything_in_the_store_is_secret(run: Callable[..., Mocks]) -> None:
    store = run({"secrets": {"TOKEN": "t"}}, secret=("secrets",)).registered["w-secrets"].inputs
    assert all(is_secret(store[name]) for name in ("signing", "api", "decryption", "secrets"))


def test_port_secrets_are_created_secret(run: Callable[..., Mocks]) -> None:
    mocks = run({"portSecrets": {"SLACK_PATH": "T1/B2"}}, secret=("portSecrets",))
    inputs = mocks.registered["w-secret-SLACK_PATH"].inputs
    assert inputs["secretName"] == "SLACK_PATH"
    assert is_secret(inputs["secretValue"])


def test_ports_own_api_is_called_in_the_region_of_the_stack(run: Callable[..., Mocks]) -> None:
    definition = {
        "identifier": "notify",
        "trigger": {
            "type": "automation",
            "event": {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"},
        },
        "invocationMethod": {
            "type": "WEBHOOK",
            "url": "port-api:/v1/actions/deploy_microservice/runs?run_as=a@example.com",
            "synchronized": True,
            "method": "POST",
            "body": {"properties": {}},
        },
    }
    provider = {"region": "us", "clientId": "a", "clientSecret": "b"}
    settings = {"listener": {"publicUrl": "https://h.example"}}
    mocks = run(settings, provider, definitions=[definition])
    assert mocks.registered["w-automation-notify"].typ == "port-webhook:index:Automation"
    assert mocks.registered["w-automation-notify"].inputs["invocationMethod"]["url"] == (
        "https://api.us.getport.io/v1/actions/deploy_microservice/runs?run_as=a@example.com"
    )


def definition(identifier: str = "greet", **method: Any) -> dict[str, Any]:
    return {
        "identifier": identifier,
        "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
        "invocationMethod": {"type": "WEBHOOK", "url": "https://hooks.example.com", **method},
    }


def test_definitions_may_be_typed_bodies_or_files(tmp_path: Path, run: Callable[..., Mocks]) -> None:
    (tmp_path / "port").mkdir()
    text = json.dumps([definition("in_a_file", url="route:deploy_microservice")])
    (tmp_path / "port" / "actions.json").write_text(text, encoding="utf-8")
    typed = PortAction(
        "typed", trigger=self_service("CREATE"), invocation_method=PortWebhook("https://t.example")
    )
    mocks = run({"definitions": ["port/*.json"]}, definitions=[typed, definition("body")])
    assert {"w-action-typed", "w-action-body", "w-action-in_a_file"} <= mocks.registered.keys()
    url = mocks.registered["w-action-in_a_file"].inputs["invocationMethod"]["url"]
    assert url == "http://127.0.0.1:4000/webhooks/deploy_microservice"


def test_the_agent_gets_the_address_at_both_places(run: Callable[..., Mocks]) -> None:
    webhook = action_webhook("deploy_microservice", agent=True).to_body()
    mocks = run(definitions=[{**definition("by_agent"), "invocationMethod": webhook}])
    method = mocks.registered["w-action-by_agent"].inputs["invocationMethod"]
    inner = method["body"]["payload"]["action"]["invocationMethod"]["url"]
    assert method["url"] == inner == "http://127.0.0.1:4000/webhooks/deploy_microservice"


def test_environments_that_share_an_organisation_differ_in_a_suffix(run: Callable[..., Mocks]) -> None:
    mocks = run({"identifierSuffix": "-dev"}, blueprints=[blueprints.SERVICE, blueprints.DEPLOYMENT])
    action = mocks.registered["w-action-deploy_microservice"].inputs
    assert action["identifier"] == "deploy_microservice-dev"
    assert action["invocationMethod"]["body"]["port_context"]["action"] == "deploy_microservice"
    assert action["invocationMethod"]["url"].endswith("/webhooks/deploy_microservice")
    assert mocks.registered["w-blueprint-service"].inputs["identifier"] == "service"


def test_permissions_of_a_handler_become_a_resource(tmp_path: Path, run: Callable[..., Mocks]) -> None:
    (tmp_path / "guarded.py").write_text(
        "from port_webhook_handlers.sdk import Run, Success, action\n\n\n"
        '@action("guarded", title="G", operation="CREATE", permissions={"execute": {"teams": ["ops"]}})\n'
        "def handle(run: Run) -> Success:\n    return Success()\n",
        encoding="utf-8",
    )
    mocks = run({"handlers": ["guarded.py"]})
    permissions = mocks.registered["w-permissions-guarded"]
    assert permissions.typ == "port-webhook:index:ActionPermissions"
    assert permissions.inputs == {"action": "guarded", "execute": {"teams": ["ops"]}}
    assert mocks.order.index("w-action-guarded") < mocks.order.index("w-permissions-guarded")


def test_what_lint_is_told_to_leave_out_the_provider_leaves_out_too(run: Callable[..., Mocks]) -> None:
    mocks = run({"lintDisabled": ["PW101"]}, definitions=[{**definition(), "owner": "me"}])
    assert mocks.registered["w-action-greet"].inputs["lintDisabled"] == ["PW101"]
    assert "lintDisabled" not in run().registered["w-action-deploy_microservice"].inputs


def test_a_preview_checks_against_port_and_registers_nothing_wrong(
    tmp_path: Path, local_port: LocalPort
) -> None:
    settings = make_settings(
        tmp_path,
        {"listener": {"publicUrl": "https://h.example"}},
        {
            "baseUrl": local_port.url,
            "clientId": local_port.client_id,
            "clientSecret": local_port.client_secret,
        },
    )
    body = definition(headers={"A": "{{ .secrets.HOOK_TOKEN }}"})
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="dev", preview=True)
    with pytest.raises(DefinitionsError) as caught:
        WebhookStack("w", settings, definitions=[body])
    assert "greet: invocationMethod.headers.A: reads the secret 'HOOK_TOKEN'" in str(caught.value)
    assert "names the blueprint 'service', which does not exist" in str(caught.value)
    assert mocks.registered == {}


@pytest.mark.parametrize(
    ("values", "arguments", "error", "part"),
    [
        ({"handlers": []}, {}, SettingsError, "port-webhook-stack:handlers: names no handler"),
        ({"handlers": ["no.such.module"]}, {}, StackError, "no.such.module"),
        ({"handlers": ["broken.py"]}, {}, StackError, "broken.py"),
        ({"handlers": ["needy.py"]}, {}, SettingsError, "port-webhook-stack:secrets.REGISTRY_TOKEN"),
        ({"handlers": ["twin_a.py", "twin_b.py"]}, {}, StackError, "twin"),
        ({}, {"definitions": [{"title": "x"}]}, DefinitionsError, "identifier"),
        (
            {},
            {"definitions": [{"identifier": "deploy_microservice"}]},
            DefinitionsError,
            "deploy_microservice",
        ),
        (
            {},
            {
                "definitions": [
                    {"identifier": "a", "invocationMethod": {"type": "WEBHOOK", "url": "route:nope"}}
                ]
            },
            DefinitionsError,
            "nope",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_is_registered(
    tmp_path: Path,
    run: Callable[..., Mocks],
    values: Mapping[str, object],
    arguments: Mapping[str, Any],
    error: type[Exception],
    part: str,
) -> None:
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    head = "from port_webhook_handlers.sdk import Run, Success, action\n\n\n"
    body = "def handle(run: Run) -> Success:\n    return Success()\n"
    (tmp_path / "needy.py").write_text(
        f'{head}@action("needy", title="N", operation="CREATE", secrets=["REGISTRY_TOKEN"])\n{body}',
        encoding="utf-8",
    )
    for name in ("twin_a.py", "twin_b.py"):
        (tmp_path / name).write_text(
            f'{head}@action("twin", title="T", operation="CREATE")\n{body}', encoding="utf-8"
        )
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="dev", preview=False)
    with pytest.raises(error) as caught:
        WebhookStack("w", make_settings(tmp_path, values), **arguments)
    assert part in str(caught.value)
    assert mocks.registered == {}


def is_secret(value: Any) -> bool:
    """Whether the engine was told that a value is secret, in the form in which inputs travel."""
    return isinstance(value, dict) and value.get("4dabf18193072939515e22adb298388d") == (
        "1b47061264138c4ac30d75fd1eb44270"
    )


def plain(value: Any) -> Any:
    """A value without its mark of secrecy."""
    return value["value"] if is_secret(value) else value


MAPPED = {
    "service": {"blueprint": "microservice"},
    "environment": {"entity": "production"},
    "deployment": {"properties": {"status": "state"}},
}


def test_a_mapped_set_of_blueprints(run: Callable[..., Mocks], tmp_path: Path) -> None:
    modules = ["port_webhook_handlers.bundled.deploy", "port_webhook_handlers.bundled.expire"]
    values = {"catalog": MAPPED, "handlers": modules, "handlerSettings": {"*": {"a": 1}}}
    settings = make_settings(tmp_path, values)
    bodies = catalog.blueprints_of(settings)
    assert [body["identifier"] for body in bodies] == [
        "microservice",
        "environment",
        "deployment",
        "resource",
    ]
    assert catalog.environments_of(settings)[0]["identifier"] == "production"
    assert settings.handler_settings["*"] == {"a": 1, "catalog": MAPPED}
    mocks = run({"catalog": MAPPED}, blueprints=bodies, entities=catalog.environments_of(settings))
    action = mocks.registered["w-action-deploy_microservice"].inputs
    assert action["trigger"]["blueprintIdentifier"] == "microservice"
    with pytest.raises(SettingsError, match=r"catalog.service.properties.nam: is none of the set"):
        catalog.catalog_of(make_settings(tmp_path, {"catalog": {"service": {"properties": {"nam": "x"}}}}))


def test_the_set_as_a_component() -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="p", stack="dev", preview=False)

    @pulumi.runtime.test
    def program() -> None:
        BlueprintSet("set", catalog=MAPPED, include=["deployment", "resource"])

    program()
    assert sorted(mocks.registered) == [
        "set",
        "set-deployment",
        "set-environment",
        "set-microservice",
        "set-production",
        "set-resource",
    ]


FOREIGN = """
from port_webhook_handlers.sdk import Inputs, action, payloads

class Form(Inputs):
    text: str

@action("theirs", payload=payloads.LEGACY)
def theirs(inputs: Form) -> None: ...

@action("ours", payload=payloads.RUN_ID_HEADER, manage=True)
def ours(inputs: Form) -> None: ...
"""


def test_what_others_declare_is_served_but_not_touched(run: Callable[..., Mocks], tmp_path: Path) -> None:
    (tmp_path / "foreign.py").write_text(FOREIGN)
    mocks = run({"handlers": ["./foreign.py"]})
    assert [name for name in mocks.registered if "action" in name] == ["w-action-ours"]
    method = mocks.registered["w-action-ours"].inputs["invocationMethod"]
    assert method["headers"] == {"RUN_ID": "{{ .run.id }}"}
    assert method["body"]["{{ spreadValue() }}"] == "{{ .inputs }}"
    with pytest.raises(SettingsError, match=r"identifierSuffix.*ours"):
        run({"handlers": ["./foreign.py"], "identifierSuffix": "-staging"})
