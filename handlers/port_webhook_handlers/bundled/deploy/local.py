"""Deploys services as processes of this machine.

`<deployments>/<service>/` holds one folder for each revision, with its artefact, spec and logs, and `current.json`,
which names the processes that are live. Every process is registered as `<deployments>/<service>+<revision>+<pid>.json`
from its start to its end, so that whoever removes the stack finds those of interrupted deployments too.

A version goes live only once it is healthy; until then, and if it never is, the one before keeps running.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
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
from port_webhook_handlers.bundled.deploy.deployer import (
    Deployment,
    DeploymentError,
    Report,
    ServiceSpec,
    ServiceState,
    new_revision,
)
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
        settings: hold the map `services`, one `ServiceSpec` each.
    """

    def __init__(self, deployments: Path, project: Path, settings: Mapping[str, Any]) -> None:
        self._deployments = deployments
        self._project = project
        self._settings = settings

    def deploy(self, service: str, version: str, *, report: Report, timeout_seconds: float) -> Deployment:
        """See `Deployer.deploy`."""
        spec = ServiceSpec.of(self._settings, service)
        with self._alone(service, timeout_seconds) as (home, deadline):
            before = members(home)
            revision = new_revision(version)
            folder = home / revision
            try:
                source = self._project / spec.artefact.replace("{version}", version)
                unpack(source, folder / "artefact")
                report(f"took {source.name}")
                write_private(folder / "spec.json", json.dumps(asdict(spec)).encode())
                live = _launch_all(folder, version, spec, max(1, len(before)), report, deadline)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _record(home, live)
            if before and _end_all(home, before):
                report(f"stopped version {before[0].version}")
            _prune(home, {revision, before[0].revision if before else ""})
        return Deployment(
            url=_url(live[0]),
            version=version,
            revision=revision,
            replaced=before[0].revision if before else None,
        )

    def scale(self, service: str, replicas: int, *, report: Report, timeout_seconds: float) -> ServiceState:
        """See `Deployer.scale`; on this machine at least one copy runs, each on a port of its own."""
        if replicas < 1:
            raise DeploymentError("on target local at least one copy of a service runs; ask for 1 or more")
        with self._alone(service, timeout_seconds) as (home, deadline):
            live = _required(home, service)
            spec = _spec_of(home, live[0])
            kept, rest = live[:replicas], live[replicas:]
            more = replicas - len(kept)
            folder = home / live[0].revision
            kept += _launch_all(folder, live[0].version, spec, more, report, deadline) if more else []
            _record(home, kept)
            if rest:
                _end_all(home, rest)
                report(f"stopped {len(rest)} of {len(live)} copies")
        return _state(kept, spec)

    def restart(self, service: str, *, report: Report, timeout_seconds: float) -> ServiceState:
        """See `Deployer.restart`; the new copies are healthy before the old ones end."""
        with self._alone(service, timeout_seconds) as (home, deadline):
            before = _required(home, service)
            spec = _spec_of(home, before[0])
            folder = home / before[0].revision
            live = _launch_all(folder, before[0].version, spec, len(before), report, deadline)
            _record(home, live)
            _end_all(home, before)
            report(f"stopped {len(before)} former {'copy' if len(before) == 1 else 'copies'}")
        return _state(live, spec)

    def state(self, service: str) -> ServiceState | None:
        """See `Deployer.state`."""
        home = self._deployments / folder_name(service)
        live = members(home)
        return _state(live, _spec_of(home, live[0])) if live else None

    @contextlib.contextmanager
    def _alone(self, service: str, timeout_seconds: float) -> Iterator[tuple[Path, float]]:
        """The service's folder and the deadline, while nobody else changes the service."""
        deadline = time.monotonic() + timeout_seconds
        home = self._deployments / folder_name(service)
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _exclusive(home / "lock", service, deadline):
                _end_strays(home)
                yield home, deadline
        except OSError as error:
            raise DeploymentError(
                f"the folder {self._deployments} cannot be used: {error.strerror or error}; make room or correct "
                "its permissions"
            ) from error


def _launch_all(
    folder: Path, version: str, spec: ServiceSpec, count: int, report: Report, deadline: float
) -> list[Live]:
    """Starts copies of a revision one after the other; none is left if one does not get healthy."""
    started: list[Live] = []
    try:
        for _ in range(count):
            _launch(folder, version, spec, started, report, deadline)
    except BaseException:
        _end_all(folder.parent, started)
        raise
    return started


def _launch(
    folder: Path, version: str, spec: ServiceSpec, started: list[Live], report: Report, deadline: float
) -> None:
    artefact = folder / "artefact"
    port = _free_port()
    words = {
        "{python}": sys.executable,
        "{artefact}": str(artefact),
        "{port}": str(port),
        "{version}": version,
    }
    log_file = folder / f"process-{port}.log"
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
    started.append(live)
    write_private(_registration(folder.parent, live), json.dumps(asdict(live)).encode())
    report(f"started version {version} on port {port}")
    _wait_until_healthy(live, spec, log_file, min(deadline, time.monotonic() + spec.start_seconds))
    report(f"version {version} is healthy")


def _end_strays(home: Path) -> None:
    """Ends what was started by those who were killed before they could decide."""
    kept = members(home)
    for file in home.parent.glob(f"{home.name}+*.json"):
        live = _read(file)
        if live in kept:
            continue
        if live is not None:
            live.process.terminate(_STOP_SECONDS)
        file.unlink(missing_ok=True)


def members(home: Path) -> list[Live]:
    """The processes that `current.json` in a service's folder names; none if there is no such file."""
    try:
        values = json.loads((home / "current.json").read_bytes())
        return [_parse(values), *map(_parse, values.get("others", ()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def current(home: Path) -> Live | None:
    """The first process that is live; None if the service is not deployed."""
    return next(iter(members(home)), None)


def folder_name(service: str) -> str:
    """Folder of a service: no two services share one, and none leads elsewhere.

    Upper case is escaped too, because some file systems do not tell it from lower case.
    """
    name = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), service)
    return name if len(name) <= 100 else f"{name[:60]}%{sha256(service.encode()).hexdigest()[:32]}"


def _registration(home: Path, live: Live) -> Path:
    # A service's folder has no + in its name.
    return home.with_name(f"{home.name}+{live.revision}+{live.pid}.json")


def _record(home: Path, live: list[Live]) -> None:
    content = {**asdict(live[0]), "others": [asdict(other) for other in live[1:]]}
    write_private(home / "current.json", json.dumps(content).encode())


def _required(home: Path, service: str) -> list[Live]:
    if live := members(home):
        return live
    raise DeploymentError(f"{service} is not deployed here; deploy a version first")


def _end_all(home: Path, lives: list[Live]) -> bool:
    ended = [live.process.terminate(_STOP_SECONDS) for live in lives]
    for live in lives:
        _registration(home, live).unlink(missing_ok=True)
    return any(ended)


def _spec_of(home: Path, live: Live) -> ServiceSpec:
    """How the revision that is live was started: what the settings say now is for the next one."""
    try:
        values = json.loads((home / live.revision / "spec.json").read_bytes())
        return ServiceSpec(**{**values, "command": tuple(values["command"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DeploymentError(
            f"how version {live.version} was started is not known any more; deploy it again"
        ) from error


def _state(lives: list[Live], spec: ServiceSpec) -> ServiceState:
    healthy = [
        live
        for live in lives
        if live.process.is_alive() and (spec.health is None or _ask(live.port, spec.health).startswith("2"))
    ]
    first = lives[0]
    return ServiceState(first.version, first.revision, len(lives), len(healthy), _url(first))


def _url(live: Live) -> str:
    return f"http://{_HOST}:{live.port}"


def _read(file: Path) -> Live | None:
    try:
        return _parse(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _parse(values: Mapping[str, Any]) -> Live:
    return Live(
        int(values["pid"]),
        float(values["start_time"]),
        str(values["version"]),
        int(values["port"]),
        str(values["revision"]),
    )


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
                    raise DeploymentError(f"another run is still changing {service}") from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _prune(home: Path, keep: set[str]) -> None:
    for folder in home.iterdir():
        if folder.is_dir() and folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)
