import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from port_webhook_handlers.port.strict_json import MAX_DEPTH, MAX_DIGITS, StrictJsonError, strict_json


def reason(body, **options):
    with pytest.raises(StrictJsonError) as caught:
        strict_json(body, **options)
    return caught.value.reason


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"{} {}", "invalid_json"),
        (b"'a'", "invalid_json"),
        (b"[1,]", "invalid_json"),
        (b"// c\n1", "invalid_json"),
        (b'"\x01"', "invalid_json"),
        (b"01", "invalid_json"),
        (b"nul", "invalid_json"),
        (b"]" * 200, "invalid_json"),
        (b'"unterminated ' + b"[" * 200, "too_deep"),
        (b"\xef\xbb\xbf{}", "byte_order_mark"),
        (b"\xff\xfe{\x00}\x00", "invalid_utf8"),
        (b'"\xed\xa0\x80"', "invalid_utf8"),
        (b'"\xc0\xaf"', "invalid_utf8"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'[{"x":{"a":1,"\\u0061":1}}]', "duplicate_key"),
        (b"NaN", "number_out_of_range"),
        (b"[-Infinity]", "number_out_of_range"),
        (b"1e999", "number_out_of_range"),
        (b"-1e999", "number_out_of_range"),
        (b"9" * (MAX_DIGITS + 1), "number_out_of_range"),
        (b"1." + b"9" * 5000, "number_out_of_range"),
        (b"9" * 100_000, "number_out_of_range"),
        (b'"\\ud800"', "lone_surrogate"),
        (b'{"\\udc00":1}', "lone_surrogate"),
        (b'["\\ude00\\ud83d"]', "lone_surrogate"),
        (b"[" * 65 + b"]" * 65, "too_deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "too_deep"),
        (b"[" * 200_000 + b"]" * 200_000, "too_deep"),
        (b'{"a":[' * 100_000, "too_deep"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_refused(body, expected):
    assert reason(body) == expected


def test_size_limit_comes_first():
    assert reason(b"\xff" * 11, max_bytes=10) == "too_large"
    assert strict_json(b"[1,2,3]", max_bytes=7) == [1, 2, 3]


@pytest.mark.parametrize(
    "body",
    [
        b" {} \n",
        b'"\\ud83d\\ude00 \\\\ud800"',
        b'{"a":"[[[[","b":"\\"[[[{{"}',
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b",".join([b"[{}]"] * 500) + b"]",
        b'["' + b"[" * 500 + b'"]',
        b'["' + b'\\"[' * 500 + b'"]',
        b"9" * MAX_DIGITS,
        b'["' + b"7" * 5000 + b'", 1]',
        b"[0, -0, 1.5, 1e308, -12.5E-3]",
        b'"\\u0000"',
    ],
    ids=lambda value: repr(value)[:40],
)
def test_accepted_as_json_reads_it(body):
    assert strict_json(body) == json.loads(body)


def test_a_depth_beyond_the_stack_is_an_error_not_a_crash():
    body = b"[" * 100_000 + b"]" * 100_000
    assert reason(body, max_depth=200_000) == "too_deep"


def test_messages_do_not_quote_the_body():
    for body in (b'{"hunter2":1,"hunter2":2}', b'{"hunter2" 1}', b'"hunter2', b"[hunter2]"):
        with pytest.raises(StrictJsonError) as caught:
            strict_json(body)
        assert "hunter2" not in str(caught.value)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_round_trip(value, ascii_only):
    parsed = strict_json(json.dumps(value, ensure_ascii=ascii_only).encode())
    assert json.dumps(parsed) == json.dumps(value)


@given(st.binary())
def test_any_bytes_parse_or_have_a_reason(body):
    try:
        value = strict_json(body)
    except StrictJsonError:
        return
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()


@given(st.text(alphabet='[]{}",:\\u0123456789abcdefeEnNtr.- d8'))
def test_json_like_text_parses_or_has_a_reason(text):
    try:
        value = strict_json(text.encode())
    except StrictJsonError:
        return
    assert json.loads(text) == value


def test_deep_and_wide_bodies_are_cheap():
    body = b"[" + b",".join([b"[]"] * 80_000) + b"]"
    started = time.perf_counter()
    strict_json(body)
    assert time.perf_counter() - started < 1
