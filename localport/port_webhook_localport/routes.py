"""The routes, and how a path finds its route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import unquote

from port_webhook_localport import (
    actions,
    admin,
    agent,
    blueprints,
    entities,
    execution,
    organization,
    runs,
    webhooks,
)
from port_webhook_localport.port import Port
from port_webhook_localport.web import Call, Reply, not_supported

Handler = Callable[[Port, Call], Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """One method and path; a segment in braces is a parameter."""

    method: str
    template: str
    handler: Handler

    @property
    def name(self) -> str:
        return f"{self.method} {self.template}"


_V1: list[tuple[str, str, Handler]] = [
    ("POST", "/auth/access_token", organization.authenticate),
    ("GET", "/organization", organization.get_organization),
    ("PATCH", "/organization", organization.patch_organization),
    ("POST", "/organization/secrets", organization.create_secret),
    ("GET", "/organization/secrets", organization.list_secrets),
    ("GET", "/organization/secrets/{name}", organization.get_secret),
    ("PATCH", "/organization/secrets/{name}", organization.patch_secret),
    ("DELETE", "/organization/secrets/{name}", organization.delete_secret),
    ("POST", "/webhooks", webhooks.create),
    ("GET", "/webhooks", webhooks.list_all),
    ("GET", "/webhooks/{webhook}", webhooks.get),
    ("PUT", "/webhooks/{webhook}", webhooks.put),
    ("DELETE", "/webhooks/{webhook}", webhooks.delete),
    ("GET", "/kafka-credentials", organization.kafka_credentials),
    ("POST", "/blueprints", blueprints.create),
    ("GET", "/blueprints", blueprints.list_all),
    ("GET", "/blueprints/{blueprint}", blueprints.get),
    ("PUT", "/blueprints/{blueprint}", blueprints.put),
    ("PATCH", "/blueprints/{blueprint}", blueprints.patch),
    ("DELETE", "/blueprints/{blueprint}", blueprints.delete),
    ("DELETE", "/blueprints/{blueprint}/all-entities", blueprints.delete_all_entities),
    ("GET", "/migrations/{migration}", blueprints.get_migration),
    ("POST", "/blueprints/{blueprint}/entities", entities.create),
    ("GET", "/blueprints/{blueprint}/entities", entities.list_all),
    ("POST", "/blueprints/{blueprint}/entities/search", entities.search_blueprint),
    ("GET", "/blueprints/{blueprint}/entities/{entity}", entities.get),
    ("PUT", "/blueprints/{blueprint}/entities/{entity}", entities.put),
    ("PATCH", "/blueprints/{blueprint}/entities/{entity}", entities.patch),
    ("DELETE", "/blueprints/{blueprint}/entities/{entity}", entities.delete),
    ("POST", "/entities/search", entities.search_all),
    ("POST", "/actions", actions.create),
    ("GET", "/actions", actions.list_all),
    ("GET", "/actions/runs", runs.list_all),
    ("POST", "/actions/runs/claim-pending", agent.claim),
    ("PATCH", "/actions/runs/ack", agent.acknowledge),
    ("GET", "/actions/runs/{run}", runs.get),
    ("PATCH", "/actions/runs/{run}", runs.patch),
    ("POST", "/actions/runs/{run}/logs", runs.add_log),
    ("GET", "/actions/runs/{run}/logs", runs.list_logs),
    ("PATCH", "/actions/runs/{run}/approval", runs.approve),
    ("GET", "/actions/runs/{run}/approvers", runs.approvers),
    ("PATCH", "/actions/runs/{run}/response", runs.patch_response),
    ("GET", "/actions/{action}", actions.get),
    ("PUT", "/actions/{action}", actions.put),
    ("DELETE", "/actions/{action}", actions.delete),
    ("POST", "/actions/{action}/runs", execution.execute),
    ("GET", "/actions/{action}/permissions", actions.get_permissions),
    ("PATCH", "/actions/{action}/permissions", actions.patch_permissions),
    ("POST", "/workflows/runs/claim-pending", agent.claim_workflows),
    ("PATCH", "/workflows/runs/ack", agent.acknowledge_workflow),
]
_ADMIN: list[tuple[str, str, Handler]] = [
    ("GET", "/settings", admin.get_settings),
    ("PUT", "/settings", admin.put_settings),
    ("POST", "/expire-token", admin.expire_token),
    ("GET", "/faults", admin.get_faults),
    ("PUT", "/faults", admin.put_faults),
    ("DELETE", "/faults", admin.delete_faults),
    ("GET", "/calls", admin.get_calls),
    ("DELETE", "/calls", admin.delete_calls),
    ("GET", "/deliveries", admin.get_deliveries),
    ("GET", "/runs/{run}", admin.get_run),
    ("PUT", "/kafka", admin.put_kafka),
    ("DELETE", "/kafka", admin.delete_kafka),
    ("POST", "/rotate-secret", admin.rotate_secret),
    ("POST", "/reset", admin.reset),
    ("POST", "/edit", admin.edit),
]
# Routes of Port that would otherwise look like one of the above with another method.
_UNSUPPORTED = [
    ("POST", "/blueprints/{blueprint}/entities/bulk"),
    ("DELETE", "/blueprints/{blueprint}/entities/bulk"),
    ("PUT", "/organization"),
]


def _refusing(name: str) -> Handler:
    def refuse(port: Port, call: Call) -> Reply:
        raise not_supported(f"the route {name}")

    return refuse


_V1 += [(method, path, _refusing(f"{method} /v1{path}")) for method, path in _UNSUPPORTED]
ROUTES = [Route(method, "/v1" + path, handler) for method, path, handler in _V1] + [
    Route(method, "/_local" + path, handler) for method, path, handler in _ADMIN
]


@dataclass(frozen=True, slots=True)
class Match:
    """What a path leads to.

    Attributes:
        route: None when no route has this method and path.
        path_known: whether another method has this path.
    """

    route: Route | None
    parameters: dict[str, str]
    path_known: bool


# Literal segments win over parameters, as `/actions/runs` does over `/actions/{action}`.
_INDEX: dict[int, list[tuple[list[str], Route]]] = {}
for _route in sorted(ROUTES, key=lambda route: [part.startswith("{") for part in route.template.split("/")]):
    _segments = _route.template.split("/")
    _INDEX.setdefault(len(_segments), []).append((_segments, _route))


def find(method: str, raw_path: str) -> Match:
    """The route of a path, which is still percent-encoded: an identifier may hold a slash."""
    segments = [unquote(segment) for segment in raw_path.split("/")]
    known = False
    for template, route in _INDEX.get(len(segments), []):
        if not all(
            part == segment or part.startswith("{") for part, segment in zip(template, segments, strict=True)
        ):
            continue
        known = True
        if route.method == method:
            names = zip(template, segments, strict=True)
            return Match(
                route, {part[1:-1]: segment for part, segment in names if part.startswith("{")}, True
            )
    return Match(None, {}, known)
