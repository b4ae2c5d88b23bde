"""JSON without blanks, written by an encoder that is made once.

`json.dumps` makes a new encoder for each call that does not use the defaults, which takes longer than to write a
small value. Values that hold themselves are not looked for: parsed JSON and what is built from it cannot.
"""

from __future__ import annotations

import json
import json.encoder
from collections.abc import Callable
from typing import Any

Encode = Callable[[Any], str]


def _encoder(*, sort_keys: bool) -> Encode:
    plain = json.JSONEncoder(separators=(",", ":"), sort_keys=sort_keys, allow_nan=False)
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return plain.encode
    encode = make(
        None, plain.default, json.encoder.encode_basestring_ascii, None, ":", ",", sort_keys, False, False
    )
    return lambda value: "".join(encode(value, 0))


compact: Encode = _encoder(sort_keys=False)
"""A value as compact JSON in ASCII.

Raises:
    TypeError: a value has no JSON form.
    ValueError: a number is not finite.
"""

canonical: Encode = _encoder(sort_keys=True)
"""As `compact`, with sorted keys: equal for values that differ only in the order of keys."""
