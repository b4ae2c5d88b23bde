"""Start, look at and stop the listener of this machine. Imported at deploy time: standard library and psutil."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from port_webhook_handlers.process import ProcessIdentity, spawn_detached, tail
from port_webhook_handlers.runtime import config as configuration
from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.config import ConfigError, ListenerConfig
from port_webhook_handlers.runtime.deployments import end_deployments as end_deployed
from port_webhook_handlers.runtime.files import write_private
from port_webhook_handlers.runtime.launch import PROXY_VARIABLES, scrubbed_environment
from port_webhook_handlers.runtime.places import Places

_POLL_SECONDS: Final = 0.02
_ASK_SECONDS: Final = 5.0


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
        healthy: whether the server answers at `url` with that nonce.
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
    places = Places(home.absolute())
    places.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(places):
        try:
            wanted = manifests.load(config.bundle)[1]
        except manifests.ManifestError as error:
            raise ListenerError(str(error)) from error
        current = _status(places)
        if current is not None and not current.nonce:
            # It lives but does not answer: nothing can be asked of it.
            ProcessIdentity(current.pid, current.start_time).terminate()
            current = None
        if current is None:
            _launch(places, config)
        elif not (current.healthy and current.config == config and current.digest == wanted):
            _call(places, "POST", "/update", config.to_json(), 2 * config.limits.start_seconds + 30)
        started = _status(places)
        if started is None or not started.healthy:
            raise ListenerError(
                f"the listener does not answer at {started.url if started else 'its address'}; the end of its log:\n"
                f"{tail(places.log)}"
            )
        return started


def status(home: Path) -> ListenerStatus | None:
    """The running listener of this home; None if its supervisor does not run."""
    return _status(Places(home.absolute()))


def stop(home: Path, *, end_deployments: bool = True) -> bool:
    """Stops the listener: running handlers may finish within `limits.drain_seconds`.

    Args:
        home: folder of the listener.
        end_deployments: it will not be started again: also end the processes that handlers registered under
            `<state>/deployments`, and report FAILURE for accepted runs that have not started.

    Returns:
        Whether it was running.

    Raises:
        ListenerError: it did not end.
    """
    places = Places(home.absolute())
    if not places.home.is_dir():
        return False
    with _locked(places):
        config = _stored_config(places)
        identity = _supervisor(places)
        if identity is not None:
            seconds = (config.limits.drain_seconds if config is not None else 20) + 60
            try:
                _call(places, "POST", "/stop", {"end_deployments": end_deployments}, seconds)
            except ListenerError:
                identity.terminate(grace_seconds=seconds)
            _until(lambda: not identity.is_alive(), 15)
            if identity.is_alive() and not identity.terminate(grace_seconds=1):
                raise ListenerError(
                    f"the listener (process {identity.pid}) does not end; end it and try again"
                )
        places.end_stale_server()
        if end_deployments:
            state_dir = config.state_dir if config is not None and config.state_dir else places.home.parent
            end_deployed(state_dir / "deployments")
        places.supervisor.unlink(missing_ok=True)
        return identity is not None


def _launch(places: Places, config: ListenerConfig) -> None:
    write_private(places.token, secrets.token_hex(32).encode())
    write_private(places.config, config.dumps())
    places.supervisor.unlink(missing_ok=True)
    identity = spawn_detached(
        [sys.executable, "-I", "-m", "port_webhook_handlers.runtime.supervisor", str(places.home)],
        log_file=places.log,
        environment=scrubbed_environment(("HOME", *PROXY_VARIABLES)),
        working_directory=places.home,
    )

    def started() -> bool:
        record = places.read_supervisor()
        return record is not None and record["pid"] == identity.pid

    if (
        not _until(lambda: started() or not identity.is_alive(), config.limits.start_seconds + 15)
        or not started()
    ):
        identity.terminate(grace_seconds=1)
        raise ListenerError(f"the listener did not start; the end of its log:\n{tail(places.log)}")
    record = places.read_supervisor() or {}
    if "error" in record:
        places.supervisor.unlink(missing_ok=True)
        raise ListenerError(str(record["error"]))


def _status(places: Places) -> ListenerStatus | None:
    identity = _supervisor(places)
    if identity is None:
        return None
    try:
        answer = _call(places, "GET", "/status", None, _ASK_SECONDS)
        config = configuration.parse(json.dumps(answer["config"]))
    except (ListenerError, ConfigError):
        stored = _stored_config(places)
        if stored is None:
            return None
        port = places.read_port() or stored.port
        url = f"http://{stored.host}:{port}"
        return ListenerStatus(url, port, "", "", identity.pid, identity.start_time, False, None, stored)
    metrics_port = answer["metrics_port"]
    return ListenerStatus(
        url=answer["url"],
        port=answer["port"],
        digest=answer["digest"],
        nonce=answer["nonce"],
        pid=identity.pid,
        start_time=identity.start_time,
        healthy=_is_healthy(answer["url"], answer["nonce"]),
        metrics_url=f"http://127.0.0.1:{metrics_port}/metrics" if metrics_port else None,
        config=config,
    )


def _is_healthy(url: str, nonce: str) -> bool:
    try:
        answer = _request(
            urlsplit(url).hostname or "", urlsplit(url).port or 0, "GET", "/health", {}, None, _ASK_SECONDS
        )
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return answer[0] == 200 and answer[1].get("nonce") == nonce


def _supervisor(places: Places) -> ProcessIdentity | None:
    record = places.read_supervisor()
    if record is None or "error" in record:
        return None
    identity = ProcessIdentity(int(record["pid"]), float(record["start_time"]))
    return identity if identity.is_alive() else None


def _stored_config(places: Places) -> ListenerConfig | None:
    try:
        return configuration.parse(places.config.read_bytes())
    except (OSError, ConfigError):
        return None


def _call(places: Places, method: str, path: str, body: Any, seconds: float) -> dict[str, Any]:
    record = places.read_supervisor() or {}
    try:
        headers = {"authorization": f"Bearer {places.token.read_text()}"}
        code, answer = _request(
            "127.0.0.1", int(record["control_port"]), method, path, headers, body, seconds
        )
    except (OSError, KeyError, ValueError, http.client.HTTPException) as error:
        raise ListenerError(
            f"the listener does not answer its control ({type(error).__name__}); the end of its log:\n"
            f"{tail(places.log)}"
        ) from error
    if code != 200:
        raise ListenerError(str(answer.get("error", f"the listener's control answered {code}")))
    return answer


def _request(
    host: str, port: int, method: str, path: str, headers: dict[str, str], body: Any, seconds: float
) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(host, port, timeout=seconds)
    try:
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@contextlib.contextmanager
def _locked(places: Places) -> Iterator[None]:
    descriptor = os.open(places.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _until(condition: Any, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_POLL_SECONDS)
    return True
