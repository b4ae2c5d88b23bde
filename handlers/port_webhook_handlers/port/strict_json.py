"""JSON from untrusted bytes: one meaning, bounded work.

`json.loads` takes the last of two equal keys, reads `NaN`, turns `1e999` into infinity, accepts half of a
surrogate pair and can exhaust the stack. Each of these lets two readers of one body disagree or fail late.
"""

import json
import re
from itertools import accumulate
from typing import Final, Never

MAX_DEPTH: Final = 64
# Every integer of at most 308 digits fits a double, so no later arithmetic on a parsed number can overflow.
MAX_DIGITS: Final = 308

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_LONG_RUN: Final = b"0" * (MAX_DIGITS + 1)
_DIGITS_TO_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)
_STEP: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class StrictJsonError(ValueError):
    """The bytes are not strict JSON. The message never quotes them.

    Attributes:
        reason: `too_large`, `invalid_utf8`, `byte_order_mark`, `too_deep`, `duplicate_key`,
            `number_out_of_range`, `lone_surrogate` or `invalid_json`.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason: Final = reason


def strict_json(body: bytes, max_depth: int = MAX_DEPTH, max_bytes: int | None = None) -> object:
    """Parse UTF-8 JSON text and refuse whatever two parsers could read differently.

    Args:
        body: the bytes as received.
        max_depth: how deep arrays and objects may nest.
        max_bytes: a longer body is refused unread.

    Raises:
        StrictJsonError: with the reason.
    """
    if max_bytes is not None and len(body) > max_bytes:
        raise StrictJsonError("too_large", f"the body is larger than {max_bytes} bytes")
    if body.startswith(b"\xef\xbb\xbf"):
        raise StrictJsonError("byte_order_mark", "the body starts with a byte order mark")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise StrictJsonError("invalid_utf8", f"the body is not UTF-8 (byte {error.start})") from None
    # Counting all brackets is an upper bound of the depth and far cheaper than the exact measure.
    if body.count(b"[") + body.count(b"{") > max_depth and _depth(body) > max_depth:
        raise StrictJsonError("too_deep", f"the body nests deeper than {max_depth} levels")
    try:
        # A function per integer costs as much as the rest of the parse, so only suspect bodies pay for it.
        suspect = _LONG_RUN in body.translate(_DIGITS_TO_ZERO)
        value: object = (_CAREFUL if suspect else _FAST).decode(text)
    except StrictJsonError:
        raise
    except json.JSONDecodeError as error:
        raise StrictJsonError(
            "invalid_json", f"the body is not JSON: {error.msg} (character {error.pos})"
        ) from None
    except RecursionError:
        raise StrictJsonError("too_deep", "the body nests deeper than this process can parse") from None
    if "\\u" in text and _SURROGATE_ESCAPE.search(text):
        _refuse_lone_surrogates(value)
    return value


def _depth(body: bytes) -> int:
    brackets = _STRING.sub(b"", body).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEP.__getitem__, brackets)), default=0)


def _refuse_lone_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise StrictJsonError("lone_surrogate", "a string holds half of a surrogate pair") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise StrictJsonError("duplicate_key", "an object has the same key twice")
    return result


def _refuse_constant(_: str) -> Never:
    raise StrictJsonError("number_out_of_range", "NaN and Infinity are not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise StrictJsonError("number_out_of_range", f"a number has more than {MAX_DIGITS} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits) if len(digits) <= MAX_DIGITS else float("inf")
    if value - value != 0:
        raise StrictJsonError("number_out_of_range", "a number does not fit a double")
    return value


_FAST: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_float
)
_CAREFUL: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_float, parse_int=_integer
)
