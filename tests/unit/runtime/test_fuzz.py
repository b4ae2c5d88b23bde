"""The short form of `python -m tests.fuzz`, and the traps that have names."""

import asyncio

import pytest
from tests import fuzz
from tests.fuzz import NOW, SECRETS, STAMP, Case, Fuzzer, _signature

BODY = b'{"port_context":{"action":"work","runId":"r_1"},"inputs":{"text":"a","count":1}}'


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_nothing_unsigned_gets_in_and_nothing_breaks(seed: int) -> None:
    report = fuzz.fuzz(2_000, seed)
    assert report.valid > 200
    assert report.outcomes["200"] > 50
    assert report.outcomes["401 bad_signature"] > 100


def answer(body: bytes, stamp: bytes = STAMP, headers: list[tuple[bytes, bytes]] | None = None) -> str:
    """Status and reason of a request that is signed, whatever its timestamp or body."""

    async def post(fuzzer: Fuzzer) -> str:
        signed = [(b"x-port-timestamp", stamp), (b"x-port-signature", _signature(SECRETS[0], stamp, body))]
        await fuzzer._request(Case("POST", "/webhooks/work", signed if headers is None else headers, body))
        return next(iter(fuzzer.report.outcomes))

    fuzzer = Fuzzer(1)
    try:
        return asyncio.run(post(fuzzer))
    finally:
        fuzzer.close()


def test_the_plain_request_is_served() -> None:
    assert answer(BODY) == "200"


@pytest.mark.parametrize(
    "stamp",
    [
        b"1_700_000_000", b"+1700000000", b"1700000000\n", b"1700000000 ", b" 1700000000", b"1.7e9", b"0x6553F100",
        "１７００００００００".encode(), b"\xb2\xb2\xb2\xb2\xb2\xb2\xb2\xb2\xb2\xb2", b"9" * 5000, b"170000000", b"-1700000000",
    ],
)  # fmt: skip
def test_timestamps_that_python_would_read(stamp: bytes) -> None:
    assert answer(BODY, stamp) == "400 malformed_timestamp"


@pytest.mark.parametrize(("offset", "served"), [(300, True), (-300, True), (301, False), (-301, False)])
def test_timestamps_at_the_edge(offset: int, served: bool) -> None:
    stamp = str(int(NOW) + offset).encode()
    assert answer(BODY, stamp) == ("200" if served else "401 stale_timestamp")


def test_a_signature_with_something_behind_it() -> None:
    signature = _signature(SECRETS[0], STAMP, BODY)
    for altered in (
        signature + b"\n",
        signature + b" ",
        signature + b"," + signature,
        signature + b" " + signature,
    ):
        headers = [(b"x-port-timestamp", STAMP), (b"x-port-signature", altered)]
        assert answer(BODY, headers=headers) == "400 malformed_signature"


def test_two_signatures() -> None:
    signature = (b"x-port-signature", _signature(SECRETS[0], STAMP, BODY))
    headers = [(b"x-port-timestamp", STAMP), signature, signature]
    assert answer(BODY, headers=headers) == "400 duplicate_header"


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (b'{"text":"a","text":"a"}', "400 duplicate_key"),
        (b'{"text":"a","t\\u0065xt":"b"}', "400 duplicate_key"),
        (b'{"text":"a","count":NaN}', "400 number_out_of_range"),
        (b'{"text":"a","count":Infinity}', "400 number_out_of_range"),
        (b'{"text":"a","count":1e999}', "400 number_out_of_range"),
        (b'{"text":"a","count":' + b"9" * 5000 + b"}", "400 number_out_of_range"),
        (b'{"text":"a","list":' + b"[" * 200 + b"]" * 200 + b"}", "400 too_deep"),
        (b'{"text":"a","list":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "400 too_deep"),
        (b'{"text":"\\ud800"}', "400 lone_surrogate"),
        (b'{"text":"\xed\xa0\x80"}', "400 invalid_utf8"),
        (b'{"text":"a\x00"}', "400 invalid_json"),
        (b'{"text":"a"}}', "400 invalid_json"),
        (b'{"text":"a",}', "400 invalid_json"),
        (b"{'text':'a'}", "400 invalid_json"),
    ],
)
def test_json_that_two_readers_would_read_differently(inputs: bytes, expected: str) -> None:
    body = b'{"port_context":{"action":"work","runId":"r_1"},"inputs":' + inputs + b"}"
    assert answer(body) == expected


@pytest.mark.parametrize(
    "run_id", [b"r_1/../../entities", b"r_1?x", b"r_1\\n", b"", b".", b"..", b"r 1", b"a" * 129, b"\\u00e9"]
)
def test_run_ids_that_would_change_a_path(run_id: bytes) -> None:
    body = b'{"port_context":{"action":"work","runId":"' + run_id + b'"},"inputs":{"text":"a"}}'
    assert answer(body) == "400 invalid_run_id"


def test_an_escaped_character_is_the_character() -> None:
    body = b'{"port_context":{"action":"w\\u006frk","runId":"r_\\u0031"},"inputs":{"text":"a"}}'
    assert answer(body) == "200"
