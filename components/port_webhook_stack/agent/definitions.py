"""Definitions whose invocations go through an agent."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from port_webhook_handlers.port.definitions import Webhook
from port_webhook_handlers.port.envelope import legacy_body
from port_webhook_handlers.port.names import route_name


def with_agent(
    bodies: Mapping[str, Mapping[str, Any]], actions: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Bodies with `agent: true` and the legacy envelope in what invokes the stack's routes.

    Over Kafka an agent finds URL, method and run id in that envelope alone (Port's format).

    Args:
        bodies: bodies by the identifiers that they were written with.
        actions: such identifiers that use the agent; empty: all whose URL is a route.
    """
    return {
        name: _through_agent(body) if _uses_agent(name, body, actions) else dict(body)
        for name, body in bodies.items()
    }


def identifiers(bodies: Mapping[str, Mapping[str, Any]], further: str) -> list[str]:
    """Identifiers in Port of the definitions that an agent delivers.

    Args:
        bodies: bodies of the stack's definitions.
        further: a type of invocation that goes to it whether or not it says so, `KAFKA` or `GITLAB`.
    """
    return sorted(
        str(body["identifier"])
        for body in bodies.values()
        if body.get("invocationMethod", {}).get("agent") is True
        or body.get("invocationMethod", {}).get("type") == further
    )


def hosts(bodies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`host:port` of the literal URLs that an agent delivers to."""
    found = set()
    for body in bodies.values():
        method = body.get("invocationMethod", {})
        url = method.get("url")
        if method.get("agent") is not True or not isinstance(url, str) or route_name(url) is not None:
            continue
        parts = urlsplit(url)
        if parts.hostname and "{" not in parts.netloc:
            found.add(f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}")
    return sorted(found)


def _uses_agent(name: str, body: Mapping[str, Any], actions: Collection[str]) -> bool:
    method = body.get("invocationMethod", {})
    url = method.get("url")
    ours = method.get("type") == "WEBHOOK" and isinstance(url, str) and route_name(url) is not None
    return ours and (method.get("agent") is True or not actions or name in actions)


def _through_agent(body: Mapping[str, Any]) -> dict[str, Any]:
    method = body["invocationMethod"]
    sent = method.get("body")
    webhook = Webhook(
        method["url"],
        synchronized=method.get("synchronized") is True,
        method=method.get("method"),
        headers=method.get("headers"),
    )
    automation = body.get("trigger", {}).get("type") == "automation"
    legacy = legacy_body(str(body["identifier"]), webhook, automation=automation)
    through = {**(sent if isinstance(sent, Mapping) else {}), **legacy}
    return {**body, "invocationMethod": {**method, "agent": True, "body": through}}
