"""Asks Port whether a run is what a request says: needed where the run's id is in a header, which nobody signs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from port_webhook_handlers.runtime.manifest import Route

if TYPE_CHECKING:
    from port_webhook_handlers.port.client import PortError
    from port_webhook_handlers.runtime.claims import CurrentSecrets
    from port_webhook_handlers.runtime.port_calls import PortCalls

Confirm = Callable[[str, str], Awaitable[bool]]
"""Run id and action to whether such a run is in progress; raises `NotConfirmedError`."""

_SECONDS: Final = 5.0
# A function has ten seconds in all, for a login and the question.
_CONNECT_SECONDS, _READ_SECONDS = 1.5, 2.5
_VERSION: Final = {"version": "v2"}
_NO_SUCH_RUN: Final = frozenset({400, 404, 422})


class NotConfirmedError(Exception):
    """Port could not be asked; the message says why."""


def is_needed(routes: Iterable[Route]) -> bool:
    """Whether one of the routes takes run ids that nobody signed."""
    return any(route.payload.header is not None for route in routes)


class Confirmation:
    """Asks from the event loop of a server.

    Args:
        calls: how Port is called.
    """

    def __init__(self, calls: PortCalls) -> None:
        self._calls = calls

    async def __call__(self, run_id: str, action: str) -> bool:
        """See `Confirm`."""
        import asyncio

        from port_webhook_handlers.port.client import PortError

        try:
            async with asyncio.timeout(_SECONDS):
                reply = await self._calls.call("GET", _path(run_id), _VERSION, None)
        except PortError as error:
            return _no_such_run(error)
        except TimeoutError:
            raise NotConfirmedError(f"Port did not answer within {_SECONDS:g} s") from None
        return _is_in_progress(reply, run_id, action)

    async def close(self) -> None:
        """Closes connections."""
        await self._calls.close()


class BlockingConfirmation:
    """The same without an event loop, which a function that only accepts runs does not have.

    Args:
        secrets: credentials of Port's API, as they are at each question.
        base_url: address of Port's API.
    """

    def __init__(self, secrets: CurrentSecrets, base_url: str) -> None:
        # Here, because a server without such routes needs none of it.
        from port_webhook_handlers.runtime.port_calls import CurrentClient

        self._client = CurrentClient(secrets, base_url, attempts=1, timeout=(_CONNECT_SECONDS, _READ_SECONDS))

    async def __call__(self, run_id: str, action: str) -> bool:
        """See `Confirm`."""
        from port_webhook_handlers.port.client import PortError

        try:
            reply = self._client.get().request("GET", _path(run_id), params=_VERSION)
        except PortError as error:
            return _no_such_run(error)
        return _is_in_progress(reply, run_id, action)

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def _path(run_id: str) -> str:
    from port_webhook_handlers.port.client import quote

    return f"/v1/actions/runs/{quote(run_id)}"


def _no_such_run(error: PortError) -> bool:
    if getattr(error, "status", None) in _NO_SUCH_RUN:
        return False
    raise NotConfirmedError(str(error)) from None


def _is_in_progress(reply: Mapping[str, Any], run_id: str, action: str) -> bool:
    run = reply.get("run")
    if not isinstance(run, dict):
        return False
    found = run.get("action")
    # Version 1 of the run object names the action by text.
    identifier = found.get("identifier") if isinstance(found, dict) else found
    return run.get("id") == run_id and identifier == action and run.get("status") == "IN_PROGRESS"
