"""The sink that sends HTTP requests, as Port would send them if it could reach the destination."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from port_webhook_handlers.agent import gitlab
from port_webhook_handlers.agent.core import RetryLaterError
from port_webhook_handlers.agent.destinations import AllowList, DestinationError
from port_webhook_handlers.agent.mapping import MappingError, Rule, decrypted
from port_webhook_handlers.agent.messages import Message
from port_webhook_handlers.agent.reports import NOTHING, Outcome
from port_webhook_handlers.port.client import requested_delay
from port_webhook_handlers.port.http_client import HttpClient, Reply, SendError
from port_webhook_handlers.port.signature import sign

RUN_ID_HEADER: Final = "x-port-run-id"
_METHODS: Final = frozenset({"POST", "PUT", "PATCH", "DELETE", "GET"})
# Set here; a header of that name from a definition would break the request or the signature.
_RESERVED: Final = frozenset(
    {
        "connection", "content-length", "expect", "host", "keep-alive", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade", "x-port-signature", "x-port-timestamp", RUN_ID_HEADER,
    }
)  # fmt: skip
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_RETRIED: Final = frozenset({408, 425, 429})
# The answer of a synchronous run is its result, unless it says that nothing was done.
_RETRIED_SYNCHRONOUS: Final = frozenset({425, 429, 503})
_QUOTED: Final = 500


class ForwardSink:
    """Sends each message to the URL of its invocation.

    Args:
        http: the client; it checks addresses.
        allowed: hosts that may be called.
        rules: control of the payload; without any, the evaluated body goes to the evaluated URL.
        signing_secret: gives the secret to sign with, as it is now.
        decryption_keys: gives the client secrets that may have encrypted inputs.
        secret: gives the secret of a name, for trigger tokens of GitLab, or None.
        gitlab_url: address of GitLab.
        official: sign and serialise as Port's own agent does, for receivers that are written for it.
        seconds: for one attempt.
        per_destination, concurrency: deliveries at once, to one host and port and to all.
        run_logs: say in the run's log what happened.
        detailed: quote the reply in summaries and run logs.
    """

    def __init__(
        self,
        http: HttpClient,
        allowed: AllowList,
        rules: Sequence[Rule],
        signing_secret: Callable[[], bytes],
        decryption_keys: Callable[[], Sequence[str]],
        *,
        secret: Callable[[str], str | None] = lambda name: None,
        gitlab_url: str = "https://gitlab.com/",
        official: bool = False,
        seconds: float = 30,
        per_destination: int = 32,
        concurrency: int = 256,
        run_logs: bool = True,
        detailed: bool = False,
    ) -> None:
        self._http = http
        self._allowed = allowed
        self._rules = rules
        self._signing_secret = signing_secret
        self._decryption_keys = decryption_keys
        self._secret = secret
        self._gitlab_url = gitlab_url
        # Where it is comes from the configuration, so it needs no entry in the list.
        self._gitlab_allowed = AllowList((urlsplit(gitlab_url).hostname or "",))
        self._official = official
        self._seconds = seconds
        self._per_destination = per_destination
        self._slots = asyncio.Semaphore(concurrency)
        self._places: dict[str, asyncio.Semaphore] = {}
        self._run_logs = run_logs
        self._detailed = detailed

    async def deliver(self, message: Message) -> Outcome:
        """One attempt; see `core.Sink`."""
        document = message.document
        rule: Rule | None = None
        allowed = self._allowed
        if self._rules:
            rule = next((item for item in self._rules if item.matches(document)), None)
            if rule is None and message.is_node_run:
                # As Port's own agent does: a workflow cannot go on without its node.
                return _failed("No entry of the agent's mapping is enabled for this node.")
            if rule is None:
                return Outcome("ignored")
        elif message.invocation.type == gitlab.TYPE:
            rule, allowed = gitlab.REPORT, self._gitlab_allowed
        try:
            if rule is not None and rule.decrypt:
                document = decrypted(document, rule.decrypt, self._decryption_keys())
            method, url, headers, body = self._request(message, document, rule)
            place = allowed.place(url)
        except (DestinationError, MappingError) as error:
            return _failed(str(error))
        # The destination's own slot first: those who wait for a slow one hold none of the common slots.
        async with self._place(place), self._slots:
            if message.lease.revoked:
                raise RetryLaterError("")
            began = time.monotonic()
            data, signed = self._serialised(message, body)
            try:
                reply = await self._http.request(
                    method, url, [*headers, *self._signature(signed)], data, self._seconds
                )
            except SendError as error:
                summary = f"{place} was not reached: {error}."
                if error.retryable:
                    raise RetryLaterError(summary) from None
                return _failed(summary)
        seconds = time.monotonic() - began
        request = {"method": method, "url": url, "headers": dict(headers), "body": body}
        return self._outcome(message, document, rule, request, reply, f"{method} {place}", seconds)

    def _request(
        self, message: Message, document: dict[str, Any], rule: Rule | None
    ) -> tuple[str, str, list[tuple[str, str]], Any]:
        invocation = message.invocation
        method: Any = invocation.method
        url: Any = invocation.url
        headers: Any = invocation.headers
        body: Any = document if self._official else message.body
        if rule is gitlab.REPORT:
            url, body = gitlab.trigger(message, self._gitlab_url, self._secret)
        elif rule is not None:
            if rule.decrypt and not self._official and isinstance(body, dict):
                # Paths start at the root of the message, which the body has in common with it.
                body = decrypted(body, rule.decrypt, self._decryption_keys())
            method = rule.get("method", document) if rule.has("method") else method
            url = rule.get("url", document) if rule.has("url") else url
            headers = rule.get("headers", document) if rule.has("headers") else headers
            body = rule.get("body", document) if rule.has("body") else body
        if not isinstance(url, str) or not url:
            raise MappingError(
                "The invocation has no URL; check the action, or `url` in the agent's mapping."
            )
        if not isinstance(method, str) or method.upper() not in _METHODS:
            raise MappingError(f"The invocation's method must be one of {', '.join(sorted(_METHODS))}.")
        if rule is not None and rule.has("query"):
            url = _with_query(url, rule.get("query", document))
        sent = [*_headers(headers), ("User-Agent", "port-webhook-agent")]
        if message.run_id is not None and _TOKEN.fullmatch(message.run_id):
            sent.append((RUN_ID_HEADER, message.run_id))
        if not any(name.lower() == "content-type" for name, _ in sent):
            sent.append(("Content-Type", "application/json"))
        return method.upper(), url, sent, body

    def _serialised(self, message: Message, body: Any) -> tuple[bytes, bytes]:
        """The bytes that are sent, and those that are signed."""
        if self._official:
            return json.dumps(body).encode(), json.dumps(body, separators=(",", ":")).encode()
        if body is message.body and message.raw is not None:
            return message.raw, message.raw
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        return data, data

    def _signature(self, data: bytes) -> list[tuple[str, str]]:
        timestamp = str(int(time.time()))
        return [
            ("x-port-timestamp", timestamp),
            ("x-port-signature", sign(self._signing_secret(), timestamp, data)),
        ]

    def _place(self, place: str) -> asyncio.Semaphore:
        found = self._places.get(place)
        if found is None:
            found = self._places[place] = asyncio.Semaphore(self._per_destination)
        return found

    def _outcome(
        self,
        message: Message,
        document: dict[str, Any],
        rule: Rule | None,
        request: dict[str, Any],
        reply: Reply,
        where: str,
        seconds: float,
    ) -> Outcome:
        line = f"{where} answered {reply.status} in {seconds * 1000:.0f} ms."
        if self._detailed and reply.body:
            line += f" {reply.body[:_QUOTED].decode('utf-8', 'replace')}"
        synchronized = message.invocation.synchronized
        retried = _RETRIED_SYNCHRONOUS if synchronized else _RETRIED
        if reply.status in retried or (reply.status >= 500 and not synchronized):
            raise RetryLaterError(line, requested_delay(_Names(reply.headers)))
        succeeded = 200 <= reply.status < 300
        status: Any = "FAILURE" if not succeeded else "SUCCESS" if synchronized else None
        summary: Any = None if succeeded else line
        link = external_run_id = None
        if rule is not None and rule.has("report"):
            report = rule.get("report", _report_document(document, request, reply))
            # An unknown status from a mapping would be refused by Port, and the run would stay open.
            status = report.get("status") if report.get("status") in ("SUCCESS", "FAILURE") else status
            summary = _text(report.get("summary")) or summary
            link, external_run_id = report.get("link"), _text(report.get("externalRunId"))
        return Outcome(
            "delivered" if succeeded else "failed",
            status,
            summary,
            link,
            external_run_id,
            response=_content(reply) if synchronized and reply.body else NOTHING,
            code=reply.status,
            line=line if self._run_logs else None,
        )


def _failed(summary: str) -> Outcome:
    return Outcome("failed", "FAILURE", summary)


def _headers(headers: object) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in (headers if isinstance(headers, Mapping) else {}).items():
        if value is None or name.lower() in _RESERVED:
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if not _TOKEN.fullmatch(name) or _FORBIDDEN_VALUE.search(text):
            raise MappingError(f"The header {name[:50]!r} is none that can be sent.")
        found.append((name, text))
    return found


def _with_query(url: str, query: object) -> str:
    if not isinstance(query, Mapping) or not query:
        return url
    parts = urlsplit(url)
    pairs = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in query.items()]
    added = urlencode([(name, value) for name, value in pairs if value != "null"])
    return urlunsplit(parts._replace(query="&".join(filter(None, [parts.query, added]))))


def _content(reply: Reply) -> Any:
    text = reply.body.decode("utf-8", "replace")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict | list | str) else text


def _report_document(document: dict[str, Any], request: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """What a `report` reads (Port's form): the message, the request that was made of it, and the reply."""
    try:
        parsed = json.loads(reply.body)
    except (ValueError, RecursionError):
        parsed = None
    return {
        "body": document,
        "request": {**request, "query": dict(parse_qsl(urlsplit(request["url"]).query))},
        "response": {
            "statusCode": reply.status,
            "headers": reply.headers,
            "text": reply.body.decode("utf-8", "replace"),
            "json": parsed,
        },
    }


def _text(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else json.dumps(value)


class _Names(dict[str, str]):
    """Header names in lower case, asked for in any."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)
