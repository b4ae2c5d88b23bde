"""Messages of both transports: what is verified, what is delivered, what mappings see."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.agent.kit import signature, topic_message

from port_webhook_handlers.agent.messages import (
    ForeignError,
    Message,
    PoisonError,
    from_change_log,
    from_run,
    from_topic,
)

SECRET = "organisation-secret-0123456789"


def read(value: bytes | None, secret: str = SECRET, **changes: Any) -> Message:
    options: dict[str, Any] = {"now": time.time(), "max_age": 3600, **changes}
    return from_topic("runs/0/1", value, [b"another", secret.encode()], **options)


def test_a_message_is_verified_and_taken_apart() -> None:
    message = read(topic_message("r_1", "http://x/y", SECRET, synchronized=True))
    assert (message.run_id, message.action, message.route) == ("r_1", "ship", "ship")
    assert message.refusal is None
    assert message.invocation.url == "http://x/y"
    assert message.invocation.synchronized
    assert dict(message.invocation.headers) == {"x-custom": "yes"}
    assert "headers" not in message.body
    assert json.loads(message.raw or b"") == message.body


def test_the_bytes_may_be_written_in_another_way_than_they_are_signed() -> None:
    """As Port's agent does: parsed, the two headers taken out, written compactly, non-ASCII kept."""
    document = json.loads(topic_message("r_1", "http://x/y", SECRET))
    headers = document["headers"]
    document["headers"] = {"X-Port-Timestamp": headers["X-Port-Timestamp"], "x-custom": "yes"}
    document["headers"]["X-Port-Signature"] = headers["X-Port-Signature"]
    assert read(json.dumps(document, indent=1).encode()).refusal is None


def test_headers_that_are_empty_otherwise_are_part_of_what_is_signed() -> None:
    body = {
        "context": {"runId": "r_1"},
        "payload": {"action": {"invocationMethod": {"agent": True}}},
        "headers": {},
    }
    now = str(int(time.time()))
    signed = signature(SECRET, now, json.dumps(body, separators=(",", ":")).encode())
    body["headers"] = {"X-Port-Signature": signed, "X-Port-Timestamp": int(now)}
    for text in (json.dumps(body, separators=(",", ":")), json.dumps(body)):
        assert read(text.encode()).refusal is None


def test_gitlab_messages_are_signed_without_headers() -> None:
    method = {"type": "GITLAB", "agent": True, "projectName": "p"}
    body: dict[str, Any] = {"context": {"runId": "r_1"}, "payload": {"action": {"invocationMethod": method}}}
    now = str(int(time.time()))
    signed = signature(SECRET, now, json.dumps(body, separators=(",", ":")).encode())
    body["headers"] = {"X-Port-Signature": signed, "X-Port-Timestamp": int(now)}
    assert read(json.dumps(body, separators=(",", ":")).encode()).refusal is None


@pytest.mark.parametrize("number", ["1e-7", "1E+21", "1.0", "100000000000000000000000"])
def test_numbers_are_verified_as_they_are_written(number: str) -> None:
    """Written anew they would look different, and the signature would not fit."""
    text = f'{{"n":{number},"context":{{"runId":"r_1"}},"payload":{{"action":{{"invocationMethod":{{"agent":true}}}}}}'
    now = str(int(time.time()))
    signed = signature(SECRET, now, f'{text},"headers":{{}}}}'.encode())
    value = f'{text},"headers":{{"X-Port-Signature":"{signed}","X-Port-Timestamp":{now}}}}}'
    assert read(value.encode()).refusal is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"secret": "third"}, "no secret"),
        ({"later": 4000}, "older"),
        ({"later": -4000}, "older"),
    ],
)
def test_what_cannot_be_verified_ends_its_run(change: dict[str, Any], words: str) -> None:
    value = topic_message("r_1", "http://x", change.get("secret", SECRET))
    message = read(value, now=time.time() + change.get("later", 0))
    assert message.run_id == "r_1"
    assert words in str(message.refusal)


def test_a_message_without_a_signature_is_refused() -> None:
    document = json.loads(topic_message("r_1", "http://x", SECRET))
    document["headers"] = {}
    assert "carries no signature" in str(read(json.dumps(document).encode()).refusal)


def test_what_a_kafka_action_writes_is_left_to_its_readers_unless_it_is_asked_for() -> None:
    value = json.dumps({"port_context": {"action": "a", "runId": "r_1"}, "inputs": {}}).encode()
    with pytest.raises(ForeignError):
        read(value)
    allowed = read(value, allow_unsigned=True)
    assert (allowed.refusal, allowed.route) == (None, "a")
    with pytest.raises(ForeignError):
        read(json.dumps({"context": {"runId": "r_1"}}).encode(), allow_unsigned=True)


def test_a_signature_that_is_wrong_is_refused_even_where_none_is_needed() -> None:
    value = topic_message("r_1", "http://x", "third")
    assert read(value, allow_unsigned=True).refusal is not None


def test_an_insertion_beside_the_signed_text_has_no_effect() -> None:
    """Whoever moves the two headers into another place of the message changes nothing that is read."""
    value = topic_message("r_1", "http://x/y", SECRET)
    document = json.loads(value)
    headers = document["headers"]
    pair = (
        f'"X-Port-Signature":"{headers["X-Port-Signature"]}","X-Port-Timestamp":{headers["X-Port-Timestamp"]}'
    )
    plain = value.decode().replace(f",{pair}", "")
    before, _, after = plain.rpartition('"headers":{')
    moved = f'{before}"headers":{{{pair},{after}'
    found = read(moved.encode())
    assert found.refusal is None
    assert dict(found.invocation.headers) == {"x-custom": "yes"}


def test_an_altered_message_is_refused() -> None:
    value = topic_message("r_1", "http://x/y", SECRET).replace(b"http://x/y", b"http://z/y")
    assert read(value).refusal is not None


def test_an_invocation_without_agent_is_for_somebody_else() -> None:
    document = json.loads(topic_message("r_1", "http://x", SECRET))
    document["payload"]["action"]["invocationMethod"]["agent"] = False
    with pytest.raises(ForeignError):
        read(json.dumps(document).encode())


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.from_regex(rb'\{"(context|headers|payload)":.{0,60}\}', fullmatch=True)
    )
)
def test_garbage_is_poison_and_nothing_worse(value: bytes) -> None:
    try:
        message = read(value)
    except (PoisonError, ForeignError):
        return
    assert message.refusal is not None


def test_an_entity_change_needs_a_destination_for_agents() -> None:
    change = {"context": {"entity": "e", "blueprint": "b"}}
    with pytest.raises(ForeignError):
        from_change_log("x", json.dumps(change).encode())
    change["changelogDestination"] = {"type": "WEBHOOK", "agent": True, "url": "http://x"}  # type: ignore[assignment]
    message = from_change_log("x", json.dumps(change).encode())
    assert (message.run_id, message.key, message.invocation.url) == (None, "entity b e", "http://x")


def test_a_polled_run_keeps_its_body_and_shows_mappings_what_ports_agent_shows() -> None:
    payload = {
        "type": "WEBHOOK",
        "url": "http://x",
        "agent": True,
        "synchronized": False,
        "method": "PUT",
        "headers": {"a": "b"},
        "body": {"port_context": {"action": "ship", "runId": "r_1"}, "inputs": {}},
    }
    message = from_run({"id": "r_1", "action": {"identifier": "ship-staging"}, "payload": payload})
    assert message.body == payload["body"]
    assert (message.action, message.route, message.invocation.method) == ("ship-staging", "ship", "PUT")
    assert message.document["context"] == {"runId": "r_1"}
    assert message.document["headers"] == {"a": "b"}
    assert message.document["payload"]["action"]["invocationMethod"] == {
        "type": "WEBHOOK",
        "url": "http://x",
        "synchronized": False,
        "method": "PUT",
        "headers": {"a": "b"},
    }
