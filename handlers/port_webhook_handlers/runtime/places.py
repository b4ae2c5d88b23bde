"""Files of a listener's home."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from port_webhook_handlers.process import ProcessIdentity
from port_webhook_handlers.runtime.files import write_private


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are in the home of a listener."""

    home: Path

    @property
    def config(self) -> Path:
        """The configuration in force."""
        return self.home / "listener.json"

    @property
    def supervisor(self) -> Path:
        """Identity of the supervisor and port of its control API, or why it did not start."""
        return self.home / "supervisor.json"

    @property
    def token(self) -> Path:
        """Token of the control API."""
        return self.home / "control.token"

    @property
    def lock(self) -> Path:
        """Held while the listener is started or stopped."""
        return self.home / "control.lock"

    @property
    def log(self) -> Path:
        """Log of supervisor, servers and handlers."""
        return self.home / "listener.log"

    @property
    def cache(self) -> Path:
        """Compiled files, kept out of the bundle."""
        return self.home / "work" / "pycache"

    def read_supervisor(self) -> dict[str, Any] | None:
        """Content of `supervisor.json`; None if there is none."""
        return _read(self.supervisor)

    def read_port(self) -> int | None:
        """The port that was picked; None if none was."""
        record = _read(self.home / "port.json")
        return None if record is None else int(record["port"])

    def write_port(self, port: int) -> None:
        """Keeps the picked port."""
        write_private(self.home / "port.json", json.dumps({"port": port}).encode())

    def record_server(self, pid: int) -> None:
        """Keeps the identity of the last server, in case its supervisor is killed."""
        try:
            identity = ProcessIdentity.of(pid)
        except ProcessLookupError:
            return
        record = {"pid": identity.pid, "start_time": identity.start_time}
        write_private(self.home / "server.json", json.dumps(record).encode())

    def has_stale_server(self) -> bool:
        """Whether a server recorded earlier still runs."""
        identity = self._stale_server()
        return identity is not None and identity.is_alive()

    def end_stale_server(self) -> None:
        """Ends a server whose supervisor was killed."""
        identity = self._stale_server()
        if identity is not None:
            identity.terminate()

    def _stale_server(self) -> ProcessIdentity | None:
        record = _read(self.home / "server.json")
        return None if record is None else ProcessIdentity(record["pid"], record["start_time"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
