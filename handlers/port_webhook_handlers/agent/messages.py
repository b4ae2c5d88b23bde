"""Invocations as the two transports carry them, in one shape (Port's formats)."""

from __future__ import annotations

import hmac
import json
import re
import time
from binascii import a2b_base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.port.json_codec import lines_codec
from port_webhook_handlers.port.signature import mac
from port_webhook_handlers.port.strict_json import StrictJsonError, strict_json

SIGNATURE: Final = "x-port-signature"
TIMESTAMP: Final = "x-port-timestamp"
_PAIR = re.compile(
    rb"(?P<before>,?)(?:"
    rb'"x-port-signature":"(?P<signature>v1,[A-Za-z0-9+/]{43}=)","x-port-timestamp":"?(?P<timestamp>[0-9]{10,13})"?'
    rb'|"x-port-timestamp":"?(?P<timestamp2>[0-9]{10,13})"?,"x-port-signature":"(?P<signature2>v1,[A-Za-z0-9+/]{43}=)"'
    rb")(?P<after>,?)",
    re.IGNORECASE,
)
_NODE_RUN: Final = "wfnr_"
_read, _ = lines_codec()
_FUTURE_SECONDS: Final = 300
# As seconds this is the year 5138; as milliseconds it is 1973.
_MILLISECONDS_FROM: Final = 10**11


@dataclass(slots=True)
class Lease:
    """The right to work on messages.

    Attributes:
        revoked: another agent has got it; what has not begun must not begin.
        busy: attempts under way.
    """

    revoked: bool = False
    busy: int = 0


class Invocation:
    """The invocation method of a message, evaluated; read when it is asked for, since not every sink does.

    Args:
        method: Port's document.
        headers: those to send, if they stand elsewhere.
    """

    __slots__ = ("_headers", "_method")

    def __init__(self, method: Mapping[str, Any], headers: object = None) -> None:
        self._method = method
        self._headers = headers

    @property
    def url(self) -> str | None:
        """Where to."""
        return _text(self._method.get("url"))

    @property
    def method(self) -> str:
        """In capitals; POST unless it says otherwise."""
        return (_text(self._method.get("method")) or "POST").upper()

    @property
    def synchronized(self) -> bool:
        """Whether the answer is the result."""
        return self._method.get("synchronized") is True

    @property
    def type(self) -> str:
        """Port's name of the kind."""
        return _text(self._method.get("type")) or "WEBHOOK"

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the definition, as text."""
        headers = self._headers or self._method.get("headers")
        return {
            str(name): value if isinstance(value, str) else json.dumps(value)
            for name, value in (headers if isinstance(headers, dict) else {}).items()
            if value is not None
        }


def _nothing() -> None:
    return


@dataclass(slots=True)
class Message:
    """One invocation.

    Attributes:
        name: where it comes from, for logs.
        run_id: Port's id; None for an entity change, which nobody waits for.
        action: identifier in Port of the action or automation, where it can be told.
        route: what the body says which handler is meant; environments of one organisation share such names.
        key: messages of one key are worked on one after the other.
        invocation: what to call.
        body: what is sent unless a mapping says otherwise.
        document: what mappings read, in the shape that Port's own agent gives them.
        raw: the body as bytes, where they are at hand.
        refusal: why it is not delivered; the run ends with this.
        lease: the right to work on it.
        acknowledge: tells the source that the outcome is durable.
        release: tells the source that this agent leaves it alone.
        arrived: monotonic seconds.
    """

    name: str
    run_id: str | None
    action: str | None
    key: str
    invocation: Invocation
    body: Any
    document: dict[str, Any]
    route: str | None = None
    raw: bytes | None = None
    refusal: str | None = None
    lease: Lease = field(default_factory=Lease)
    acknowledge: Callable[[], None] = _nothing
    release: Callable[[], None] = _nothing
    arrived: float = field(default_factory=time.monotonic)

    @property
    def is_node_run(self) -> bool:
        """Whether it is a node of a workflow, which has routes of its own in Port's API."""
        return self.run_id is not None and self.run_id.startswith(_NODE_RUN)


class PoisonError(Exception):
    """A message that stands for no run that could be ended; the message says why, without its content."""


class ForeignError(Exception):
    """A message that is not for an agent."""


def from_topic(
    name: str,
    value: bytes | None,
    secrets: Sequence[bytes],
    *,
    now: float,
    max_age: float,
    allow_unsigned: bool = False,
) -> Message:
    """A message of the topic of runs, verified.

    Port signs the message without the two headers of the signature, in compact JSON. A message that cannot be
    verified is not delivered; its run ends as FAILURE, because nobody else would end it.

    Args:
        name: where it comes from.
        value: the bytes.
        secrets: active signing secrets; none is empty.
        now: seconds since the epoch.
        max_age: seconds; an older signature is refused.
        allow_unsigned: take messages that carry no signature at all, as KAFKA-type actions send them.

    Raises:
        PoisonError: not JSON, or no run id.
        ForeignError: an invocation without `agent: true`, or without a signature where that is not allowed.
    """
    cut = None if value is None else _cut_out(value, secrets)
    # The text that was signed is what is read, so nothing that stood beside it has any meaning.
    document = _parsed(value) if cut is None else _parsed_signed(cut[0])
    action = _inner(document.get("payload")).get("action")
    method = _inner(_inner(action).get("invocationMethod"))
    for_agents = method.get("agent") is True
    unsigned_kind = not for_agents and method.get("type", "KAFKA") == "KAFKA"
    if not (for_agents or unsigned_kind):
        raise ForeignError(name)
    named, legacy = _named(document), _text(document.get("action"))
    unsigned = unsigned_kind and cut is None and not _carries_signature(document)
    if unsigned and not (allow_unsigned and (named or legacy)):
        # What a KAFKA action writes has readers of its own, whose runs are none of this agent's business.
        raise ForeignError(name)
    run_id = _run_id(document)
    if run_id is None:
        raise PoisonError("the message names no run")
    body = document.copy()
    headers = _inner(body.pop("headers", None))
    raw = None
    if cut is None:
        signed = {key.lower(): item for key, item in headers.items() if key.lower() in (SIGNATURE, TIMESTAMP)}
        headers = {key: item for key, item in headers.items() if key.lower() not in (SIGNATURE, TIMESTAMP)}
        refusal = None
        if signed or not allow_unsigned:
            refusal = _reserialised_problem(document, body, headers, method, signed, secrets, now, max_age)
    else:
        refusal = _age_problem(cut[1], now, max_age)
        raw = _without_headers(cut[0], headers)
    return Message(
        name,
        run_id,
        legacy or named or _text(_inner(action).get("identifier")),
        f"run {run_id}",
        Invocation(method, headers),
        body,
        document,
        named or legacy,
        raw,
        refusal,
    )


def from_change_log(name: str, value: bytes | None) -> Message:
    """A message of the change log; it carries no signature (Port's rule).

    Raises:
        PoisonError: not JSON.
        ForeignError: the blueprint names no destination for an agent.
    """
    document = _parsed(value)
    destination = document.get("changelogDestination")
    if not isinstance(destination, dict) or destination.get("agent") is not True:
        raise ForeignError(name)
    context = document.get("context")
    context = context if isinstance(context, dict) else {}
    key = f"entity {context.get('blueprint')} {context.get('entity')}"
    return Message(name, None, None, key, Invocation(destination), document, document)


def from_run(run: Mapping[str, Any]) -> Message:
    """A run as claiming hands it out: the body is the evaluated one, and nothing is mixed into it.

    Raises:
        PoisonError: it has no id.
        ForeignError: its invocation says `agent: false`.
    """
    run_id = run.get("id")
    if not isinstance(run_id, str) or not run_id:
        raise PoisonError("a claimed run has no id")
    payload = run.get("payload")
    payload = payload if isinstance(payload, dict) else {}
    if payload.get("agent") is False:
        raise ForeignError(run_id)
    body = payload.get("body")
    action = run.get("action")
    action = action.get("identifier") if isinstance(action, dict) else action
    document = _official_document(run_id, payload, body if isinstance(body, dict) else {})
    invocation = Invocation(payload)
    action = _text(action) or _text(document.get("action")) or _named(document)
    route = _named(document) or _text(document.get("action")) or action
    return Message(run_id, run_id, action, f"run {run_id}", invocation, body, document, route)


def from_node_run(run: Mapping[str, Any]) -> Message:
    """A node of a workflow as claiming hands it out.

    Raises:
        PoisonError: it has no id.
        ForeignError: its configuration says `agent: false`.
    """
    run_id = run.get("identifier") or run.get("id")
    if not isinstance(run_id, str) or not run_id:
        raise PoisonError("a claimed node has no id")
    config = next((item for item in _places_of_config(run) if isinstance(item, dict)), {})
    if config.get("agent") is False:
        raise ForeignError(run_id)
    document = _official_document(run_id, config, {})
    document["context"]["nodeConfig"] = config
    body = config.get("body", {})
    return Message(run_id, run_id, None, f"run {run_id}", Invocation(config), body, document)


def _places_of_config(run: Mapping[str, Any]) -> Iterator[Any]:
    """Port's own agent has read it from both places of the first two."""
    yield run.get("config")
    yield _at(run, "node", "config")
    yield run.get("payload")


def _official_document(run_id: str, payload: Mapping[str, Any], body: Mapping[str, Any]) -> dict[str, Any]:
    """What mappings of Port's own agent see when it polls."""
    method = {key: payload.get(key) for key in ("type", "url", "synchronized", "method", "headers")}
    document: dict[str, Any] = {**body, "headers": payload.get("headers") or {}}
    inner = document.get("payload")
    inner = dict(inner) if isinstance(inner, dict) else {}
    action = inner.get("action")
    inner["action"] = {**(action if isinstance(action, dict) else {}), "invocationMethod": method}
    context = document.get("context")
    document["payload"] = inner
    document["context"] = {**(context if isinstance(context, dict) else {}), "runId": run_id}
    return document


def _parsed_signed(text: bytes) -> dict[str, Any]:
    """What Port has signed: it repeats no key, so the quick reader will do unless it stumbles."""
    try:
        document = _read(text)
    except (ValueError, RecursionError):
        return _parsed(text)
    return document if isinstance(document, dict) else _parsed(text)


def _parsed(value: bytes | None) -> dict[str, Any]:
    if value is None:
        raise PoisonError("the message is empty")
    try:
        document = strict_json(value)
    except StrictJsonError as error:
        raise PoisonError(str(error)) from None
    if not isinstance(document, dict):
        raise PoisonError("the message is not a JSON object")
    return document


def _carries_signature(document: Mapping[str, Any]) -> bool:
    headers = document.get("headers")
    return isinstance(headers, dict) and any(name.lower() == SIGNATURE for name in headers)


def _run_id(document: Mapping[str, Any]) -> str | None:
    context = _inner(document.get("port_context"))
    run_id = _inner(document.get("context")).get("runId")
    return _text(run_id) or _text(context.get("runId")) or _text(context.get("run_id"))


def _named(document: Mapping[str, Any]) -> str | None:
    return _text(_inner(document.get("port_context")).get("action"))


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _inner(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _at(document: Mapping[str, Any], *path: str) -> Any:
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _cut_out(value: bytes, secrets: Sequence[bytes]) -> tuple[bytes, str] | None:
    """The signed text and the timestamp, if cutting the signature's two headers out of the bytes yields it.

    That is so for everybody who writes compact JSON, and spares writing the message anew, which could also turn out
    different: there is more than one way to write a number.
    """
    start = max(0, value.rfind(b'"headers":'))
    # Where names are written as usual, looking for their text is far quicker than looking for the pattern.
    place = max(value.find(b'"X-Port-', start), value.find(b'"x-port-', start))
    found = None if place < 0 else _PAIR.match(value, place - (value[place - 1 : place] == b","))
    if found is None:
        found = _PAIR.search(value, start)
    if found is None:
        return None
    before, signature, timestamp, timestamp2, signature2, after = found.groups()
    start, end = found.span()
    text = value[:start] + (b"," if before and after else b"") + value[end:]
    timestamp = timestamp or timestamp2
    # The pattern allows one version and one encoding only.
    given = a2b_base64((signature or signature2)[len(b"v1,") :])
    return (text, timestamp.decode()) if _is_signed(secrets, timestamp, text, given) else None


def _without_headers(text: bytes, headers: Mapping[str, Any]) -> bytes | None:
    """The text without its last member, if that is the headers as compact JSON."""
    start = text.rfind(b',"headers":{')
    if text.find(b"}", start) == len(text) - 2 and not any(map(_is_container, headers.values())):
        # The only brace after it closes it, so it is the last member and holds nothing nested.
        return text[:start] + b"}" if start > 0 else None
    try:
        end = b',"headers":' + compact(dict(headers)).encode() + b"}"
    except ValueError:
        return None
    return text[: -len(end)] + b"}" if text.endswith(end) else None


def _is_container(value: object) -> bool:
    return isinstance(value, dict | list)


def _reserialised_problem(
    document: Mapping[str, Any],
    body: Mapping[str, Any],
    headers: Mapping[str, Any],
    method: Mapping[str, Any],
    signed: Mapping[str, Any],
    secrets: Sequence[bytes],
    now: float,
    max_age: float,
) -> str | None:
    """Why a message is refused whose text has to be written anew to be verified, as Port's own agent does it."""
    signature, timestamp = signed.get(SIGNATURE), signed.get(TIMESTAMP)
    if not isinstance(signature, str) or not isinstance(timestamp, int | str) or isinstance(timestamp, bool):
        return "The message carries no signature of Port, so it was not delivered."
    text = str(timestamp)
    if not (text.isascii() and text.isdigit() and 10 <= len(text) <= 13):
        return "The message's timestamp is malformed, so it was not delivered."
    # Port signs what the headers leave behind, an empty object included; for GITLAB they are not part of it.
    whole = method.get("type") != "GITLAB" and "headers" in document
    covered = (
        {key: headers if key == "headers" else item for key, item in document.items()} if whole else body
    )
    data = json.dumps(covered, ensure_ascii=False, separators=(",", ":")).encode()
    if not _matches(secrets, text, data, signature):
        return "The agent holds no secret that made the message's signature, so it was not delivered."
    return _age_problem(text, now, max_age)


def _matches(secrets: Sequence[bytes], timestamp: str, data: bytes, signature: str) -> bool:
    try:
        version, _, text = signature.encode("ascii").partition(b",")
        given = a2b_base64(text, strict_mode=True)
    except ValueError:
        return False
    return version == b"v1" and _is_signed(secrets, timestamp.encode(), data, given)


def _is_signed(secrets: Sequence[bytes], timestamp: bytes, data: bytes, given: bytes) -> bool:
    signed, matched = timestamp + b"." + data, False
    for secret in secrets:
        # Every secret is tried, so that the time taken does not tell which one it was.
        matched |= hmac.compare_digest(mac(secret, signed), given)
    return matched


def _age_problem(timestamp: str, now: float, max_age: float) -> str | None:
    seconds = float(timestamp)
    if seconds >= _MILLISECONDS_FROM:
        seconds /= 1000
    if not -_FUTURE_SECONDS <= now - seconds <= max_age:
        return "The message is older than this agent accepts, so it was not delivered."
    return None
