"""The ways to call Port's API: on the event loop of a server, in threads where a loop is short-lived, or blocking."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Protocol

from port_webhook_handlers.port.client import PortClient, PortError, quote

if TYPE_CHECKING:
    from port_webhook_handlers.runtime.claims import CurrentSecrets

_CALLS_AT_ONCE: Final = 8


class PortCalls(Protocol):
    """Calls Port's API with the credentials of a secrets store, as they are at each call."""

    async def call(
        self, method: str, path: str, params: Mapping[str, str] | None, body: Any
    ) -> dict[str, Any]:
        """Port's reply.

        Args:
            method: in capitals.
            path: from `/v1/` on, identifiers percent-encoded.
            params: query parameters.
            body: JSON value; None sends none.

        Raises:
            PortError: no reply, or an error.
        """
        ...

    async def close(self) -> None:
        """Closes connections, each after the call that it is used by; calls wait for no further attempt."""
        ...


class LoopCalls:
    """Calls from one event loop: a thread for each would cost several times more than the call.

    Args:
        secrets: credentials of Port's API.
        base_url: address of Port's API, or a function that finds it.
    """

    def __init__(self, secrets: CurrentSecrets, base_url: str | Callable[[], str]) -> None:
        # Here, because Lambda has no parser for it.
        from port_webhook_handlers.port.async_client import PortApi
        from port_webhook_handlers.port.http_client import HttpClient

        self._http = HttpClient()
        self._api = PortApi(base_url, lambda: credentials_of(secrets), self._http, _CALLS_AT_ONCE)

    async def call(
        self, method: str, path: str, params: Mapping[str, str] | None, body: Any
    ) -> dict[str, Any]:
        """As in `PortCalls`."""
        query = "&".join(f"{name}={quote(value)}" for name, value in (params or {}).items())
        return await self._api.call(method, f"{path}?{query}" if query else path, body)

    async def close(self) -> None:
        """As in `PortCalls`."""
        self._http.close()
        # A connection is closed in the loop's next turn, which may be its last.
        await asyncio.sleep(0)


class ThreadedCalls:
    """Calls in threads.

    Args:
        secrets, base_url: as in `LoopCalls`.
        backoff: seconds of the first delay's upper bound within a call.
    """

    def __init__(
        self, secrets: CurrentSecrets, base_url: str | Callable[[], str], backoff: float = 0.5
    ) -> None:
        self._threads = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="port")
        self._cancelled = threading.Event()
        self._client = CurrentClient(
            secrets, base_url, backoff=backoff, concurrency=_CALLS_AT_ONCE, cancelled=self._cancelled
        )

    async def call(
        self, method: str, path: str, params: Mapping[str, str] | None, body: Any
    ) -> dict[str, Any]:
        """As in `PortCalls`."""

        def call() -> dict[str, Any]:
            # Within a call the client itself honours Retry-After and refreshes the token after a 401.
            return self._client.get().request(method, path, params=params, json=body, attempts=2)

        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def close(self) -> None:
        """As in `PortCalls`."""
        self._cancelled.set()
        await asyncio.to_thread(self._threads.shutdown)
        self._client.close()


class CurrentClient:
    """A `PortClient` with the credentials of a secrets store, as they are at each use; threads may share it.

    Args:
        secrets, base_url: as in `LoopCalls`.
        options: further arguments of `PortClient`.
    """

    def __init__(self, secrets: CurrentSecrets, base_url: str | Callable[[], str], **options: Any) -> None:
        self._secrets = secrets
        self._base_url = base_url
        self._options = options
        self._client: PortClient | None = None
        self._used: tuple[str, str] | None = None
        self._lock = threading.Lock()

    def get(self) -> PortClient:
        """The client of now.

        Raises:
            PortError: there are no credentials.
        """
        credentials = credentials_of(self._secrets)
        with self._lock:
            if self._client is None or credentials != self._used:
                self._used = credentials
                if self._client is not None:
                    self._client.close()
                self._client = PortClient(self._base_url, *credentials, **self._options)
            return self._client

    def close(self) -> None:
        """Closes connections."""
        if self._client is not None:
            self._client.close()


def credentials_of(secrets: CurrentSecrets) -> tuple[str, str]:
    """Client id and secret.

    Raises:
        PortError: there are none.
    """
    found = secrets.content.api
    if found is None:
        raise PortError("the secrets store holds no credentials of Port's API; set them and deploy again")
    return found.client_id, found.client_secret
