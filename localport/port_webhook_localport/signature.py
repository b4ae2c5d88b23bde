"""The signature that Port puts on a delivery (Port's rule: HMAC-SHA256 over timestamp, dot, raw body)."""

from __future__ import annotations

import base64
import hashlib
import hmac


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """Value of `x-port-signature`.

    Args:
        secret: the organisation's client secret; its UTF-8 bytes are the key.
        timestamp: exactly the text sent in `x-port-timestamp`.
        body: exactly the bytes sent.
    """
    message = timestamp.encode() + b"." + body
    digest = hmac.new(secret.encode(), message, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode("ascii")
