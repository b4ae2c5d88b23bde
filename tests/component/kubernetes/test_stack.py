"""The facade with target kubernetes and Pulumi's mocks: what is registered, in which order, and what is refused."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pulumi
import pytest
import yaml
from tests.kubernetes.stack import HANDLERS, SETTINGS, SIGNING, TOKEN

from port_webhook_stack import SettingsError, StackError, WebhookStack
from port_webhook_stack.kubernetes import reachable, shards
from port_webhook_stack.settings import Settings, parse

SECRET_MARK = "4dabf18193072939515e22adb298388d"


class Mocks(pulumi.runtime.Mocks):
    """Keeps what was registered."""

    def __init__(self) -> None:
        self.registered: dict[str, pulumi.runtime.MockResourceArgs] = {}
        self.order: list[str] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        self.registered[args.name] = args
        self.order.append(args.name)
        return f"{args.name}-id", dict(args.inputs)

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:
        return {}

    def of(self, kind: str) -> list[pulumi.runtime.MockResourceArgs]:
        return [args for args in self.registered.values() if args.typ.endswith(f":{kind}")]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Path]:
    """A kubeconfig of something that answers, if only with a refusal."""

    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield kubeconfig(tmp_path, server.server_address[1])
        server.shutdown()
        thread.join()


def kubeconfig(folder: Path, port: int, scheme: str = "http") -> Path:
    path = folder / "kubeconfig"
    body = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": f"{scheme}://127.0.0.1:{port}"}}],
    }
    path.write_text(yaml.safe_dump(body))
    return path


def make_settings(folder: Path, kubernetes: Mapping[str, Any], **values: Any) -> Settings:
    (folder / "cluster_handlers.py").write_text(values.pop("source", HANDLERS), encoding="utf-8")
    merged: dict[str, Any] = {
        "target": "kubernetes",
        "handlers": ["cluster_handlers.py"],
        "kubernetes": {key: value for key, value in kubernetes.items() if value is not None},
        "secrets": {"TOKEN": TOKEN},
        "blueprints": "existing",
        **values,
    }
    texts = {f"port-webhook-stack:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in merged.items()}
    texts |= {
        "port-webhook:region": "eu",
        "port-webhook:clientId": "id",
        "port-webhook:clientSecret": SIGNING,
    }
    return parse("prod", texts, frozenset({"port-webhook-stack:secrets"}), {}, folder)


@pytest.fixture
def run(tmp_path: Path, cluster: Path) -> Callable[..., Mocks]:
    """Runs the facade to its end and returns what it registered."""

    def go(kubernetes: Mapping[str, Any] | None = None, **values: Any) -> Mocks:
        mocks = Mocks()
        pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="prod", preview=False)
        own = {**SETTINGS, "kubeconfig": str(cluster), **(kubernetes or {})}
        settings = make_settings(tmp_path, own, **values)

        @pulumi.runtime.test
        def program() -> pulumi.Output[str]:
            return WebhookStack("w", settings).url

        program()
        return mocks

    return go


def plain(value: Any) -> Any:
    return value["value"] if isinstance(value, dict) and SECRET_MARK in value else value


def test_everything_is_registered_below_its_component(run: Callable[..., Mocks]) -> None:
    mocks = run()
    kinds = {
        args.typ.split(":")[-1] for args in mocks.registered.values() if args.typ.startswith("kubernetes:")
    }
    assert kinds == {
        "ConfigMap", "Deployment", "HorizontalPodAutoscaler", "Ingress", "Namespace", "NetworkPolicy",
        "PodDisruptionBudget", "ResourceQuota", "Role", "RoleBinding", "Secret", "Service", "ServiceAccount",
        "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding",
    }  # fmt: skip
    assert {
        args.typ for args in mocks.registered.values() if args.typ.startswith("port-webhook:kubernetes:")
    } == {
        "port-webhook:kubernetes:Agent",
        "port-webhook:kubernetes:Listener",
        "port-webhook:kubernetes:SecretsStore",
    }


def test_the_registered_inputs_are_the_manifests(run: Callable[..., Mocks]) -> None:
    mocks = run()
    deployment = mocks.registered["w-deployment-port-webhook-listener"].inputs
    assert deployment["apiVersion"] == "apps/v1"
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 10
    account = mocks.registered["w-serviceaccount-port-webhook-listener"].inputs
    assert account["automountServiceAccountToken"] is False
    policy = mocks.registered["w-validatingadmissionpolicy-port-webhook-runs.jobs.port-webhook-stack"].inputs
    assert policy["spec"]["matchConstraints"]["resourceRules"][0]["operations"] == ["CREATE"]


def test_what_is_needed_comes_first(run: Callable[..., Mocks]) -> None:
    order = run().order
    deployment = order.index("w-deployment-port-webhook-listener")
    first = (
        "namespace",
        "role",
        "rolebinding",
        "secret",
        "networkpolicy",
        "validatingadmissionpolicybinding",
    )
    for name in order:
        kind = name.split("-")[1] if "-" in name else ""
        if kind in first and name != "w-secret-port-webhook-agent-secrets":
            assert order.index(name) < deployment, name
    assert deployment < order.index("w-horizontalpodautoscaler-port-webhook-listener")
    assert deployment < order.index("w-ingress-port-webhook-listener") < order.index("w-verification")
    assert order.index("w-verification") < order.index("w-action-work")


def test_port_calls_the_ingress(run: Callable[..., Mocks]) -> None:
    mocks = run()
    method = mocks.registered["w-action-work"].inputs["invocationMethod"]
    assert method["url"] == "https://hooks.example.com/webhooks/work"
    assert mocks.registered["w-verification"].inputs["url"] == "https://hooks.example.com"


def test_without_a_way_in_the_agent_fetches_everything(run: Callable[..., Mocks]) -> None:
    mocks = run({"ingress": None}, verify="off", identifierSuffix="-dev")
    methods = {
        name: mocks.registered[f"w-action-{name}"].inputs["invocationMethod"]
        for name in ("work", "hello", "privileged@hello")
    }
    assert all(method["agent"] is True for method in methods.values())
    assert methods["work"]["url"] == "http://listener.port-webhook.svc/webhooks/work"
    assert methods["privileged@hello"]["url"] == (
        "http://listener-ops.port-webhook.svc/webhooks/privileged%40hello"
    )
    spec = mocks.registered["w-deployment-port-webhook-agent"].inputs["spec"]["template"]["spec"]
    variables = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    assert "work-dev" in variables["AGENT_ACTIONS"].split(",")
    assert {"listener.port-webhook.svc", "listener-ops.port-webhook.svc"} <= set(
        variables["AGENT_ALLOWED_HOSTS"].split(",")
    )


def test_beside_an_ingress_the_agent_takes_nothing_that_port_delivers(run: Callable[..., Mocks]) -> None:
    mocks = run()
    spec = mocks.registered["w-deployment-port-webhook-agent"].inputs["spec"]["template"]["spec"]
    variables = {item["name"]: item.get("value") for item in spec["containers"][0]["env"]}
    assert variables["AGENT_ACTIONS"] == "-"
    assert mocks.registered["w-action-work"].inputs["invocationMethod"]["agent"] is False


def test_secrets_are_secret_and_where_they_belong(run: Callable[..., Mocks]) -> None:
    mocks = run()
    contents = {
        args.inputs["metadata"]["name"]: args.inputs["stringData"] for args in mocks.of("Secret")
        if args.typ.startswith("kubernetes:")
    }  # fmt: skip
    assert set(contents) == {
        "agent-secrets", "dispatcher-secrets", "handler-guarded", "listener-ops-secrets", "listener-secrets",
    }  # fmt: skip
    handler = json.loads(plain(plain(contents["handler-guarded"])["secrets.json"]))
    assert handler == {"secrets": {"TOKEN": TOKEN}, "decryption": []}
    # Nowhere else, in no form that the engine would show.
    for name, args in mocks.registered.items():
        if args.typ.startswith("kubernetes:") and not args.typ.endswith(":Secret"):
            assert SIGNING not in json.dumps(args.inputs), name
            assert TOKEN not in json.dumps(args.inputs), name


def test_a_new_bundle_replaces_its_config_maps_under_the_same_names(run: Callable[..., Mocks]) -> None:
    before = run()
    after = run(source=HANDLERS + "\n# changed\n")
    names = {args.name for args in before.of("ConfigMap")}
    assert names == {args.name for args in after.of("ConfigMap")}
    changed = [
        name
        for name in names
        if before.registered[name].inputs["metadata"]["name"]
        != after.registered[name].inputs["metadata"]["name"]
    ]
    # Pulumi makes the new ones, rolls what mounts them, then removes the old ones.
    assert {"w-configmap-bundle-00", "w-configmap-dispatcher"} <= set(changed)


def test_files_are_rendered_without_a_cluster_and_without_secrets(
    tmp_path: Path, run: Callable[..., Mocks]
) -> None:
    existing = {
        "listener": "l", "listener-ops": "lo", "dispatcher": "d", "guarded": "g",
    }  # fmt: skip
    own = {
        "renderYamlToDirectory": "out", "existingSecrets": existing, "agent": None, "context": "c",
    }  # fmt: skip
    mocks = run(own, verify="off")
    assert not [args for args in mocks.of("Secret") if args.typ.startswith("kubernetes:")]
    provider = mocks.registered["w-cluster"].inputs
    assert provider["renderYamlToDirectory"] == "out"
    # The provider refuses these beside a folder.
    assert (provider["kubeconfig"], provider.get("context")) == ("", None)
    pod = mocks.registered["w-deployment-port-webhook-listener"].inputs["spec"]["template"]["spec"]
    assert {"l"} == {v["secret"]["secretName"] for v in pod["volumes"] if v["name"] == "secrets"}


NEEDY = HANDLERS + "\nimport paramiko\n"


@pytest.mark.parametrize(
    ("kubernetes", "values", "part"),
    [
        ({"image": None}, {}, "kubernetes.image: is missing"),
        ({"ingress": None, "agent": None}, {}, "kubernetes.ingress: is missing"),
        ({"ingress": None}, {}, "port-webhook-stack:verify: is http"),
        ({"ingress": {"tlsSecret": "t"}}, {}, "kubernetes.ingress.host: is missing"),
        ({"image": "registry.example.com/runtime:1"}, {}, "does not name an image by digest"),
        ({"ingress": {"host": "hooks.example.com"}}, {}, "kubernetes.ingress.tlsSecret: is missing"),
        ({"apiServer": None}, {}, "kubernetes.apiServer: is missing"),
        ({"tolerations": [{"efect": "NoSchedule"}]}, {}, "did you mean effect?"),
        ({"tolerations": [{"effect": "Never"}]}, {}, "tolerations[0].effect: 'Never' is unknown"),
        ({"groups": {"opz": {}}}, {}, "kubernetes.groups.opz: is no privilege group"),
        ({"existingSecrets": {"work": "x"}}, {}, "kubernetes.existingSecrets.work: is neither"),
        ({"renderYamlToDirectory": "out"}, {}, "plain text in files"),
        ({}, {"secrets": {}}, "port-webhook-stack:secrets.TOKEN: is missing"),
        ({}, {"source": NEEDY}, "cluster_handlers"),
        ({"agent": {"kind": "official", "image": SETTINGS["image"]}}, {}, "PORT_ORG_ID: is missing"),
        ({"context": "nowhere"}, {}, "kubernetes.context: 'nowhere' is no context"),
        (
            {"kubeconfig": "/no/such/file"},
            {},
            "kubernetes.kubeconfig: /no/such/file is no readable kubeconfig",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_registered(
    tmp_path: Path, cluster: Path, kubernetes: dict[str, Any], values: dict[str, Any], part: str
) -> None:
    mocks = Mocks()
    pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="prod", preview=True)
    with pytest.raises(StackError) as caught:
        WebhookStack(
            "w", make_settings(tmp_path, {**SETTINGS, "kubeconfig": str(cluster), **kubernetes}, **values)
        )
    assert part in str(caught.value)
    assert mocks.registered == {}


def test_imports_that_the_image_lacks_are_named(tmp_path: Path, cluster: Path) -> None:
    # Importable here, as on a developer's machine, and still not in the image.
    source = HANDLERS.replace("import os, time", "import os, time, yaml")
    with pytest.raises(StackError) as caught:
        WebhookStack("w", make_settings(tmp_path, {**SETTINGS, "kubeconfig": str(cluster)}, source=source))
    assert "imports yaml, which the runtime image does not have" in str(caught.value)
    assert "kubernetes.groups.default.image" in str(caught.value)


@pytest.mark.parametrize("listening", [False, True])
def test_a_cluster_that_does_not_answer_is_said_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listening: bool
) -> None:
    # A load balancer without anything behind it takes connections, too.
    monkeypatch.setattr(reachable, "_ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        path = kubeconfig(tmp_path, server.getsockname()[1], "https")
        if not listening:
            server.close()
        mocks = Mocks()
        pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="prod", preview=False)
        with pytest.raises(StackError) as caught:
            WebhookStack("w", make_settings(tmp_path, {**SETTINGS, "kubeconfig": str(path)}))
    assert "does not answer" in str(caught.value)
    assert mocks.registered == {}


def test_kubeconfigs_that_the_provider_would_not_merge_are_refused(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", f"{cluster}{os.pathsep}{cluster}")
    with pytest.raises(SettingsError) as caught:
        reachable.server_of(None, None)
    assert "KUBECONFIG lists several files" in str(caught.value)
    monkeypatch.setenv("KUBECONFIG", str(cluster))
    assert reachable.server_of(None, None).startswith("http://127.0.0.1:")


def test_only_another_cluster_makes_everything_anew(run: Callable[..., Mocks], cluster: Path) -> None:
    inputs = run().registered["w-cluster"].inputs
    assert inputs["clusterIdentifier"] == reachable.server_of(str(cluster), None)


def test_a_bundle_that_does_not_fit_is_refused_at_preview(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1024)
    with pytest.raises(StackError) as caught:
        WebhookStack("w", make_settings(tmp_path, {**SETTINGS, "kubeconfig": str(cluster)}))
    assert "port-webhook-stack:handlers: the bundle is" in str(caught.value)
    assert "kubernetes.groups.<group>.image" in str(caught.value)


def test_a_missing_sdk_is_named_with_the_command(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StackError) as caught:
        WebhookStack("w", make_settings(tmp_path, {**SETTINGS, "kubeconfig": str(cluster)}))
    assert "pip install 'pulumi-kubernetes>=4,<5'" in str(caught.value)


def test_local_port_is_out_of_reach_of_a_cluster(tmp_path: Path) -> None:
    texts = {
        "port-webhook-stack:target": "kubernetes",
        "port-webhook-stack:handlers": json.dumps(["port_webhook_handlers.bundled.deploy"]),
        "port-webhook-stack:kubernetes": json.dumps(SETTINGS),
        "port-webhook:region": "local",
    }
    with pytest.raises(SettingsError) as caught:
        WebhookStack("w", parse("dev", texts, frozenset(), {}, tmp_path))
    assert "port-webhook:region: is local" in str(caught.value)


def test_bundled_handlers_may_change_the_deployments_of_their_settings(run: Callable[..., Mocks]) -> None:
    services = {
        name: {"namespace": namespace, "image": f"registry.example.com/{name}:{{version}}"}
        for name, namespace in (("cart", "shop"), ("bill", "billing"))
    }
    mocks = run(
        {"groups": None},
        handlers=[f"port_webhook_handlers.bundled.{name}" for name in ("deploy", "running")],
        handlerSettings={"*": {"target": "kubernetes", "services": services}},
        secrets={},
    )
    roles = [args.inputs for args in mocks.registered.values() if args.typ.endswith(":Role")]
    rules = {
        (role["metadata"]["namespace"], role["metadata"]["name"]): [
            (rule["resourceNames"], rule["verbs"]) for rule in role["rules"]
        ]
        for role in roles
        if role["metadata"]["namespace"] in ("shop", "billing")
    }
    names = [name.partition("run-deploy")[0] for _, name in rules if name.endswith("run-deploy")]
    assert len(set(names)) == 1
    run_role = f"{names[0]}run-deploy"
    listener_role = next(name for _, name in rules if name.endswith("listener-look"))
    assert rules == {
        ("billing", run_role): [(["bill"], ["get", "patch"])],
        ("shop", run_role): [(["cart"], ["get", "patch"])],
        ("billing", listener_role): [(["bill"], ["get"])],
        ("shop", listener_role): [(["cart"], ["get"])],
    }
    # The API server is open to runs that have something to do there.
    policies = [args.inputs for args in mocks.registered.values() if args.typ.endswith(":NetworkPolicy")]
    (opened,) = [item for item in policies if item["metadata"]["name"] == "run-deploy"]
    assert any(rule.get("ports", [{}])[-1].get("port") == 6443 for rule in opened["spec"]["egress"])
