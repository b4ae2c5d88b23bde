"""What exists in Port already: read before a preview, so that references can be checked. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from port_webhook_handlers.port.regions import API_BASE_URLS

if TYPE_CHECKING:
    from port_webhook_handlers.port.client import PortClient
    from port_webhook_stack.settings import Settings

Report = Callable[[str], None]

# A preview should not wait for long on an organisation that does not answer.
_ATTEMPTS = 2
_TIMEOUT_SECONDS = (3.0, 10.0)


@dataclass(frozen=True)
class Organisation:
    """Names in Port; None: not known.

    Attributes:
        blueprints: bodies by identifier.
        secrets: names of the organisation's secrets.
        actions: identifiers of actions and automations.
    """

    blueprints: Mapping[str, Mapping[str, Any]] | None = None
    secrets: Collection[str] | None = None
    actions: Collection[str] | None = None


def look_up(settings: Settings, note: Report) -> Organisation:
    """Asks Port once for each kind of object.

    Args:
        note: receives one line for each kind that cannot be had; that is never an error.
    """
    client = _connect(settings, note)
    if client is None:
        return Organisation()
    from port_webhook_handlers.port.client import PortApiError, PortError

    found: dict[str, Any] = {}
    with client:
        for kind, path, member, key in (
            ("blueprints", "/v1/blueprints", "blueprints", "identifier"),
            ("secrets", "/v1/organization/secrets", "secrets", "secretName"),
            ("actions", "/v1/actions", "actions", "identifier"),
        ):
            try:
                reply = client.request("GET", path, params={"version": "v2"} if kind == "actions" else None)
            except PortApiError as error:
                note(f"{kind} in Port are not checked: {error}")
            except PortError as error:
                note(f"what exists in Port is not checked: {error}")
                break
            else:
                found[kind] = {item[key]: item for item in reply.get(member, ()) if key in item}
    return Organisation(**found)


def _connect(settings: Settings, note: Report) -> PortClient | None:
    from port_webhook_handlers.port.client import PortClient

    base_url, client_id, client_secret = settings.base_url, settings.client_id, settings.client_secret
    if settings.is_local_port:
        from port_webhook_localport import control
        from port_webhook_stack.port.local_port import FOLDER

        try:
            # The provider would start it a moment later, also in a preview.
            endpoint = control.ensure_running(settings.state_dir / FOLDER)
        except control.LocalPortError as error:
            note(f"what exists in Port is not checked: {error}")
            return None
        base_url, client_id, client_secret = endpoint.url, endpoint.client_id, endpoint.client_secret
    base_url = base_url or API_BASE_URLS.get(settings.region or "")
    if not base_url or not client_id or not client_secret:
        note("what exists in Port is not checked: set port-webhook:clientId and port-webhook:clientSecret")
        return None
    return PortClient(base_url, client_id, client_secret, attempts=_ATTEMPTS, timeout=_TIMEOUT_SECONDS)
