"""Deploys services as processes of this machine.

`<deployments>/<service>/` holds one folder for each revision, with its artefact and log, and `current.json`,
which names the revision that is live. Every process is registered as `<deployments>/<service>+<revision>.json`
from its start to its end, so that whoever removes the stack finds those of interrupted deployments too.

A version goes live only once it is healthy; until then, and if it never is, the one before keeps running.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from port_webhook_handlers.bundled.deploy.artefact import unpack
from port_webhook_handlers.bundled.deploy.deployer import Deployment, DeploymentError, Report, ServiceSpec
from port_webhook_handlers.process import ProcessIdentity, spawn_detached, tail
from port_webhook_handlers.runtime.files import write_private

_HOST = "127.0.0.1"
_POLL_SECONDS = 0.05
# Without a health path a process counts as started once it has lived this long.
_SETTLE_SECONDS = 1.0
_STOP_SECONDS = 10.0
_UNSAFE = re.compile(r"[^a-z0-9_-]")


@dataclass(frozen=True, slots=True)
class Live:
    """The process that serves a service, as `current.json` holds it.

    Attributes:
        pid, start_time: identity of the process.
        version: what runs.
        port: on the loopback interface.
        revision: name of its folder.
    """

    pid: int
    start_time: float
    version: str
    port: int
    revision: str

    @property
    def process(self) -> ProcessIdentity:
        """What tells it from a later process with the same id."""
        return ProcessIdentity(self.pid, self.start_time)


class LocalDeployer:
    """Starts and replaces processes.

    Args:
        deployments: folder that holds one folder for each service.
        project: folder that relative paths of artefacts start from.
    """

    def __init__(self, deployments: Path, project: Path) -> None:
        self._deployments = deployments
        self._project = project

    def deploy(
        self, service: str, version: str, spec: ServiceSpec, *, report: Report, timeout_seconds: float
    ) -> Deployment:
        """See `Deployer.deploy`."""
        deadline = time.monotonic() + timeout_seconds
        home = self._deployments / folder_name(service)
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _exclusive(home / "lock", service, deadline):
            before = current(home)
            self._end_strays(home, before)
            # Unlike a folder's name it also becomes part of an entity's identifier, which has no %.
            revision = f"{re.sub(r'[^A-Za-z0-9.-]', '_', version)[:60]}-{secrets.token_hex(4)}"
            try:
                live = self._start(home / revision, version, spec, report, deadline)
            except BaseException:
                _end(_registration(home, revision))
                shutil.rmtree(home / revision, ignore_errors=True)
                raise
            _write(home / "current.json", live)
            if before is not None:
                if before.process.terminate(_STOP_SECONDS):
                    report(f"stopped version {before.version}")
                _registration(home, before.revision).unlink(missing_ok=True)
            _prune(home, {revision, before.revision if before else ""})
        return Deployment(
            url=f"http://{_HOST}:{live.port}",
            version=version,
            revision=revision,
            replaced=before.revision if before else None,
        )

    def _start(self, folder: Path, version: str, spec: ServiceSpec, report: Report, deadline: float) -> Live:
        artefact = folder / "artefact"
        source = self._project / spec.artefact.replace("{version}", version)
        unpack(source, artefact)
        report(f"took {source.name}")
        port = _free_port()
        words = {
            "{python}": sys.executable,
            "{artefact}": str(artefact),
            "{port}": str(port),
            "{version}": version,
        }
        log_file = folder / "process.log"
        try:
            process = spawn_detached(
                [_fill(part, words) for part in spec.command],
                log_file=log_file,
                environment=os.environ
                | {name: _fill(value, words) for name, value in spec.environment.items()}
                | {"PORT": str(port), "VERSION": version},
                working_directory=artefact,
            )
        except ProcessLookupError:
            raise DeploymentError(f"version {version} ended at once{_log_of(log_file)}") from None
        except OSError as error:
            raise DeploymentError(f"version {version} cannot be started: {error}") from error
        live = Live(process.pid, process.start_time, version, port, folder.name)
        _write(_registration(folder.parent, folder.name), live)
        report(f"started version {version} on port {port}")
        _wait_until_healthy(live, spec, log_file, min(deadline, time.monotonic() + spec.start_seconds))
        report(f"version {version} is healthy")
        return live

    def _end_strays(self, home: Path, live: Live | None) -> None:
        """Ends what deployments left running that were killed before they could decide."""
        kept = _registration(home, live.revision) if live is not None else None
        for file in self._deployments.glob(f"{home.name}+*.json"):
            if file != kept:
                _end(file)


def current(home: Path) -> Live | None:
    """The revision that `current.json` in a service's folder names; None if there is none."""
    return _read(home / "current.json")


def folder_name(service: str) -> str:
    """Folder of a service: no two services share one, and none leads elsewhere.

    Upper case is escaped too, because some file systems do not tell it from lower case.
    """
    name = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), service)
    return name if len(name) <= 100 else f"{name[:60]}%{sha256(service.encode()).hexdigest()[:32]}"


def _registration(home: Path, revision: str) -> Path:
    # A service's folder has no + in its name.
    return home.with_name(f"{home.name}+{revision}.json")


def _write(file: Path, live: Live) -> None:
    write_private(file, json.dumps(asdict(live)).encode())


def _end(registration: Path) -> None:
    live = _read(registration)
    if live is not None:
        live.process.terminate(_STOP_SECONDS)
    registration.unlink(missing_ok=True)


def _read(file: Path) -> Live | None:
    try:
        values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Live(
            int(values["pid"]),
            float(values["start_time"]),
            str(values["version"]),
            int(values["port"]),
            str(values["revision"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fill(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(live: Live, spec: ServiceSpec, log_file: Path, deadline: float) -> None:
    settled = time.monotonic() + _SETTLE_SECONDS
    answer = "no answer"
    while time.monotonic() < deadline:
        # Asked first: another process could have taken the port of one that ended.
        if not live.process.is_alive():
            raise DeploymentError(f"version {live.version} ended before it was healthy{_log_of(log_file)}")
        if spec.health is None:
            if time.monotonic() >= settled:
                return
        else:
            answer = _ask(live.port, spec.health)
            if answer.startswith("2") and live.process.is_alive():
                return
        time.sleep(_POLL_SECONDS)
    raise DeploymentError(
        f"version {live.version} did not get healthy in time ({spec.health or 'alive'}: {answer})"
        f"{_log_of(log_file)}"
    )


def _ask(port: int, path: str) -> str:
    connection = http.client.HTTPConnection(_HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def _log_of(log_file: Path) -> str:
    lines = tail(log_file, 10)
    return f"; the end of its log:\n\n```\n{lines}\n```" if lines else "; its log is empty"


@contextlib.contextmanager
def _exclusive(lock: Path, service: str, deadline: float) -> Iterator[None]:
    """Lets one deployment of a service run at a time; the lock ends with its process."""
    import fcntl

    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise DeploymentError(f"another deployment of {service} is still running") from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _prune(home: Path, keep: set[str]) -> None:
    for folder in home.iterdir():
        if folder.is_dir() and folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)
