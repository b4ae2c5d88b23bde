import base64
import hashlib
import hmac
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_handlers.port.signature import (
    MAX_BODY_BYTES,
    VerificationError,
    mac,
    sign,
    verify,
    verify_official_agent,
)

SECRET = "port-test-client-secret-0123456789abcdef"
STAMP = "1700000000"
NOW = 1_700_000_000.0

VECTORS = [
    (
        b'{"port_context":{"runId":"r_0123456789abcdef"},"service":"checkout"}',
        "v1,wvnPUuINl/LkVTySSgECeLk+T/SdCu6AXE1+UIkamqE=",
    ),
    (
        b'{"port_context": {"runId": "r_0123456789abcdef"}, "service": "checkout"}',
        "v1,te5drtWSGY91Nt2xzjS6AnEF7DHRbTo3sPYvBKvctkQ=",
    ),
    ('{"name":"Zoë","emoji":"✓"}'.encode(), "v1,xO993dYMXroiWjAO+bIaLrfuNt/b/SQxRJF9qLobW9s="),
    (rb'{"name":"Zo\u00eb","emoji":"\u2713"}', "v1,S5zH5hAOoaxOeHMmSuLcV1JyusjcYhpayfOmQGNiGag="),
    (b"{}", "v1,IFi1WqjyMRA5JCyHQHWsMcgzvN3TiPqXOGDzXcdIK8Q="),
    (b"", "v1,Z4tyZ1qNdPUCCcc+ypJCh5xVSkPycFBaTMZzu5M0nuE="),
]
BODY, SIGNATURE = VECTORS[0]


def reason(secrets, signature, timestamp, body, **options):
    with pytest.raises(VerificationError) as caught:
        verify(secrets, signature, timestamp, body, **{"now": NOW, **options})
    return caught.value.reason


@pytest.mark.parametrize(("body", "signature"), VECTORS)
def test_published_vectors(body, signature):
    assert sign(SECRET, STAMP, body) == signature
    assert sign(SECRET.encode(), STAMP, body) == signature
    verify([SECRET.encode()], signature, STAMP, body, now=NOW)


def test_any_active_secret_is_accepted_and_all_are_tried(monkeypatch):
    verify([SECRET, "next"], SIGNATURE, STAMP, BODY, now=NOW)
    verify(["previous", SECRET], SIGNATURE, STAMP, BODY, now=NOW)
    keys = []

    def recording(key, message):
        keys.append(key)
        return mac(key, message)

    monkeypatch.setattr("port_webhook_handlers.port.signature.mac", recording)
    verify([SECRET, "b", "c"], SIGNATURE, STAMP, BODY, now=NOW)
    assert keys == [SECRET.encode(), b"b", b"c"]


def test_a_mac_is_that_of_the_standard_library_for_any_key_and_in_any_order():
    for key in (b"k", b"a" * 64, b"b" * 65, SECRET.encode(), b"k"):
        for message in (b"", BODY, b"\0" * 5000):
            assert mac(key, message) == hmac.digest(key, message, "sha256")


def test_wrong_secret_altered_body_and_altered_timestamp():
    assert reason(["other"], SIGNATURE, STAMP, BODY) == "bad_signature"
    assert reason([SECRET], SIGNATURE, STAMP, BODY + b" ") == "bad_signature"
    assert reason([SECRET], SIGNATURE, "1700000001", BODY) == "bad_signature"
    assert reason([], SIGNATURE, STAMP, BODY) == "bad_signature"


@pytest.mark.parametrize("empty", ["", b""])
def test_an_empty_secret_is_a_configuration_error(empty):
    with pytest.raises(ValueError, match="empty"):
        sign(empty, STAMP, BODY)
    with pytest.raises(ValueError, match="empty"):
        verify([SECRET, empty], SIGNATURE, STAMP, BODY, now=NOW)


@pytest.mark.parametrize(
    "header",
    [
        "nocomma",
        "v1",
        "v1,",
        "v1,,",
        "v1,not base64!",
        "v1,AAAA",
        f"{SIGNATURE},{SIGNATURE}",
        f"{SIGNATURE} {SIGNATURE}",
        f"{SIGNATURE}, {SIGNATURE}",
        f" {SIGNATURE}",
        f"{SIGNATURE}\n",
        f"{SIGNATURE}=",
        SIGNATURE.replace("v1", "v2"),
        SIGNATURE.replace("v1", "V1"),
        SIGNATURE.replace("v1,", "v1="),
        SIGNATURE.removeprefix("v1,"),
        "v1," + "é" * 43 + "=",
        "v1," + "\udcff" * 43 + "=",
        "v1," + SIGNATURE[3:].replace("+", "-").replace("/", "_"),
        "\x00" * 47,
        "sha256=" + "0" * 64,
        "v1," + "A" * 100_000,
    ],
)
def test_garbage_signature_headers_have_a_reason(header):
    assert reason([SECRET], header, STAMP, BODY) == "malformed_signature"


def test_unused_bits_of_base64_do_not_make_a_second_signature():
    last = SIGNATURE[-2]
    twin = chr(ord(last) + 1) if last != "z" else "y"
    assert reason([SECRET], SIGNATURE[:-2] + twin + "=", STAMP, BODY) == "bad_signature"


@pytest.mark.parametrize("absent", [None, ""])
def test_absent_headers(absent):
    assert reason([SECRET], absent, STAMP, BODY) == "missing_signature"
    assert reason([SECRET], SIGNATURE, absent, BODY) == "missing_timestamp"


@pytest.mark.parametrize(
    "stamp",
    [
        "now",
        "170000000",
        "17000000000000",
        "-1700000000",
        "+1700000000",
        "1700000000.0",
        " 1700000000",
        "1700000000 ",
        "1700000000\n",
        "1_700_000_000",
        "١٧٠٠٠٠٠٠٠٠",
        "１７００００００００",
        "1e9",
        "0x65538700ff",
        "9" * 5000,
    ],
)
def test_garbage_timestamps_have_a_reason(stamp):
    signature = sign(SECRET, stamp, BODY)
    assert reason([SECRET], signature, stamp, BODY) == "malformed_timestamp"


@pytest.mark.parametrize("sign_of", [1, -1])
def test_tolerance_both_ways_in_seconds_and_milliseconds(sign_of):
    for stamp in ("1700000000", "1700000000000"):
        signature = sign(SECRET, stamp, BODY)
        verify([SECRET], signature, stamp, BODY, now=NOW + sign_of * 300)
        beyond = NOW + sign_of * 301
        assert reason([SECRET], signature, stamp, BODY, now=beyond) == "stale_timestamp"


@pytest.mark.parametrize("stamp", ["17000000000", "170000000000"])
def test_magnitudes_between_seconds_and_milliseconds_are_stale(stamp):
    assert reason([SECRET], sign(SECRET, stamp, BODY), stamp, BODY) == "stale_timestamp"


def test_a_broken_clock_accepts_nothing():
    assert reason([SECRET], SIGNATURE, STAMP, BODY, now=math.nan) == "stale_timestamp"


def test_uses_the_clock_by_default():
    assert reason([SECRET], SIGNATURE, STAMP, BODY, now=None) == "stale_timestamp"


def test_errors_hold_no_secret():
    with pytest.raises(VerificationError) as caught:
        verify([SECRET], sign("other", STAMP, BODY), STAMP, BODY, now=NOW)
    assert str(caught.value) == "bad_signature"
    assert caught.value.__cause__ is None


@given(st.text(), st.text(), st.binary())
def test_any_header_and_body_is_refused_with_a_reason(signature, timestamp, body):
    with pytest.raises(VerificationError):
        verify([SECRET], signature, timestamp, body, now=NOW)


@given(st.binary(min_size=1), st.binary())
def test_what_is_signed_verifies_and_matches_the_definition(secret, body):
    signature = sign(secret, STAMP, body)
    verify([secret], signature, STAMP, body, now=NOW)
    reference = hmac.new(secret, STAMP.encode() + b"." + body, hashlib.sha256).digest()
    assert signature == "v1," + base64.b64encode(reference).decode()


# Official agent: signs compact JSON with ASCII escapes, sends what json.dumps writes by default.

PAYLOAD = {"port_context": {"runId": "r_1"}, "name": "Zoë ✓ 😀", "n": [1, 1.5, None, True]}


def agent_signature(payload):
    return sign(SECRET, STAMP, json.dumps(payload, separators=(",", ":")).encode())


def agent_reason(body, signature, **options):
    with pytest.raises(VerificationError) as caught:
        verify_official_agent([SECRET], signature, STAMP, body, now=NOW, **options)
    return caught.value.reason


@pytest.mark.parametrize("payload", [PAYLOAD, {}, [], "text", 0, None, {"a": {"b": []}}])
def test_official_agent_delivery(payload):
    body = json.dumps(payload).encode()
    assert verify_official_agent([SECRET], agent_signature(payload), STAMP, body, now=NOW) == payload


def test_official_agent_bytes_do_not_pass_as_raw_and_the_reverse():
    body = json.dumps(PAYLOAD).encode()
    assert reason([SECRET], agent_signature(PAYLOAD), STAMP, body) == "bad_signature"
    assert agent_reason(body, sign(SECRET, STAMP, body)) == "bad_signature"


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(PAYLOAD, separators=(",", ":")).encode(),
        json.dumps(PAYLOAD, ensure_ascii=False).encode(),
        json.dumps(PAYLOAD, indent=1).encode(),
        json.dumps(PAYLOAD).encode() + b"\n",
        json.dumps(PAYLOAD).encode().replace(b"1.5", b"1.50"),
        json.dumps(PAYLOAD).encode().replace(b"1.5", b"15e-1"),
    ],
)
def test_other_spellings_of_the_signed_value_are_refused(body):
    assert json.loads(body) == PAYLOAD
    assert agent_reason(body, agent_signature(PAYLOAD)) == "malformed_body"


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": 1, "a": 1}',
        b"[NaN]",
        b"[Infinity]",
        b"[1e999]",
        b'["\\ud800"]',
        b"\xff",
        b"",
        b"[" * 100 + b"]" * 100,
        b"[" * 100_000,
        b"1" * 5000,
    ],
)
def test_official_agent_refuses_loose_json(body):
    assert agent_reason(body, SIGNATURE) == "malformed_body"


def test_official_agent_size_limit():
    body = json.dumps(["x" * 100]).encode()
    signature = agent_signature(["x" * 100])
    assert agent_reason(body, signature, max_bytes=100) == "malformed_body"
    verify_official_agent([SECRET], signature, STAMP, body, now=NOW, max_bytes=200)


def test_official_agent_checks_headers_before_it_parses():
    assert agent_reason(b"{", "v1,x") == "malformed_signature"
    with pytest.raises(VerificationError) as caught:
        verify_official_agent([SECRET], SIGNATURE, "1600000000", b"{", now=NOW)
    assert caught.value.reason == "stale_timestamp"


def test_agent_kafka_fixture_shape():
    """The empty ``headers`` member is part of what the agent signs."""
    payload = {"context": {"runId": "r"}, "headers": {}}
    body = json.dumps(payload).encode()
    without = {"context": {"runId": "r"}}
    assert agent_reason(body, agent_signature(without)) == "bad_signature"


def test_the_number_that_is_milliseconds() -> None:
    for stamp, now in (("99999999999", 99_999_999_999.0), ("100000000000", 100_000_000.0)):
        verify([SECRET], sign(SECRET, stamp, b"{}"), stamp, b"{}", now=now, tolerance=1)


def test_the_largest_body_of_the_agent() -> None:
    body = b'"' + b"a" * (MAX_BODY_BYTES - 2) + b'"'
    assert len(body) == 262_144
    verify_official_agent([SECRET], sign(SECRET, STAMP, body), STAMP, body, now=NOW)
    longer = b'"a' + body[1:]
    assert len(longer) == 262_145
    with pytest.raises(VerificationError, match="malformed_body"):
        verify_official_agent([SECRET], sign(SECRET, STAMP, longer), STAMP, longer, now=NOW)
