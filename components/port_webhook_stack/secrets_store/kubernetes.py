"""The secrets store of target kubernetes: one Secret for each process and each handler, with what it needs.

The content of each is one file, `secrets.json`, in the format of the secrets store on every target. A Secret that
is there already (your own, or made by External Secrets) needs that key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pulumi

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_stack.kubernetes import access, jobs
from port_webhook_stack.kubernetes.plan import DEFAULT_GROUP, Manifest, Plan
from port_webhook_stack.kubernetes.register import Registrar

Content = Mapping[str, Any]


def name_of(plan: Plan, role: str) -> str:
    """Name of the Secret of a process."""
    return plan.settings.existing_secrets.get(role) or f"{role}-secrets"


def contents(plan: Plan, store: Content) -> dict[tuple[str, str], Content]:
    """Which part of the store goes into which Secret, by namespace and name; those that exist are left out.

    Args:
        plan: the deployment.
        store: everything: `signing`, `api`, `decryption`, `secrets`.
    """
    found: dict[tuple[str, str], Content] = {}
    for group in (None, *plan.listener_groups):
        role = access.listener(group)
        routes = plan.sync_routes(group or DEFAULT_GROUP)
        if role not in plan.settings.existing_secrets:
            part = {"signing": store["signing"], "api": store["api"], **_of_handlers(store, routes)}
            found[plan.namespace, name_of(plan, role)] = part
    if access.DISPATCHER not in plan.settings.existing_secrets:
        found[plan.namespace, name_of(plan, access.DISPATCHER)] = {"api": store["api"]}
    for route in plan.job_routes():
        name = jobs.secret(plan, route)
        if name is not None and route.name not in plan.settings.existing_secrets:
            found[plan.runs_namespace, name] = _of_handlers(store, [route])
    return found


def manifest(plan: Plan, namespace: str, name: str, text: Any) -> Manifest:
    """A Secret with `secrets.json`."""
    component = jobs.COMPONENT if namespace == plan.runs_namespace else "secrets"
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": plan.metadata(name, component, namespace),
        "type": "Opaque",
        "stringData": {names.SECRETS_FILE: text},
    }


def version(store: Content) -> str:
    """Changes with the content, and says nothing about it to those who have not got a signing secret."""
    key = "".join(str(item["value"]) for item in store["signing"]).encode()
    text = json.dumps(store, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]


class KubernetesSecretsStore(pulumi.ComponentResource):
    """Everything secret that listener, dispatcher and handlers read."""

    version: pulumi.Output[str]
    """Changes with the content."""

    secrets: Sequence[pulumi.Resource]
    """The Secrets."""

    def __init__(
        self,
        resource_name: str,
        plan: Plan,
        registrar_of: Any,
        *,
        signing: Sequence[Mapping[str, pulumi.Input[Any]]],
        api: Mapping[str, pulumi.Input[str]],
        decryption: Sequence[pulumi.Input[str]],
        secrets: Mapping[str, pulumi.Input[str]],
        after: Sequence[pulumi.Resource] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the component.
            plan: the deployment.
            registrar_of: function of a parent that gives its registrar.
            signing: secrets that Port signs with: `value`, and `notAfter` (RFC 3339) where one is being retired.
            api: `clientId` and `clientSecret` for reports to Port.
            decryption: keys of encrypted inputs, tried in order.
            secrets: values for the handlers that declare their names.
            after: the namespaces.
            opts: options of the component.
        """
        super().__init__("port-webhook:kubernetes:SecretsStore", resource_name, {}, opts)
        registrar: Registrar = registrar_of(self)
        store: pulumi.Output[dict[str, Any]] = pulumi.Output.secret(
            {
                "signing": list(signing),
                "api": dict(api),
                "decryption": list(decryption),
                "secrets": dict(secrets),
            }
        ).apply(stored)
        # Which Secrets there are must be known before their values are.
        shape: dict[str, Any] = {"signing": [], "api": None, "decryption": [], "secrets": {}}
        found: list[pulumi.Resource] = []
        for namespace, name in contents(plan, shape):
            text = store.apply(partial(_text, plan, (namespace, name)))
            found += registrar.add([manifest(plan, namespace, name, text)], after=after)
        self.secrets = found
        self.version = pulumi.Output.unsecret(store.apply(version))
        self.register_outputs({"version": self.version})


def stored(values: Content) -> dict[str, Any]:
    """The content as the processes read it; times as seconds since the epoch."""
    from datetime import datetime

    signing = [
        {
            "value": item["value"],
            "not_after": datetime.fromisoformat(item["notAfter"]).timestamp()
            if item.get("notAfter")
            else None,
        }
        for item in values["signing"]
    ]
    api = {"client_id": values["api"]["clientId"], "client_secret": values["api"]["clientSecret"]}
    return {**values, "signing": signing, "api": api}


def _text(plan: Plan, key: tuple[str, str], store: Content) -> str:
    return json.dumps(contents(plan, store)[key], sort_keys=True)


def _of_handlers(store: Content, routes: Sequence[Route]) -> dict[str, Any]:
    wanted = {name for route in routes for name in route.secrets}
    return {
        "secrets": {name: value for name, value in store["secrets"].items() if name in wanted},
        # A key only for handlers that get encrypted inputs.
        "decryption": store["decryption"] if any(route.encrypted_inputs for route in routes) else [],
    }
