"""Start, find and stop the local Port of a folder.

Standard library and psutil only (and cryptography, once credentials are read), so that a deployment program can
import it cheaply; the server runs in a process of its own.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from port_webhook_handlers.process import ProcessIdentity, spawn_detached, tail
from port_webhook_localport.home import Home, LocalPortError

__all__ = [
    "Endpoint",
    "LocalPortError",
    "RotationStep",
    "ensure_running",
    "is_rotating",
    "remove",
    "rotate_secret",
    "status",
    "stop",
]

START_TIMEOUT_SECONDS = 20.0

RotationStep = Literal["stage", "activate", "retire"]

# Expressions of a definition can read the environment of the server, so it gets no more than it needs.
_ENVIRONMENT = (
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "PYTHONPATH",
    "XDG_STATE_HOME",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """A running local Port.

    Attributes:
        url: base URL without a trailing slash, `http://127.0.0.1:<port>`.
        client_id, client_secret: credentials of its API; the newest secret, in a rotation.
        admin_token: bearer token of its `/_local` routes.
        pid: process id of the server.
    """

    url: str
    client_id: str
    client_secret: str
    admin_token: str
    pid: int

    def __repr__(self) -> str:
        return f"Endpoint(url={self.url!r}, client_id={self.client_id!r}, pid={self.pid})"


def ensure_running(home: Path) -> Endpoint:
    """Attaches to the local Port of a folder, or starts it and waits until it answers.

    Args:
        home: folder of its state, created with mode 0700 if missing. Credentials and port are made at
            the first start and then kept.

    Raises:
        LocalPortError: the server did not come up; the message ends with the last lines of its log.
    """
    place = Home(home.absolute())
    place.create()
    with _locked(place.start_lock):
        running = _find(place)
        if running is not None:
            return running.endpoint(place)
        _end_unresponsive(place)
        return _start(place)


def status(home: Path) -> Endpoint | None:
    """The local Port of a folder if it runs and answers, else None."""
    place = Home(home.absolute())
    running = _find(place)
    return running.endpoint(place) if running else None


def stop(home: Path) -> bool:
    """Ends the local Port of a folder; its state, credentials and port stay for the next start.

    Returns:
        Whether it was running.
    """
    place = Home(home.absolute())
    if not place.folder.is_dir():
        return False
    with _locked(place.start_lock):
        recorded = _recorded(place)
        if recorded is None:
            return False
        ended = recorded.identity.terminate(grace_seconds=10.0)
        place.endpoint_file.unlink(missing_ok=True)
        return ended


def remove(home: Path) -> None:
    """Ends the local Port of a folder and removes the folder and the key of its credentials."""
    stop(home)
    Home(home.absolute()).forget_key()
    shutil.rmtree(home, ignore_errors=True)


def rotate_secret(home: Path, step: RotationStep, overlap_seconds: float = 0) -> Endpoint:
    """One step of a rotation of the client secret, at a local Port that runs.

    Args:
        home: folder of its state.
        step: `stage` makes a new secret, which gets access tokens at once; `activate` signs with it from now on;
            `retire` ends the former one. Each may be repeated.
        overlap_seconds: how long the former secret gets access tokens after `activate`.

    Raises:
        LocalPortError: it does not run, or refused.
    """
    endpoint = status(home)
    if endpoint is None:
        raise LocalPortError(f"Local Port of {home} does not run. Start it first")
    host, _, port = endpoint.url.removeprefix("http://").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        body = json.dumps({"step": step, "overlapSeconds": overlap_seconds})
        headers = {"authorization": f"Bearer {endpoint.admin_token}"}
        connection.request("POST", "/_local/rotate-secret", body, headers)
        reply = connection.getresponse()
        answer = json.loads(reply.read())
        if reply.status != 200:
            raise LocalPortError(f"Local Port of {home} refuses: {answer.get('message')}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise LocalPortError(f"Local Port of {home} does not answer: {error}") from error
    finally:
        connection.close()
    return ensure_running(home)


def is_rotating(home: Path) -> bool:
    """Whether a new client secret is staged there and does not sign yet."""
    place = Home(home.absolute())
    return place.credentials_file.exists() and place.credentials().is_staged


@dataclass(frozen=True, slots=True)
class _Recorded:
    url: str
    identity: ProcessIdentity
    nonce: str

    def endpoint(self, place: Home) -> Endpoint:
        """With the credentials, which are read anew: they change in a rotation."""
        known = place.credentials()
        return Endpoint(self.url, known.client_id, known.client_secret, known.admin_token, self.identity.pid)

    def answers(self, timeout_seconds: float) -> bool:
        """Whether the server at the recorded address is the recorded one."""
        host, _, port = self.url.removeprefix("http://").rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout_seconds)
        try:
            connection.request("GET", "/_local/health")
            body = json.loads(connection.getresponse().read(4096))
            return isinstance(body, dict) and body.get("nonce") == self.nonce
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()


def _recorded(place: Home) -> _Recorded | None:
    try:
        record = json.loads(place.endpoint_file.read_text(encoding="utf-8"))
        identity = ProcessIdentity(record["pid"], record["start_time"])
        return _Recorded(record["url"], identity, record["nonce"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _find(place: Home) -> _Recorded | None:
    recorded = _recorded(place)
    if recorded is None or not recorded.identity.is_alive():
        return None
    # A busy machine may need a second try; a process that is alive is not replaced lightly.
    return recorded if recorded.answers(2.0) or recorded.answers(5.0) else None


def _end_unresponsive(place: Home) -> None:
    recorded = _recorded(place)
    if recorded is not None:
        recorded.identity.terminate(grace_seconds=3.0)
        place.endpoint_file.unlink(missing_ok=True)


def _start(place: Home) -> Endpoint:
    place.credentials()
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # -P: a file in the caller's working directory must not shadow a module of the server.
    command = [sys.executable, "-P", "-m", "port_webhook_localport", "--home", str(place.folder)]
    identity = spawn_detached(
        command, log_file=place.log_file, environment=environment, working_directory=place.folder
    )
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        recorded = _recorded(place)
        if recorded is not None and recorded.identity.pid == identity.pid and recorded.answers(2.0):
            return recorded.endpoint(place)
        if not identity.is_alive():
            break
        time.sleep(0.02)
    ended = not identity.terminate(grace_seconds=1.0)
    reason = "ended at once" if ended else f"did not answer within {START_TIMEOUT_SECONDS:g} s"
    raise LocalPortError(
        f"Local Port of {place.folder} {reason}. Its log, {place.log_file}, ends with:\n{tail(place.log_file)}"
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
