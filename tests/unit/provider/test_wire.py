"""The engine's messages and plain values."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import struct_pb2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from pulumi.runtime import rpc

from port_webhook_stack.port.handler import UNKNOWN
from port_webhook_stack.port.wire import (
    Secrets,
    UnsupportedValueError,
    decode,
    encode,
    inexact_numbers,
    path_text,
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer())
    | st.text()
    | st.just(UNKNOWN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
properties = st.dictionaries(st.text(min_size=1), values, max_size=4)


def marked(value: Any) -> Any:
    return {rpc._special_sig_key: rpc._special_secret_sig, "value": value}


def struct(value: dict[str, Any]) -> Any:
    result = struct_pb2.Struct()
    result.update(value)
    return result


@given(properties)
def test_what_was_encoded_is_decoded_with_the_types_it_had(plain: dict[str, Any]) -> None:
    back = decode(encode(plain))
    assert back == plain
    assert repr(back) == repr({key: back[key] for key in back})  # no float where an int was
    assert _types(back) == _types(plain)


def _types(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _types(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_types(item) for item in value]
    return type(value)


@given(properties)
def test_secrets_come_back_under_the_paths_they_had(plain: dict[str, Any]) -> None:
    secrets = Secrets()
    for key in list(plain)[::2]:
        secrets.add((key,), plain[key])
    found = Secrets()
    assert decode(encode(plain, secrets), found) == plain
    assert found.paths == secrets.paths


def test_the_constants_are_those_of_pulumi() -> None:
    sent = {"a": marked("s3cr3t"), "b": rpc.UNKNOWN, "c": {"d": [marked("other"), 1]}}
    secrets = Secrets()
    assert decode(struct(sent), secrets) == {"a": "s3cr3t", "b": UNKNOWN, "c": {"d": ["other", 1]}}
    assert secrets.paths == {("a",), ("c", "d")}
    assert encode({"a": "s3cr3t"}, secrets) == struct({"a": marked("s3cr3t")})


def test_output_values_and_resource_references_are_unwrapped() -> None:
    secrets = Secrets()
    sent = {
        "known": {rpc._special_sig_key: rpc._special_output_value_sig, "value": 1},
        "unknown": {rpc._special_sig_key: rpc._special_output_value_sig},
        "secret": {rpc._special_sig_key: rpc._special_output_value_sig, "value": "s3cr3t", "secret": True},
        "resource": {rpc._special_sig_key: rpc._special_resource_sig, "urn": "urn:x", "id": "service"},
    }
    assert decode(struct(sent), secrets) == {
        "known": 1,
        "unknown": UNKNOWN,
        "secret": "s3cr3t",
        "resource": "service",
    }
    assert secrets.paths == {("secret",)}


def test_an_asset_is_refused_by_name() -> None:
    asset = {rpc._special_sig_key: rpc._special_asset_sig, "text": "x"}
    with pytest.raises(UnsupportedValueError, match=r"icon\[0\] is an asset"):
        decode(struct({"icon": [asset]}))


def test_something_that_is_no_value_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"a\.b holds a set"):
        encode({"a": {"b": {1}}})


def test_values_of_secrets_are_kept_out_of_messages() -> None:
    secrets = Secrets()
    secrets.add(("headers",), {"Authorization": "Bearer abcdef", "n": 1, "short": "a"})
    assert secrets.redact("sent Bearer abcdef as a header") == "sent [secret] as a header"


def test_a_longer_secret_is_removed_before_one_that_it_contains() -> None:
    secrets = Secrets()
    secrets.add(("a",), "abcd")
    secrets.add(("b",), "abcdefgh")
    assert secrets.redact("abcdefgh") == "[secret]"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("a", "b", 0, "c"), "a.b[0].c"),
        (("a-b", "x_y"), "a-b.x_y"),
        (("a", "b.c"), 'a["b.c"]'),
        (("a", '{{ "x" }}', "d"), 'a["{{ \\"x\\" }}"].d'),
        (("a", ""), 'a[""]'),
    ],
)
def test_paths_in_the_notation_of_pulumi(path: tuple[str | int, ...], text: str) -> None:
    assert path_text(path) == text


def test_integers_that_a_double_cannot_hold_are_found() -> None:
    value = {"a": 2**53, "b": [1, 2**60], "c": {"d": -(2**55)}, "e": True}
    assert inexact_numbers(value) == [("b", 1), ("c", "d")]
