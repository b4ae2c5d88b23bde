"""The mapping file, and what the forwarding sink makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from port_webhook_handlers.agent.mapping import MappingError, Rule, decrypted, load
from port_webhook_handlers.port.encryption import encrypt_aes256_gcm

DOCUMENT: dict[str, Any] = {
    "context": {"runId": "r_1"},
    "payload": {"properties": {"name": "Zoë"}, "action": {"invocationMethod": {"url": "http://x"}}},
}


def test_leaves_are_evaluated_and_the_rest_is_kept() -> None:
    rule = Rule(
        "x", {"body": {"run": ".context.runId", "list": [".payload.properties.name", 7, None], "flag": True}}
    )
    assert rule.get("body", DOCUMENT) == {"run": "r_1", "list": ["Zoë", 7, None], "flag": True}


@pytest.mark.parametrize("expression", [".missing.deep", "empty", '.context | error("x")', ".context[0]"])
def test_an_expression_that_fails_gives_null(expression: str) -> None:
    assert Rule("x", {"url": expression}).get("url", DOCUMENT) is None


@pytest.mark.parametrize(
    ("enabled", "matches"),
    [
        (True, True),
        (False, False),
        ('.context.runId == "r_1"', True),
        (".context.runId", False),
        (".a.b", False),
    ],
)
def test_enabled_must_be_exactly_true(enabled: Any, matches: bool) -> None:
    assert Rule("x", {"enabled": enabled}).matches(DOCUMENT) is matches


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        ({"ulr": ".x"}, "m.json[0].ulr"),
        ({"url": ".["}, "m.json[0].url"),
        ({"body": {"a": [{"b": "foo("}]}}, "m.json[0].body.a[0].b"),
        ({"url": 5}, "m.json[0].url"),
        ({"report": {"stats": ".x"}}, "m.json[0].report"),
        ({"fieldsToDecryptPaths": "a"}, "m.json[0].fieldsToDecryptPaths"),
        ("x", "m.json[0]"),
    ],
)
def test_a_mistake_is_found_at_the_start(tmp_path: Path, entry: Any, place: str) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps([entry]))
    with pytest.raises(MappingError) as caught:
        load(file)
    assert place in str(caught.value)


def test_encrypted_fields_are_decrypted_in_a_copy() -> None:
    key = "k" * 32
    document = {
        "payload": {
            "properties": {"a": encrypt_aes256_gcm(b"secret", key), "list": [{"b": "plain"}]},
            "optional": None,
        }
    }
    document["payload"]["properties"]["list"][0]["b"] = encrypt_aes256_gcm(b'{"x": 1}', key)  # type: ignore[index]
    paths = ["payload.properties.a", "payload.properties.list.0.b", "payload.missing.c", "payload.optional"]
    found = decrypted(document, paths, ["other" * 8, key])
    assert found["payload"]["properties"]["a"] == "secret"
    # The text of an object stays text: whether an input is one cannot be told from its plaintext.
    assert found["payload"]["properties"]["list"][0]["b"] == '{"x": 1}'
    assert document["payload"]["properties"]["a"] != "secret"


def test_a_field_that_cannot_be_decrypted_is_an_error_that_names_it() -> None:
    with pytest.raises(MappingError) as caught:
        decrypted({"a": "bm90IGVuY3J5cHRlZA=="}, ["a"], ["k" * 32])
    assert str(caught.value).startswith("a cannot be decrypted")
