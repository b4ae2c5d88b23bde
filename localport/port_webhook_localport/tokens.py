"""Access tokens: one live token per organisation, the same until it expires (Port's rule)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from port_webhook_localport.home import Credentials
from port_webhook_localport.store import Store
from port_webhook_localport.web import compact


class Tokens:
    """Issues and checks the token; only its claims are stored, so the database holds no credential."""

    def __init__(self, store: Store, credentials: Credentials) -> None:
        self._store = store
        self._credentials = credentials
        self._cached: tuple[dict[str, Any], str] | None = None

    def issue(self, organization: str, lifetime_seconds: float) -> tuple[str, int]:
        """The live token and the whole seconds left of it; a new one when the old has expired."""
        claims = self._store.meta("token")
        if claims is None or claims["exp"] - time.time() < 1:
            now = time.time()
            claims = {
                "orgId": organization,
                "isMachine": True,
                "personalToken": False,
                "jti": secrets.token_hex(8),
                "iat": now,
                "exp": now + lifetime_seconds,
            }
            self._store.set_meta("token", claims)
        return self._encode(claims), max(1, int(claims["exp"] - time.time()))

    def check(self, token: str) -> bool:
        """Whether this is the live token."""
        claims = self._store.meta("token")
        if claims is None or claims["exp"] <= time.time():
            return False
        return hmac.compare_digest(token.encode(), self._encode(claims).encode())

    def expire(self) -> None:
        """Ends the live token."""
        self._store.run("DELETE FROM meta WHERE name = 'token'")

    def _encode(self, claims: dict[str, Any]) -> str:
        if self._cached is not None and self._cached[0] == claims:
            return self._cached[1]
        head = _base64(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
        message = head + "." + _base64(compact(claims).encode())
        key = bytes.fromhex(self._credentials.storage_key)
        token = message + "." + _base64(hmac.new(key, message.encode(), hashlib.sha256).digest())
        self._cached = (claims, token)
        return token


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
