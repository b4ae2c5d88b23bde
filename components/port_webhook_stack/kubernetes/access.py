"""Who may do what: ServiceAccounts, Roles, and admission policies where a Role cannot say it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.kubernetes import jobs, pods
from port_webhook_stack.kubernetes.plan import DEFAULT_GROUP, Manifest, Plan

LISTENER = "listener"
DISPATCHER = "dispatcher"
AGENT = "agent"


def listener(group: str | None) -> str:
    """Name of the listener of a group, or of the one for everything else."""
    return LISTENER if group is None else f"{LISTENER}-{names.label(group)}"


def service_accounts(plan: Plan) -> list[Manifest]:
    """One for each process and each privilege group; none mounts its token by itself."""
    settings = plan.settings
    accounts = [_account(plan, LISTENER, {}), _account(plan, DISPATCHER, {})]
    accounts += [
        _account(plan, listener(group), settings.group(group).annotations) for group in plan.listener_groups
    ]
    if settings.agent is not None:
        accounts.append(_account(plan, AGENT, {}))
    accounts += [
        _account(plan, jobs.service_account(group), settings.group(group).annotations, plan.runs_namespace)
        for group in plan.run_groups
    ]
    return accounts


def roles(plan: Plan) -> list[Manifest]:
    """The listener creates Secrets in the runs' namespace; the dispatcher does the rest; nobody else anything."""
    listeners = [LISTENER, *(listener(group) for group in plan.listener_groups)]
    dispatcher: list[Manifest] = [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch", "patch", "delete"]},
        {
            "apiGroups": ["batch"],
            "resources": ["jobs"],
            "verbs": ["create", "get", "list", "watch", "delete"],
        },
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch", "patch"]},
        {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    ]
    lease: list[Manifest] = [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [plan.config().lease],
            "verbs": ["get", "update"],
        },
    ]
    accept: list[Manifest] = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]}]
    return [
        *_role(plan, "accept-runs", accept, listeners, plan.runs_namespace),
        *_role(plan, "dispatch-runs", dispatcher, [DISPATCHER], plan.runs_namespace),
        *_role(plan, "dispatcher-lease", lease, [DISPATCHER], plan.namespace),
        *_declared_roles(plan),
    ]


def _declared_roles(plan: Plan) -> list[Manifest]:
    """What handlers declared, for the accounts under which they run, in the namespaces that it is about."""
    accounts = [
        *((jobs.service_account(group), plan.runs_namespace, group, "async") for group in plan.run_groups),
        *((listener(group), plan.namespace, group, "sync") for group in plan.listener_groups),
        (LISTENER, plan.namespace, DEFAULT_GROUP, "sync"),
    ]
    found: list[Manifest] = []
    for account, home, group, mode in accounts:
        by_namespace: dict[str, list[Manifest]] = {}
        for rule in plan.rules(group, mode):
            by_namespace.setdefault(rule["namespace"], []).append(
                {
                    "apiGroups": [rule["group"]],
                    "resources": list(rule["resources"]),
                    "resourceNames": list(rule["names"]),
                    "verbs": list(rule["verbs"]),
                }
            )
        for namespace, rules in by_namespace.items():
            # The namespace is somebody else's: the account's own keeps the Roles of two stacks apart.
            found += _role(plan, f"{home}-{account}", rules, [account], namespace, home)
    return found


def admission_policies(plan: Plan) -> list[Manifest]:
    """What Roles cannot say: how a run's Secret and a run's Job must look."""
    from_dispatcher = [("from-dispatcher", f"request.userInfo.username == {_user(plan, DISPATCHER)}")]
    return [
        *_policy(plan, "jobs", _job_rules(plan), ["batch"], ["jobs"], ["CREATE"], _job_variables(plan), ()),
        *_policy(plan, "secrets", _SECRET_RULES, [""], ["secrets"], ["CREATE"], (), [_from_listeners(plan)]),
        *_policy(plan, "claims", _CLAIM_RULES, [""], ["secrets"], ["UPDATE", "DELETE"], (), from_dispatcher),
        *_policy(plan, "pods", _POD_RULES, [""], ["pods"], ["UPDATE"], (), from_dispatcher),
    ]


_SECRET_RULES = (
    (
        f"object.type == '{names.RUN_TYPE}' && has(object.immutable) && object.immutable",
        "the listener may only create immutable Secrets of runs",
    ),
    (
        "object.metadata.name.matches('^run-[0-9a-f]{40}$')",
        "a run's Secret is named from the hash of its run id",
    ),
    (
        f"has(object.metadata.labels) && '{names.MODE_LABEL}' in object.metadata.labels"
        f" && !('{names.STATE_LABEL}' in object.metadata.labels)"
        " && !has(object.metadata.ownerReferences) && !has(object.metadata.finalizers)",
        "a new run has a mode, no state, no owner and no finalizer",
    ),
)
_CLAIM_RULES = (
    (f"oldObject.type == '{names.RUN_TYPE}'", "the dispatcher may only change and delete Secrets of runs"),
)

# What of a Pod can be changed besides its images, and says where it runs or what others do with it.
_FIXED_IN_PODS = (
    "metadata.?labels", "metadata.?annotations", "metadata.?finalizers", "metadata.?ownerReferences",
    "spec.?tolerations", "spec.?nodeSelector", "spec.?affinity",
)  # fmt: skip
_POD_RULES = (
    (
        " && ".join(f"object.{part} == oldObject.{part}" for part in _FIXED_IN_PODS)
        + " && object.spec.containers.map(c, c.image) == oldObject.spec.containers.map(c, c.image)"
        " && !has(object.spec.schedulingGates)",
        "the dispatcher may only take a run's Pod's gate away",
    ),
)


def _account(plan: Plan, name: str, annotations: Mapping[str, str], namespace: str | None = None) -> Manifest:
    metadata = plan.metadata(name, "access", namespace)
    if annotations:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }


def _role(
    plan: Plan,
    name: str,
    rules: Sequence[Manifest],
    accounts: Sequence[str],
    namespace: str,
    home: str | None = None,
) -> list[Manifest]:
    metadata = plan.metadata(name, "access", namespace)
    api = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{api}/v1", "kind": "Role", "metadata": metadata, "rules": list(rules)},
        {
            "apiVersion": f"{api}/v1",
            "kind": "RoleBinding",
            "metadata": plan.metadata(name, "access", namespace),
            "roleRef": {"apiGroup": api, "kind": "Role", "name": name},
            "subjects": [
                {"kind": "ServiceAccount", "name": account, "namespace": home or plan.namespace}
                for account in accounts
            ],
        },
    ]


def _policy(
    plan: Plan,
    name: str,
    rules: Sequence[tuple[str, str]],
    groups: Sequence[str],
    resources: Sequence[str],
    operations: Sequence[str],
    variables: Sequence[tuple[str, str]],
    conditions: Sequence[tuple[str, str]],
) -> list[Manifest]:
    # Cluster-wide objects: the namespace keeps those of two stacks apart.
    full = f"{plan.runs_namespace}.{name}.{names.PREFIX}"
    metadata = {"name": full, "labels": plan.labels("access")}
    api = "admissionregistration.k8s.io/v1"
    spec: dict[str, Any] = {
        "failurePolicy": "Fail",
        "matchConstraints": {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": plan.runs_namespace}},
            "resourceRules": [
                {
                    "apiGroups": list(groups),
                    "apiVersions": ["v1"],
                    "operations": list(operations),
                    "resources": list(resources),
                }
            ],
        },
        "validations": [{"expression": rule, "message": message} for rule, message in rules],
    }
    if variables:
        spec["variables"] = [{"name": name, "expression": expression} for name, expression in variables]
    if conditions:
        spec["matchConditions"] = [
            {"name": name, "expression": expression} for name, expression in conditions
        ]
    return [
        {"apiVersion": api, "kind": "ValidatingAdmissionPolicy", "metadata": metadata, "spec": spec},
        {
            "apiVersion": api,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": full, "labels": plan.labels("access")},
            "spec": {"policyName": full, "validationActions": ["Deny"]},
        },
    ]


def _job_variables(plan: Plan) -> list[tuple[str, str]]:
    by_account = {jobs.service_account(group): group for group in plan.run_groups}
    secrets: dict[str, list[str]] = {account: [] for account in by_account}
    for route in plan.job_routes():
        name = jobs.secret(plan, route)
        if name is not None:
            secrets[jobs.service_account(route.privilege_group)].append(name)
        if route.encrypted_inputs:
            secrets[jobs.service_account(route.privilege_group)].append(names.FORMER_SIGNING)
    images = {account: plan.image(group) for account, group in by_account.items()}
    tokens = [account for account, group in by_account.items() if plan.token(group)]
    maps = [jobs.config_map(plan)["metadata"]["name"], *(shard.name for shard in plan.shards)]
    return [
        ("pod", "object.spec.template.spec"),
        ("main", "variables.pod.containers[0]"),
        ("account", "has(variables.pod.serviceAccountName) ? variables.pod.serviceAccountName : 'default'"),
        ("images", _cel(images) if images else "{'': ''}"),
        ("secrets", _cel(secrets) if secrets else "{'': ['']}"),
        ("tokens", _cel(tokens)),
        ("configMaps", _cel(maps)),
    ]


def _job_rules(plan: Plan) -> list[tuple[str, str]]:
    return [
        (
            f"request.userInfo.username == {_user(plan, DISPATCHER)}",
            "only the dispatcher creates Jobs of runs",
        ),
        ("object.metadata.name.matches('^run-[0-9a-f]{40}$')", "a run's Job is named like its Secret"),
        ("variables.account in variables.images", "a run's ServiceAccount is that of a privilege group"),
        (
            "size(variables.pod.containers) == 1 && !has(variables.pod.initContainers)",
            "a run has one container",
        ),
        (
            "variables.account in variables.images"
            " && variables.main.image == variables.images[variables.account]",
            "a run's image is the one that was deployed for its privilege group, by digest",
        ),
        (
            f"has(variables.main.command) && variables.main.command == {_cel(pods.command('job'))}"
            " && !has(variables.main.args) && !has(variables.main.lifecycle)",
            "a run's command is that of the runtime",
        ),
        (
            "!has(variables.main.envFrom) && (!has(variables.main.env) || variables.main.env.all(e,"
            " e.name.startsWith('PORT_WEBHOOK_') && (!has(e.valueFrom) || has(e.valueFrom.fieldRef))))",
            "a run's variables hold no secrets and change nothing but the runtime's",
        ),
        (
            "variables.account in variables.tokens || (has(variables.pod.automountServiceAccountToken)"
            " && !variables.pod.automountServiceAccountToken)",
            "a run gets a token of the cluster only where its privilege group has one",
        ),
        (
            "has(variables.pod.volumes) && variables.pod.volumes.all(v, has(v.emptyDir)"
            " || (has(v.secret) && (v.secret.secretName == object.metadata.name"
            " || (variables.account in variables.secrets"
            " && v.secret.secretName in variables.secrets[variables.account])))"
            " || (has(v.configMap) && v.configMap.name in variables.configMaps)"
            " || (has(v.projected) && v.projected.sources.all(s,"
            " has(s.configMap) && s.configMap.name in variables.configMaps)))",
            "a run mounts its own Secret, that of its handler's group, the bundle and its configuration",
        ),
        (
            "(!has(object.spec.parallelism) || object.spec.parallelism == 1)"
            " && (!has(object.spec.completions) || object.spec.completions == 1)",
            "a run is one Pod at a time",
        ),
    ]


def _from_listeners(plan: Plan) -> tuple[str, str]:
    accounts = [LISTENER, *(listener(group) for group in plan.listener_groups)]
    users = [f"system:serviceaccount:{plan.namespace}:{account}" for account in accounts]
    return "from-listener", f"request.userInfo.username in {_cel(users)}"


def _user(plan: Plan, account: str) -> str:
    return _cel(f"system:serviceaccount:{plan.namespace}:{account}")


def _cel(value: Any) -> str:
    """A value as a CEL literal; those of JSON are the same."""
    return json.dumps(value, ensure_ascii=True, sort_keys=True)
