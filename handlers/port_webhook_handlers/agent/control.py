"""Start, look at and stop the agent of this machine. Imported at deploy time: standard library and psutil."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.agent import config as configuration
from port_webhook_handlers.agent.config import AgentConfig, AgentConfigError
from port_webhook_handlers.process import ProcessIdentity, spawn_detached, tail
from port_webhook_handlers.runtime.files import write_private
from port_webhook_handlers.runtime.launch import PROXY_VARIABLES, scrubbed_environment

_START_SECONDS: Final = 30.0


class AgentError(Exception):
    """The agent cannot be started or stopped; the message says why."""


@dataclass(frozen=True, slots=True)
class Places:
    """Files of an agent's home."""

    home: Path

    @property
    def config(self) -> Path:
        """The configuration in force."""
        return self.home / "agent.json"

    @property
    def supervisor(self) -> Path:
        """Identity of the supervisor."""
        return self.home / "supervisor.json"

    @property
    def health_port(self) -> Path:
        """Port of health and metrics, while an agent runs."""
        return self.home / "health-port"

    @property
    def log(self) -> Path:
        """Log of supervisor and agent."""
        return self.home / "agent.log"

    def identity(self) -> ProcessIdentity | None:
        """The supervisor, if it lives."""
        try:
            record = json.loads(self.supervisor.read_bytes())
            found = ProcessIdentity(record["pid"], record["start_time"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if found.is_alive() else None


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """An agent that runs.

    Attributes:
        pid: of its supervisor.
        config: the configuration in force.
        url: private address of health and metrics; None until it is bound.
        ready: whether it receives invocations.
        problem: what stands in the way.
        details: the content of `/health/ready`.
    """

    pid: int
    config: AgentConfig
    url: str | None
    ready: bool
    problem: str | None
    details: dict[str, Any]


def start(home: Path, config: AgentConfig) -> AgentStatus:
    """Starts the agent, or exchanges the running one if the configuration differs.

    Args:
        home: folder of the agent; made if missing, mode 0700.
        config: what it should run with.

    Raises:
        AgentError: it does not start; the end of its log is in the message.
    """
    places = Places(home.absolute())
    places.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(places):
        found = status(home)
        if found is not None and found.config == config and found.url is not None:
            return found
        _end(places)
        write_private(places.config, config.dumps())
        identity = spawn_detached(
            [sys.executable, "-I", "-m", "port_webhook_handlers.agent.supervisor", str(places.home)],
            log_file=places.log,
            environment=scrubbed_environment(("HOME", *PROXY_VARIABLES)),
            working_directory=places.home,
        )
        record = {"pid": identity.pid, "start_time": identity.start_time}
        write_private(places.supervisor, json.dumps(record).encode())
        until = time.monotonic() + _START_SECONDS
        while time.monotonic() < until and identity.is_alive():
            found = status(home)
            if found is not None and found.url is not None:
                return found
            if "agent not started" in tail(places.log, 5):
                break
            time.sleep(0.05)
        _end(places)
        raise AgentError(f"the agent did not start; the end of its log:\n{tail(places.log)}")


def status(home: Path) -> AgentStatus | None:
    """The running agent of this home; None if its supervisor does not run."""
    places = Places(home.absolute())
    identity = places.identity()
    if identity is None:
        return None
    try:
        config = configuration.parse(places.config.read_bytes())
        port = int(places.health_port.read_text(encoding="ascii"))
    except (AgentConfigError, OSError, ValueError):
        try:
            config = configuration.parse(places.config.read_bytes())
        except (AgentConfigError, OSError):
            return None
        return AgentStatus(identity.pid, config, None, False, "it is starting", {})
    details = _ask(port)
    if details is None:
        return AgentStatus(identity.pid, config, None, False, "it does not answer", {})
    return AgentStatus(
        identity.pid,
        config,
        f"http://127.0.0.1:{port}",
        bool(details.get("ready")),
        details.get("problem"),
        details,
    )


def stop(home: Path) -> bool:
    """Stops the agent: deliveries under way may end. Returns whether it was running."""
    places = Places(home.absolute())
    if not places.home.is_dir():
        return False
    with _locked(places):
        return _end(places)


def _end(places: Places) -> bool:
    identity = places.identity()
    if identity is None:
        return False
    try:
        seconds = configuration.parse(places.config.read_bytes()).limits.drain_seconds + 35
    except (AgentConfigError, OSError):
        seconds = 60
    ended = identity.terminate(grace_seconds=seconds)
    for path in (places.supervisor, places.health_port):
        path.unlink(missing_ok=True)
    return ended


def _ask(port: int) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        found = json.loads(connection.getresponse().read())
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return found if isinstance(found, dict) else None


@contextmanager
def _locked(places: Places) -> Iterator[None]:
    descriptor = os.open(places.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
