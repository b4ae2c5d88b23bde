"""Calls an HTTP API with a stored token: only hosts, methods and paths that the stack's settings allow.

handlerSettings:
  call_http_api:
    hosts:
      tickets.example.com:
        methods: [GET, POST]
        paths: [/api/v2/tickets]
        token: {header: Authorization, prefix: "Bearer "}
        idempotency_header: Idempotency-Key
        summary: "Ticket {key} is {fields.status}"
        link: "https://tickets.example.com/browse/{key}"
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from port_webhook_handlers.bundled import outbound
from port_webhook_handlers.bundled.options import entry, fill
from port_webhook_handlers.sdk import Failure, Field, Inputs, Result, Run, SettingError, Success, Url, action

TOKEN = "HTTP_API_TOKEN"  # noqa: S105 - the name of a secret, not its value
"""The secret that holds the token."""

# Kept back from the handler's time, so that it can still report.
_RESERVE_SECONDS = 10
_SHOWN_CHARACTERS = 500


class HttpCall(Inputs):
    """What the form asks."""

    method: Annotated[Literal["GET", "POST", "PUT", "PATCH", "DELETE"], Field(title="Method")]
    url: Annotated[Url, Field(title="URL", description="On a host that the settings allow", max_length=2000)]
    body: Annotated[dict[str, Any] | None, Field(title="Body", description="Sent as JSON")] = None


@dataclass(frozen=True, slots=True)
class _Host:
    """What may be done on one host; see docs/bundled-handlers.md."""

    methods: tuple[str, ...]
    paths: tuple[str, ...]
    private: bool
    plain: bool
    header: str | None
    prefix: str
    idempotency_header: str | None
    attempts: int
    seconds: float
    summary: str
    link: str


@action(
    "call_http_api",
    title="Call an HTTP API",
    description="Sends one request, with the stored token, to a host that is allowed.",
    icon="Webhook",
    operation="CREATE",
    secrets=[TOKEN],
    timeout_seconds=120,
)
def call_http_api(inputs: HttpCall, run: Run) -> Result:
    """Sends the request; an answer that is not 2xx fails the run."""
    try:
        target = outbound.parse(inputs.url)
    except ValueError as error:
        return Failure(f"inputs.url {error}.")
    try:
        host = _host(run, target.origin)
        if problem := _not_allowed(inputs.method, target, host):
            return Failure(problem)
        answer = _exchange(inputs, target, host, run)
    except (SettingError, outbound.OutboundError) as error:
        return Failure(_sentence(error, inputs.method))
    run.log(f"{inputs.method} {target.origin} answered {answer.status}")
    if not 200 <= answer.status < 300:
        return Failure(_refusal(target, answer))
    return _mapped(target, host, answer)


def _host(run: Run, origin: str) -> _Host:
    options = entry(run.settings, "hosts", origin, "add it there if this action may call it")
    token = options.part("token")
    found = _Host(
        methods=options.texts("methods", ("GET",)),
        paths=options.texts("paths", ("/",)),
        private=options.flag("private"),
        plain=options.flag("plain"),
        header=token.text("header", "Authorization") if token else None,
        prefix=token.text("prefix", "") if token else "",
        idempotency_header=options.text("idempotency_header", "") or None,
        attempts=options.whole("attempts", 3, lowest=1, highest=10),
        seconds=options.number("timeout_seconds", 20, lowest=0.1, highest=100),
        summary=options.text("summary", ""),
        link=options.text("link", ""),
    )
    if token:
        token.end()
    options.end()
    return found


def _not_allowed(method: str, target: outbound.Target, host: _Host) -> str | None:
    if target.scheme == "http" and not host.plain:
        return f"{target.origin} may be called with https only; write https://, or set hosts.{target.origin}.plain."
    if method not in host.methods:
        return f"{method} is not allowed on {target.origin} (allowed: {', '.join(host.methods)})."
    path = target.path.partition("?")[0]
    if not any(path == start or path.startswith(start.rstrip("/") + "/") for start in host.paths):
        return f"This path is not allowed on {target.origin} (allowed: {', '.join(host.paths)})."
    return None


def _exchange(inputs: HttpCall, target: outbound.Target, host: _Host, run: Run) -> outbound.Answer:
    headers = {"Accept": "application/json", "User-Agent": "port-webhook"}
    body = None
    if inputs.body is not None:
        headers["Content-Type"] = "application/json"
        body = json.dumps(inputs.body).encode()
    if host.header:
        headers[host.header] = f"{host.prefix}{run.secret(TOKEN).strip()}"
    if host.idempotency_header:
        headers[host.idempotency_header] = run.idempotency_key
    return outbound.send_persistently(
        lambda seconds: outbound.send(
            inputs.method, target, headers=headers, body=body, private=host.private, seconds=seconds
        ),
        repeatable=inputs.method in outbound.REPEATABLE or host.idempotency_header is not None,
        attempts=host.attempts,
        seconds=max(1.0, run.seconds_left - _RESERVE_SECONDS),
        each_seconds=host.seconds,
        report=run.log,
    )


def _mapped(target: outbound.Target, host: _Host, answer: outbound.Answer) -> Result:
    try:
        values = json.loads(answer.body) if answer.body else {}
    except ValueError:
        values = {}
    values = values if isinstance(values, dict) else {"items": values}
    where = f"hosts.{target.origin}"
    try:
        summary = fill(host.summary, values, f"{where}.summary")
        link = fill(host.link, values, f"{where}.link")
    except SettingError as error:
        # The call has taken effect, so the run must not look as if it had not.
        return Success(f"{target.origin} answered {answer.status}. No summary: {error}")
    if link and not link.startswith(("https://", "http://")):
        return Success(f"{summary or 'Done'}. No link: {where}.link gives no http address.")
    return Success(summary or f"{target.origin} answered {answer.status}.", link=link or None)


def _refusal(target: outbound.Target, answer: outbound.Answer) -> str:
    if 300 <= answer.status < 400:
        return (
            f"{target.origin} answered {answer.status}: a redirect, which is not followed; use the final URL."
        )
    text = answer.text.strip()[:_SHOWN_CHARACTERS].replace("```", "'''")
    return f"{target.origin} answered {answer.status}." + (f"\n\n```\n{text}\n```" if text else "")


def _sentence(error: Exception, method: str) -> str:
    unknown = isinstance(error, outbound.OutboundError) and error.sent and method not in ("GET", "HEAD")
    hint = " Whether it took effect is unknown: look there before running this again." if unknown else ""
    return f"{error}.{hint}"
