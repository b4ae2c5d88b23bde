"""Network policies: everything is denied, and then what is needed is opened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.kubernetes import access, jobs
from port_webhook_stack.kubernetes.plan import Manifest, Plan

PRIVATE: Final = (
    "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
)  # fmt: skip
PRIVATE_6: Final = ("::1/128", "fc00::/7", "fe80::/10")
"""Destinations that are not the internet: clusters, nodes, metadata services."""

_HTTPS: Final = {"protocol": "TCP", "port": 443}
_KAFKA: Final = {"protocol": "TCP", "port": 9196}


def policies(plan: Plan) -> list[Manifest]:
    """All of them, for both namespaces."""
    settings = plan.settings
    api_server = {
        "to": [{"ipBlock": {"cidr": cidr}} for cidr in settings.api_server],
        "ports": [{"protocol": "TCP", "port": port} for port in (443, 6443)],
    }
    further = [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in settings.egress]}] if settings.egress else []
    scrape = _scrape(plan)
    found = [
        _deny(plan, plan.namespace),
        _deny(plan, plan.runs_namespace),
        _policy(
            plan,
            access.DISPATCHER,
            ingress=scrape,
            egress=[_dns(), api_server, _internet(_HTTPS), *further],
        ),
    ]
    for group in (None, *plan.listener_groups):
        cidrs = settings.group(group).egress if group is not None else ()
        found.append(
            _policy(
                plan,
                access.listener(group),
                ingress=[*_requests(plan), *scrape],
                egress=[_dns(), api_server, _internet(_HTTPS), *further, *_blocks(cidrs)],
            )
        )
    if settings.agent is not None:
        listeners = [
            {"podSelector": {"matchLabels": plan.labels(access.listener(group))}}
            for group in (None, *plan.listener_groups)
        ]
        ports = [{"protocol": "TCP", "port": names.PORT}]
        found.append(
            _policy(
                plan,
                access.AGENT,
                ingress=scrape,
                egress=[_dns(), _internet(_HTTPS, _KAFKA), {"to": listeners, "ports": ports}, *further],
            )
        )
    for group in plan.run_groups:
        found.append(
            _policy(
                plan,
                jobs.service_account(group),
                namespace=plan.runs_namespace,
                selector={**plan.labels(jobs.COMPONENT), names.GROUP_LABEL: names.label(group)},
                ingress=[],
                egress=[
                    _dns(),
                    _internet(_HTTPS),
                    # What a handler declared that it does in the cluster, it does through the API server.
                    *([api_server] if plan.rules(group, "async") else []),
                    *_blocks(settings.group(group).egress),
                ],
            )
        )
    return found


def _deny(plan: Plan, namespace: str) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": plan.metadata("default-deny", "network", namespace),
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
    }


def _policy(
    plan: Plan,
    component: str,
    *,
    ingress: Sequence[Manifest],
    egress: Sequence[Manifest],
    namespace: str | None = None,
    selector: dict[str, str] | None = None,
) -> Manifest:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": plan.metadata(component, "network", namespace),
        "spec": {
            "podSelector": {"matchLabels": selector or plan.labels(component)},
            "policyTypes": ["Ingress", "Egress"],
            **({"ingress": list(ingress)} if ingress else {}),
            "egress": list(egress),
        },
    }


def _requests(plan: Plan) -> list[Manifest]:
    """From the ingress controller, and from our own agent."""
    peers: list[Manifest] = []
    if plan.settings.ingress is not None:
        peers += [_namespace(name) for name in plan.settings.ingress.namespaces]
    if plan.settings.agent is not None:
        peers.append({"podSelector": {"matchLabels": plan.labels(access.AGENT)}})
    return [{"from": peers, "ports": [{"protocol": "TCP", "port": names.PORT}]}] if peers else []


def _scrape(plan: Plan) -> list[Manifest]:
    peers = [_namespace(name) for name in plan.settings.monitoring_namespaces]
    return [{"from": peers, "ports": [{"protocol": "TCP", "port": names.METRICS_PORT}]}] if peers else []


def _dns() -> Manifest:
    return {
        "to": [_namespace("kube-system")],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }


def _internet(*ports: dict[str, object]) -> Manifest:
    return {
        "to": [
            {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE)}},
            {"ipBlock": {"cidr": "::/0", "except": list(PRIVATE_6)}},
        ],
        "ports": list(ports),
    }


def _blocks(cidrs: Sequence[str]) -> list[Manifest]:
    return [{"to": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs]}] if cidrs else []


def _namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}
