"""Port's API from an event loop: one attempt a call, a cached token, errors of `port.client`.

`PortClient` is for threads; agents and listeners make a call for each of many messages and runs, and a thread for each
of them would cost more than the deliveries.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from port_webhook_handlers.port.client import (
    PortApiError,
    PortError,
    PortUnreachableError,
    error_of,
    requested_delay,
)
from port_webhook_handlers.port.http_client import HttpClient, Reply, SendError

Credentials = Callable[[], tuple[str, str]]

_TOKEN_MARGIN_SECONDS: Final = 30.0
_SECONDS: Final = 30.0


class PortApi:
    """Calls Port's API.

    Args:
        base_url: address, or a function that finds it, asked again after every failure to connect.
        credentials: client id and secret, as they are at each login.
        http: client to send with; it needs no check of addresses.
        concurrency: calls at once.
        user_agent: sent with every call.
    """

    def __init__(
        self,
        base_url: str | Callable[[], str],
        credentials: Credentials,
        http: HttpClient,
        concurrency: int = 32,
        user_agent: str = "port-webhook-stack",
    ) -> None:
        self._base_url = base_url
        self._credentials = credentials
        self._http = http
        self._user_agent = user_agent
        self._slots = asyncio.Semaphore(concurrency)
        self._login = asyncio.Lock()
        self._url = ""
        self._token = ""
        self._expires = 0.0
        self._used: tuple[str, str] = ("", "")

    async def call(
        self, method: str, path: str, body: Any = None, *, reserved: bool = False
    ) -> dict[str, Any]:
        """One call, repeated only after a 401 with a new token.

        Args:
            method: in capitals.
            path: from `/v1/` on, with its query.
            body: JSON value; None sends none.
            reserved: Port asks for the header `x-port-reserved-usage` on the routes of agents.

        Raises:
            PortApiError: Port answered with an error; `retry_after` is the delay it asks for, or None.
            PortUnreachableError: no answer.
            PortError: the answer is not Port's.
        """
        async with self._slots:
            token = await self._bearer()
            try:
                return await self._send(method, path, body, token, reserved)
            except PortApiError as error:
                if error.status != 401:
                    raise
                if self._token == token:
                    self._token = ""
                return await self._send(method, path, body, await self._bearer(), reserved)

    async def _bearer(self) -> str:
        # Whoever comes during a login waits for its token instead of asking for another.
        async with self._login:
            credentials = self._credentials()
            if self._token and credentials == self._used and time.monotonic() < self._expires:
                return self._token
            client_id, client_secret = credentials
            self._token, self._used = "", credentials
            login = {"clientId": client_id, "clientSecret": client_secret}
            reply = await self._send("POST", "/v1/auth/access_token", login, "", False)
            token, seconds = reply.get("accessToken"), reply.get("expiresIn")
            if not isinstance(token, str) or not token:
                raise PortUnreachableError("the login was answered without a token: is this Port's API?")
            lifetime = float(seconds) if isinstance(seconds, int | float) else 0.0
            # Port hands out one token until it expires, so the rest of its life can be very short.
            self._expires = time.monotonic() + lifetime - min(_TOKEN_MARGIN_SECONDS, lifetime / 2)
            self._token = token
            return token

    async def _send(self, method: str, path: str, body: Any, token: str, reserved: bool) -> dict[str, Any]:
        headers = [("User-Agent", self._user_agent), ("Accept", "application/json")]
        if token:
            headers.append(("Authorization", f"Bearer {token}"))
        if reserved:
            headers.append(("x-port-reserved-usage", "true"))
        data = None
        if body is not None:
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
            headers.append(("Content-Type", "application/json"))
        try:
            reply = await self._http.request(method, self._address() + path, headers, data, _SECONDS)
        except SendError as error:
            self._url = ""
            raise PortUnreachableError(f"Port cannot be reached for {method} {path}: {error}") from None
        return _content(reply, f"{method} {path}", (self._used[1], token))

    def _address(self) -> str:
        if not self._url:
            found = self._base_url if isinstance(self._base_url, str) else self._base_url()
            self._url = found.rstrip("/")
        return self._url


def is_passing(error: PortError) -> bool:
    """Whether a call that failed may succeed later as it is."""
    return (
        not isinstance(error, PortApiError)
        or error.status in (401, 403, 408, 425, 429)
        or error.status >= 500
    )


def retry_after(error: PortError) -> float | None:
    """Seconds that Port asks to wait."""
    found = getattr(error, "retry_after", None)
    return float(found) if isinstance(found, int | float) else None


def _content(reply: Reply, where: str, secrets: Sequence[str]) -> dict[str, Any]:
    try:
        body = json.loads(reply.body) if reply.body else {}
    except ValueError:
        body = None
    if reply.status < 300 and isinstance(body, dict) and body.get("ok", True) is True:
        return body
    if reply.status < 300 and not isinstance(body, dict):
        raise PortError(f"{where} was not answered with a JSON object: is this Port's API?")
    error = error_of(
        reply.status if reply.status >= 300 else 502,
        body if isinstance(body, dict) else {},
        reply.headers.get("x-trace-id", ""),
        where,
        secrets,
    )
    error.retry_after = requested_delay(_Headers(reply.headers))
    raise error


class _Headers(dict[str, str]):
    """Header names in lower case, asked for in any."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)
