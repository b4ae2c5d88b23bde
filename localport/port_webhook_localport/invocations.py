"""Invocation methods: evaluated for showing, and evaluated with secrets for sending."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from port_webhook_localport import kafka, runstate
from port_webhook_localport.expressions import ExpressionError
from port_webhook_localport.port import MASK, Port
from port_webhook_localport.templates import MissingSecretError, render, render_masked
from port_webhook_localport.web import ApiError, compact

METHODS = ("POST", "PUT", "PATCH", "DELETE", "GET")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True, repr=False)
class Webhook:
    """An evaluated WEBHOOK invocation; may hold secrets."""

    url: str
    method: str
    headers: dict[str, str]
    body: Any
    agent: bool
    synchronized: bool

    def payload(self, kind: str = "WEBHOOK") -> dict[str, Any]:
        """What `run.payload` shows (Port's keys)."""
        return {
            "type": kind,
            "url": self.url,
            "agent": self.agent,
            "synchronized": self.synchronized,
            "method": self.method,
            "headers": self.headers,
            "body": self.body,
        }


class SecretMissingError(ApiError):
    """An invocation reads a secret that the organisation does not have: known before it is sent, but not fatal to
    the call that starts the run."""


def evaluate(port: Port, method: dict[str, Any], context: dict[str, Any]) -> Any:
    """An invocation method with its expressions replaced, secrets included.

    Returns:
        A `Webhook` for that type, else the evaluated document.

    Raises:
        SecretMissingError: 422 evaluate_invocation_method_error, a secret does not exist.
        ApiError: 422 evaluate_invocation_method_error, invalid_evaluated_invocation_method.
    """
    with_secrets = {**context, "secrets": port.secret_values()}
    try:
        if method["type"] in ("WEBHOOK", "SLACK"):
            return _webhook(render(_prepared(method), with_secrets))
        return render(method, with_secrets)
    except MissingSecretError as error:
        raise SecretMissingError(422, "evaluate_invocation_method_error", str(error)) from None
    except ExpressionError as error:
        raise ApiError(422, "evaluate_invocation_method_error", str(error)) from None


def masked(port: Port, method: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """The payload that the run shows: like `evaluate`, with every secret replaced by stars."""
    with_masks = {**context, "secrets": port.masked_secrets()}
    if method["type"] not in ("WEBHOOK", "SLACK"):
        shown: dict[str, Any] = render_masked(method, with_masks, MASK)
        return shown
    rendered = render_masked(_prepared(method), with_masks, MASK)
    try:
        return _webhook(rendered).payload(method["type"])
    except ApiError:
        # Only a mask in the wrong place gets here, or a secret that is missing: the rest has been evaluated.
        flags = {name: rendered.get(name) is True for name in ("agent", "synchronized")}
        shown = {"type": method["type"], "url": rendered["url"] or MASK, **flags}
        return {
            **shown,
            "method": rendered.get("method", "POST"),
            "headers": rendered.get("headers", {}),
            "body": rendered.get("body", {}),
        }


def launch(port: Port, run: runstate.Run) -> None:
    """Sets a stored run going: queues it, offers it to the agent, or says why nothing will happen."""
    kind = run.internal["method"]["type"]
    if (kind == "WEBHOOK" and run.agent and port.sends_over_kafka) or (kind in kafka.TYPES and port.kafka):
        run.delivery = "pending"
        port.queue_delivery(run.id)
    elif kind == "WEBHOOK" and run.agent:
        run.delivery = "agent"
        run.doc["pendingExecution"] = True
    elif kind in ("WEBHOOK", "UPSERT_ENTITY"):
        run.delivery = "pending"
        port.queue_delivery(run.id)
    else:
        runstate.add_log(
            port,
            run.id,
            f"Local Port does not deliver invocations of type {kind}; the run stays in progress.",
        )
    runstate.save(port, run)


def _prepared(method: dict[str, Any]) -> dict[str, Any]:
    """Blanks around a templated boolean do not count (Port's rule)."""
    flags = {
        name: method[name].strip() for name in ("agent", "synchronized") if isinstance(method.get(name), str)
    }
    return {**method, **flags}


def _webhook(rendered: dict[str, Any]) -> Webhook:
    return Webhook(
        url=_url(rendered["url"]),
        method=_method(rendered.get("method", "POST")),
        headers=_headers(rendered.get("headers", {})),
        body=rendered.get("body", {}),
        agent=_boolean(rendered, "agent"),
        synchronized=_boolean(rendered, "synchronized"),
    )


def _url(value: Any) -> str:
    if value is None:
        raise _invalid("url", "its expression yields null, so there is nowhere to send the invocation to")
    try:
        parts = urlsplit(value) if isinstance(value, str) else None
        valid = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
        valid = valid and parts is not None and parts.port != 0
    except ValueError:
        valid = False
    if not valid or re.search(r"[\x00-\x20\x7f]", value):
        raise _invalid("url", "must be an http or https URL without blanks")
    return str(value)


def _method(value: Any) -> str:
    if not isinstance(value, str) or value.upper() not in METHODS:
        raise _invalid("method", f"must be one of {', '.join(METHODS)}")
    return value.upper()


def _headers(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise _invalid("headers", "must be an object")
    headers: dict[str, str] = {}
    for name, item in value.items():
        if item is None:
            continue
        text = item if isinstance(item, str) else compact(item)
        if not _TOKEN.fullmatch(name) or re.search(r"[\x00-\x08\x0a-\x1f\x7f]", text):
            raise _invalid(f"headers.{name}", "is not a header name or holds control characters")
        headers[name] = text
    return headers


def _boolean(rendered: dict[str, Any], name: str) -> bool:
    value = rendered.get(name, False)
    if not isinstance(value, bool):
        raise _invalid(name, "must be a boolean or an expression that yields one")
    return value


def _invalid(field: str, problem: str) -> ApiError:
    return ApiError(422, "invalid_evaluated_invocation_method", f"invocationMethod.{field}: {problem}")
