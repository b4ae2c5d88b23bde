"""Port's signature of an invocation.

Port signs `<timestamp>.<raw body>` with HMAC-SHA256 under the organisation's client secret (its UTF-8
text, not decoded) and sends `x-port-signature: v1,<base64>` beside `x-port-timestamp: <seconds>`. Nothing
else of the request is signed: not the path, not the method, no other header.
"""

import functools
import hashlib
import hmac
import json
import re
import time
from binascii import b2a_base64
from collections.abc import Sequence
from typing import Any, Final

from port_webhook_handlers.port.strict_json import MAX_DEPTH, StrictJsonError, strict_json

__all__ = [
    "MAX_BODY_BYTES",
    "TOLERANCE_SECONDS",
    "VerificationError",
    "mac",
    "sign",
    "verify",
    "verify_official_agent",
]

TOLERANCE_SECONDS: Final = 300
MAX_BODY_BYTES: Final = 256 * 1024

# 32 bytes of HMAC in base64 are always 43 characters and one pad.
_SIGNATURE = re.compile(r"v1,[A-Za-z0-9+/]{43}=")
_TIMESTAMP = re.compile(r"[0-9]{10,13}")
_BLOCK_BYTES: Final = 64
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
# As seconds this is the year 5138; as milliseconds it is 1973.
_MILLISECONDS_FROM: Final = 10**11


class VerificationError(Exception):
    """A request that did not come from Port as it stands.

    Attributes:
        reason: `missing_signature`, `malformed_signature`, `bad_signature`, `missing_timestamp`,
            `malformed_timestamp`, `stale_timestamp` or `malformed_body` (official agent only). Safe to
            return to the sender: it says nothing of the secret or the expected signature.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason: Final = reason


def sign(secret: bytes | str, timestamp: str, body: bytes) -> str:
    """The value of `x-port-signature` for these bytes.

    Args:
        secret: the organisation's client secret.
        timestamp: the exact text of `x-port-timestamp`.
        body: the bytes as sent.

    Raises:
        ValueError: the secret is empty, so anybody could forge the signature.
    """
    return _signature(_key(secret), timestamp.encode() + b"." + body).decode()


def verify(
    secrets: Sequence[bytes | str],
    signature: str | None,
    timestamp: str | None,
    body: bytes,
    *,
    now: float | None = None,
    tolerance: float = TOLERANCE_SECONDS,
) -> None:
    """Accept bytes that one of the active secrets signed within the tolerance, or raise.

    Every secret is tried whether or not an earlier one matched, so the time taken does not tell which one
    did. A caller that got a header twice must refuse the request beforehand (`malformed_signature`).

    Args:
        secrets: the active signing secrets; bytes spare an encoding per request. Without any, nothing passes.
        signature: the value of `x-port-signature`; None if absent.
        timestamp: the value of `x-port-timestamp`; None if absent. Seconds, or milliseconds by magnitude.
        body: the bytes as received.
        now: seconds since the epoch; the clock if None.
        tolerance: seconds, into the past and into the future.

    Raises:
        VerificationError: with the reason.
        ValueError: one of the secrets is empty.
    """
    expected, stamp = _check_headers(signature, timestamp, now, tolerance)
    _check_signature(secrets, expected, b"%b.%b" % (stamp, body))


def verify_official_agent(
    secrets: Sequence[bytes | str],
    signature: str | None,
    timestamp: str | None,
    body: bytes,
    *,
    now: float | None = None,
    tolerance: float = TOLERANCE_SECONDS,
    max_bytes: int = MAX_BODY_BYTES,
    max_depth: int = MAX_DEPTH,
) -> object:
    """Verify a delivery of Port's official agent and return its parsed body.

    That agent signs its body in compact JSON but sends it with blanks after `:` and `,`. So that exactly
    one byte sequence stands for each signed text, the received bytes must be what the agent's serialiser
    writes for the parsed value. Work with the returned object: it, not the bytes, is what was signed.

    Args:
        secrets, signature, timestamp, body, now, tolerance: as in `verify`.
        max_bytes: a longer body is refused unread, because here parsing comes before the signature.
        max_depth: how deep arrays and objects may nest.

    Raises:
        VerificationError: with the reason; `malformed_body` when the bytes are not of that form.
        ValueError: one of the secrets is empty.
    """
    expected, stamp = _check_headers(signature, timestamp, now, tolerance)
    try:
        value = strict_json(body, max_depth, max_bytes)
    except StrictJsonError:
        raise VerificationError("malformed_body") from None
    if json.dumps(value).encode() != body:
        raise VerificationError("malformed_body")
    _check_signature(secrets, expected, stamp + b"." + json.dumps(value, separators=(",", ":")).encode())
    return value


def _check_headers(
    signature: str | None, timestamp: str | None, now: float | None, tolerance: float
) -> tuple[bytes, bytes]:
    if not signature:
        raise VerificationError("missing_signature")
    if not _SIGNATURE.fullmatch(signature):
        raise VerificationError("malformed_signature")
    if not timestamp:
        raise VerificationError("missing_timestamp")
    seconds = _seconds(timestamp)
    if seconds is None:
        raise VerificationError("malformed_timestamp")
    if not abs((time.time() if now is None else now) - seconds) <= tolerance:
        raise VerificationError("stale_timestamp")
    return signature.encode("ascii"), timestamp.encode("ascii")


@functools.lru_cache(maxsize=64)
def _seconds(timestamp: str) -> float | None:
    if not _TIMESTAMP.fullmatch(timestamp):
        return None
    value = float(timestamp)
    return value / 1000 if value >= _MILLISECONDS_FROM else value


def _check_signature(secrets: Sequence[bytes | str], expected: bytes, message: bytes) -> None:
    matched = False
    for secret in secrets:
        key = secret if isinstance(secret, bytes) and secret else _key(secret)
        matched |= hmac.compare_digest(_signature(key, message), expected)
    if not matched:
        raise VerificationError("bad_signature")


def _signature(key: bytes, message: bytes) -> bytes:
    return b"v1," + b2a_base64(mac(key, message), newline=False)


def mac(key: bytes, message: bytes) -> bytes:
    """HMAC-SHA256, 32 bytes; what the key alone decides is kept for the next message.

    Args:
        key: a secret; the last few stay in memory in a form that signs as well as they do.
        message: what is authenticated.
    """
    inner, outer = _keyed(key)
    inner, outer = inner.copy(), outer.copy()
    inner.update(message)
    outer.update(inner.digest())
    result: bytes = outer.digest()
    return result


@functools.lru_cache(maxsize=16)
def _keyed(key: bytes) -> tuple[Any, Any]:
    # RFC 2104 by hand: `hmac` has the same two states, in objects that cost as much as the hashing.
    block = (key if len(key) <= _BLOCK_BYTES else hashlib.sha256(key).digest()).ljust(_BLOCK_BYTES, b"\0")
    return hashlib.sha256(block.translate(_INNER)), hashlib.sha256(block.translate(_OUTER))


def _key(secret: bytes | str) -> bytes:
    if not secret:
        raise ValueError("a signing secret is empty; anybody could forge its signatures")
    return secret.encode() if isinstance(secret, str) else secret
