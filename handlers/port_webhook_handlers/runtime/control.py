"""Start, look at and stop the listener of this machine. Imported at deploy time: standard library and psutil."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from port_webhook_handlers.runtime.config import ListenerConfig


class ListenerError(Exception):
    """The listener cannot be started, updated or stopped; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ListenerStatus:
    """A listener that runs.

    Attributes:
        url: base URL on this machine, without a trailing slash.
        port: the port it is bound to.
        digest: digest of the bundle that is served, computed by the server from the files it loaded.
        nonce: random name of this supervisor process.
        pid, start_time: identity of the supervisor process.
        healthy: whether the server answers with that nonce.
        metrics_url: private address of metrics; None while no server runs.
        config: the configuration in force.
    """

    url: str
    port: int
    digest: str
    nonce: str
    pid: int
    start_time: float
    healthy: bool
    metrics_url: str | None
    config: ListenerConfig


def start(home: Path, config: ListenerConfig) -> ListenerStatus:
    """Starts the listener, or updates the running one in place; nothing happens if it is as wanted.

    An update keeps address and port. The former server stays if its successor does not get healthy.

    Args:
        home: folder of the listener; made if missing, mode 0700.
        config: what it should run with.

    Raises:
        ListenerError: the port is taken, the bundle or the secrets are unusable, or the server does not get
            healthy; the end of its log is in the message.
    """
    raise NotImplementedError


def status(home: Path) -> ListenerStatus | None:
    """The running listener of this home; None if its supervisor does not run."""
    raise NotImplementedError


def stop(home: Path, *, end_deployments: bool = True) -> bool:
    """Stops the listener: running handlers may finish within `limits.drain_seconds`.

    Args:
        home: folder of the listener.
        end_deployments: also end the processes that handlers registered under `<state>/deployments`.

    Returns:
        Whether it was running.

    Raises:
        ListenerError: it did not end.
    """
    raise NotImplementedError
