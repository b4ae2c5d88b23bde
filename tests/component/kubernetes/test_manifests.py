"""Rules that every manifest keeps, whatever the settings; nothing here needs a cluster."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.kubernetes.control_plane import REPOSITORY
from tests.kubernetes.stack import HANDLERS, IMAGE, OPS_IMAGE, SIGNING, TOKEN, manifests, plan, store

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.agent import kubernetes as agent
from port_webhook_stack.kubernetes import jobs, network
from port_webhook_stack.kubernetes.plan import Plan
from port_webhook_stack.listener import kubernetes as listener

OFFICIAL = {
    "agent": {
        "kind": "official",
        "image": f"ghcr.io/port-labs/port-agent@sha256:{'d' * 64}",
        "environment": {"PORT_ORG_ID": "org"},
    }
}
VARIANTS: dict[str, Mapping[str, Any]] = {
    "everything": {},
    "official agent": OFFICIAL,
    "least": {"agent": None, "ingress": None, "monitoringNamespaces": None, "groups": None, "maxReplicas": 2},
    "placed": {
        "nodeSelector": {"kubernetes.io/arch": "arm64"},
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "hooks", "effect": "NoSchedule"}],
    },
    "token": {"groups": {"ops": {"mountToken": True, "serviceAccountAnnotations": {"role": "arn"}}}},
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    folder = tmp_path_factory.mktemp("plans")
    return {name: plan(folder, values) for name, values in VARIANTS.items()}


@pytest.fixture(params=list(VARIANTS))
def found(request: pytest.FixtureRequest, plans: dict[str, Plan]) -> Plan:
    return plans[request.param]


def everything(found: Plan) -> list[dict[str, Any]]:
    """All manifests, and the Jobs that the dispatcher makes."""
    return [*manifests(found), *jobs.templates(found).values()]


def pods(found: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and specification of every Pod."""
    for manifest in everything(found):
        if manifest["kind"] in ("Deployment", "Job"):
            spec = manifest["spec"]["template"]["spec"]
            yield f"{manifest['kind']}/{manifest['metadata']['name']}/{spec['serviceAccountName']}", spec


def test_every_manifest_is_valid_without_a_cluster(found: Plan) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate

        for manifest in everything(found):
            kubernetes_validate.validate(manifest, "1.37", strict=True)


def test_every_pod_is_restricted(found: Plan) -> None:
    for name, spec in pods(found):
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] > 10_000, name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec), name
        assert not spec["enableServiceLinks"], name
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert not context.get("privileged"), name


def test_every_container_is_bounded_and_pinned(found: Plan) -> None:
    for name, spec in pods(found):
        for container in spec["containers"]:
            for kind in ("requests", "limits"):
                assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"][kind]), name
            assert "@sha256:" in container["image"], name
        for volume in spec["volumes"]:
            assert set(volume) - {"name"} <= {"configMap", "emptyDir", "projected", "secret"}, name
            assert "sizeLimit" in volume.get("emptyDir", {"sizeLimit": 1}), name


def test_a_token_is_mounted_only_where_it_is_needed(plans: dict[str, Plan]) -> None:
    def with_token(found: Plan) -> set[str]:
        return {spec["serviceAccountName"] for _, spec in pods(found) if spec["automountServiceAccountToken"]}

    assert with_token(plans["everything"]) == {"listener", "listener-ops", "dispatcher"}
    assert with_token(plans["token"]) == {"listener", "listener-ops", "dispatcher", "run-ops"}
    for found in plans.values():
        accounts = [m for m in manifests(found) if m["kind"] == "ServiceAccount"]
        assert accounts
        assert not any(account["automountServiceAccountToken"] for account in accounts)


def test_every_deployment_has_probes_and_a_strategy(found: Plan) -> None:
    for manifest in everything(found):
        if manifest["kind"] != "Deployment":
            continue
        spec, name = manifest["spec"], manifest["metadata"]["name"]
        (container,) = spec["template"]["spec"]["containers"]
        assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container), name
        if name.startswith("listener"):
            assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
            scaled = found.settings.max_replicas > found.settings.replicas
            assert spec.get("replicas") == (None if scaled else found.settings.replicas)
            assert found.settings.replicas >= 2
            assert container["readinessProbe"]["httpGet"] != container["livenessProbe"]["httpGet"]
            grace = spec["template"]["spec"]["terminationGracePeriodSeconds"]
            waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert grace > waits + found.limits.sync_deadline_seconds + found.limits.drain_seconds
            assert {c["topologyKey"] for c in spec["template"]["spec"]["topologySpreadConstraints"]} == {
                "kubernetes.io/hostname",
                "topology.kubernetes.io/zone",
            }
        else:
            assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_what_selects_pods_finds_them(found: Plan) -> None:
    labels = {
        m["metadata"]["name"]: m["spec"]["template"]["metadata"]["labels"]
        for m in manifests(found)
        if m["kind"] == "Deployment"
    }
    for manifest in manifests(found):
        name = manifest["metadata"]["name"]
        match manifest["kind"]:
            case "Service":
                assert manifest["spec"]["selector"].items() <= labels[name].items()
            case "Deployment" | "PodDisruptionBudget":
                assert manifest["spec"]["selector"]["matchLabels"].items() <= labels[name].items()
            case "HorizontalPodAutoscaler":
                assert manifest["spec"]["scaleTargetRef"]["name"] in labels
    selectors = [
        p["spec"]["podSelector"]["matchLabels"]
        for p in network.policies(found)
        if p["spec"]["podSelector"] and p["metadata"]["namespace"] == found.runs_namespace
    ]
    for template in jobs.templates(found).values():
        pod = template["spec"]["template"]["metadata"]["labels"]
        assert sum(selector.items() <= pod.items() for selector in selectors) == 1


def test_everything_that_is_mounted_is_made(found: Plan) -> None:
    made = {(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests(found)}
    made.add(("Secret", found.namespace, "agent-secrets"))
    for manifest in everything(found):
        if manifest["kind"] not in ("Deployment", "Job"):
            continue
        namespace = manifest["metadata"]["namespace"]
        spec = manifest["spec"]["template"]["spec"]
        assert ("ServiceAccount", namespace, spec["serviceAccountName"]) in made
        for volume in spec["volumes"]:
            optional = volume.get("secret", {}).get("optional", False)
            assert optional == (volume["name"] == "previous")
            if "secret" in volume and volume["name"] not in ("run", "previous"):
                assert ("Secret", namespace, volume["secret"]["secretName"]) in made
            if "configMap" in volume:
                assert ("ConfigMap", namespace, volume["configMap"]["name"]) in made
            for source in volume.get("projected", {}).get("sources", ()):
                assert ("ConfigMap", namespace, source["configMap"]["name"]) in made


def test_traffic_is_denied_unless_it_is_needed(plans: dict[str, Plan]) -> None:
    found = plans["everything"]
    policies = {
        (p["metadata"]["namespace"], p["metadata"]["name"]): p["spec"] for p in network.policies(found)
    }
    for namespace in (found.namespace, found.runs_namespace):
        deny = policies[namespace, "default-deny"]
        assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    # Runs and the dispatcher are called by nobody; runs reach the internet, not the cluster.
    run = policies[found.runs_namespace, "run-default"]
    assert "ingress" not in run
    assert {port["port"] for rule in run["egress"] for port in rule["ports"]} == {53, 443}
    blocks = [peer["ipBlock"] for rule in run["egress"] for peer in rule["to"] if "ipBlock" in peer]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(blocks[0]["except"])
    ops = policies[found.runs_namespace, "run-ops"]
    assert {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}]} in ops["egress"]
    listener_ports = [
        (port["port"], peer) for rule in policies[found.namespace, "listener"]["ingress"]
        for port in rule["ports"] for peer in rule["from"]
    ]  # fmt: skip
    assert all(peer for _, peer in listener_ports)
    assert {port for port, _ in listener_ports} == {names.PORT, names.METRICS_PORT}


def test_only_webhooks_are_reachable_and_by_tls(plans: dict[str, Plan]) -> None:
    entry = listener.ingress(plans["everything"])
    assert entry is not None
    (rule,) = entry["spec"]["rules"]
    assert entry["spec"]["tls"] == [{"hosts": [rule["host"]], "secretName": "hooks-tls"}]
    paths = [(p["path"], p["pathType"], p["backend"]["service"]["name"]) for p in rule["http"]["paths"]]
    assert paths == [
        ("/webhooks/privileged%40hello", "Exact", "listener-ops"),
        ("/webhooks", "Prefix", "listener"),
    ]
    assert listener.ingress(plans["least"]) is None


def test_a_job_starts_once_unless_its_handler_says_otherwise(plans: dict[str, Plan]) -> None:
    templates = jobs.templates(plans["everything"])
    for route, template in templates.items():
        spec = template["spec"]
        assert spec["template"]["spec"]["restartPolicy"] == "Never"
        assert spec["ttlSecondsAfterFinished"] > 0
        assert spec["template"]["spec"]["schedulingGates"] == [{"name": names.START_GATE}]
        assert spec["activeDeadlineSeconds"] > plans["everything"].routes[route].timeout_seconds
        assert spec["backoffLimit"] == (2 if route == "again" else 0)
    again = templates["again"]["spec"]["podFailurePolicy"]["rules"]
    assert {
        "action": "FailJob",
        "onExitCodes": {"containerName": "run", "operator": "NotIn", "values": [75]},
    } in again
    assert templates["guarded"]["spec"]["template"]["spec"]["containers"][0]["image"] == OPS_IMAGE
    assert templates["work"]["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE


def test_pods_are_rolled_by_what_they_read(tmp_path: Path) -> None:
    def template(found: Plan, version: str) -> str:
        return json.dumps(listener.listener(found, None, version)["spec"]["template"]["spec"])

    def annotations(version: str) -> Any:
        return listener.listener(base, None, version)["spec"]["template"]["metadata"]["annotations"]

    same = {"namespace": "a", "runsNamespace": "b"}
    base = plan(tmp_path, same)
    assert template(plan(tmp_path, same), "1") == template(base, "1")
    assert annotations("1") != annotations("2")
    other = plan(tmp_path, same, handlers=HANDLERS + "\n# another bundle\n")
    assert template(other, "1") != template(base, "1")
    assert template(plan(tmp_path, same, port="https://api.us.getport.io"), "1") != template(base, "1")


def test_secrets_are_in_secrets_alone(found: Plan) -> None:
    for manifest in everything(found):
        text = json.dumps(manifest)
        if manifest["kind"] != "Secret":
            assert SIGNING not in text
            assert TOKEN not in text
    holders = {m["metadata"]["name"] for m in manifests(found) if SIGNING in json.dumps(m)}
    # The dispatcher has the API credentials, here the same secret; handlers have neither.
    assert holders == {"listener-secrets", "listener-ops-secrets", "dispatcher-secrets"}


def test_pods_go_where_they_are_told(plans: dict[str, Plan]) -> None:
    placed = VARIANTS["placed"]
    for name, spec in pods(plans["placed"]):
        assert (spec["nodeSelector"], spec["tolerations"]) == (
            placed["nodeSelector"],
            placed["tolerations"],
        ), name
    assert not any("tolerations" in spec for _, spec in pods(plans["everything"]))


def test_the_version_of_the_secrets_says_nothing_about_them() -> None:
    from port_webhook_stack.secrets_store.kubernetes import version

    first, second = store(), store()
    second["secrets"] = {"TOKEN": "another"}
    assert version(first) == version(store())
    assert version(first) != version(second)
    assert len(version(first)) == 32


def test_immutable_content_is_named_after_itself(found: Plan) -> None:
    maps = [m for m in manifests(found) if m["kind"] == "ConfigMap"]
    assert maps
    assert all(m["immutable"] for m in maps)
    assert all(m["metadata"]["name"][-6:-3].isalnum() for m in maps)


def test_the_official_agent_gets_its_environment(plans: dict[str, Plan]) -> None:
    deployment = agent.deployment(plans["official agent"], "v1")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    variables = {item["name"]: item["value"] for item in container["env"]}
    assert variables["PORT_ORG_ID"] == "org"
    assert variables["DETAILED_LOGGING"] == "false"
    assert container["envFrom"] == [{"secretRef": {"name": "agent-secrets"}}]
    assert deployment["spec"]["template"]["metadata"]["annotations"] == {
        "port-webhook-stack/secrets-version": "v1"
    }


@pytest.mark.parametrize("stack", ["kubernetes-dev", "kubernetes-prod"])
def test_the_stack_files_that_ship_give_valid_manifests(tmp_path: Path, stack: str) -> None:
    spec = importlib.util.spec_from_file_location("render", REPOSITORY / "tools" / "kubernetes" / "render.py")
    assert spec is not None
    assert spec.loader is not None
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import kubernetes_validate

        for manifest in render.render(render.plan_of(render.settings_of(stack), tmp_path)):
            kubernetes_validate.validate(manifest, "1.37", strict=True)
