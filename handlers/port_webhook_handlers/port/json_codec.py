"""Reading and comparing bodies: strict everywhere, and quickly where a process serves many.

orjson is several times faster than the standard library, but takes the last of two equal keys and rounds large
integers. A body that equals what it writes for the value it read can hold neither: every key was kept, every number
and text has the form that it was read from. Port writes its bodies like that, so nearly all take this path; any other
body is read by `strict_json`, which decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final, Protocol

from port_webhook_handlers.port.compact_json import canonical, compact
from port_webhook_handlers.port.strict_json import MAX_DEPTH, strict_json

_DIGITS_TO_ZERO: Final = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER: Final = b"0" * 19


def lines_codec() -> tuple[Callable[[bytes], Any], Callable[[Any], bytes]]:
    """How lines of JSON between processes of one listener are read and written: with orjson where that is exact.

    Both sides write what they parsed or built, so there are no duplicate keys; integers of more than 64 bits, which
    orjson reads as fractions, are left to the standard library.
    """
    try:
        import orjson
    except ImportError:
        return json.loads, lambda value: compact(value).encode()
    loads, dumps = orjson.loads, orjson.dumps
    # It would write every field of a dataclass, also those that its `repr` hides.
    strictly = (
        orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_DATACLASS
    )

    def read(line: bytes) -> Any:
        return json.loads(line) if _LONG_NUMBER in line.translate(_DIGITS_TO_ZERO) else loads(line)

    def write(value: Any) -> bytes:
        try:
            return dumps(value, option=strictly)
        except TypeError:
            return compact(value).encode()

    return read, write


class JsonCodec(Protocol):
    """How a receiver reads bodies."""

    def read(self, body: bytes) -> object:
        """The value of strict JSON.

        Raises:
            StrictJsonError: the bytes are not that.
        """
        ...

    def canonical(self, value: Any) -> bytes:
        """Equal for values that differ only in the order of keys."""
        ...


class StrictCodec:
    """The standard library's parser with the rules of `strict_json`."""

    def read(self, body: bytes) -> object:
        """As `strict_json`."""
        return strict_json(body)

    def canonical(self, value: Any) -> bytes:
        """Compact JSON with sorted keys."""
        return canonical(value).encode()


def quick_codec() -> JsonCodec:
    """A codec with orjson; that of the standard library where orjson is not installed."""
    try:
        import orjson
    except ImportError:
        return StrictCodec()
    loads, dumps, sort = orjson.loads, orjson.dumps, orjson.OPT_SORT_KEYS

    class QuickCodec(StrictCodec):
        def read(self, body: bytes) -> object:
            # Counting all brackets is an upper bound of the depth.
            if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
                try:
                    value: object = loads(body)
                    if dumps(value) == body:
                        return value
                except (ValueError, TypeError):
                    # strict_json tells what is wrong, if anything is.
                    pass
            return strict_json(body)

        def canonical(self, value: Any) -> bytes:
            try:
                return dumps(value, option=sort)
            except TypeError:
                # An integer of more than 64 bits.
                return super().canonical(value)

    return QuickCodec()
