"""What the provider costs: a stack of actions on a local Port, compared with the engine and a no-op provider.

The engine writes a checkpoint for each resource, so most of the time of a large stack is its own; the ratio
`up_vs_engine_floor` tells how much is ours.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pulumi
import requests
from pulumi import automation as auto
from semver import VersionInfo

from port_webhook_localport import control
from port_webhook_localport.control import Endpoint
from port_webhook_stack.engine import Engine, resolve
from port_webhook_stack.port.resources import Action

FULL, SMALL = 1000, 100
FAULTS = {
    "api": [
        {"prefix": "/v1/actions", "percent": 5, "status": 429, "retryAfterSeconds": 0.1},
        {"prefix": "/v1/actions", "percent": 2.5, "status": 500},
        # The worse half: Port did what was asked and then failed to say so.
        {"prefix": "/v1/actions", "percent": 2.5, "status": 500, "after": True},
    ]
}
_ATTEMPTS = 3


def run(small: bool) -> Iterator[tuple[str, float]]:
    """See the module."""
    count = SMALL if small else FULL
    engine = resolve(lambda line: print(f"  {line}", file=sys.stderr))
    with tempfile.TemporaryDirectory(prefix="provider-benchmark-") as name:
        folder = Path(name)
        floor = _floor(folder / "floor", engine, count)
        with _local_port(folder / "port") as port:
            yield from _plain(folder / "plain", engine, port, count, floor)
            yield from _faulty(folder / "faulty", engine, port, count)


def _plain(
    folder: Path, engine: Engine, port: Port, count: int, floor: dict[str, float]
) -> Iterator[tuple[str, float]]:
    stack = _stack(folder, engine, _actions(count), Path(sys.executable).parent, port.configuration)
    with _peak_memory("pulumi-resource-port-webhook") as peak:
        times, calls = {}, {}
        for step, operation in (("up", stack.up), ("nochange", stack.up), ("destroy", stack.destroy)):
            port.admin("DELETE", "/calls")
            times[step] = _seconds(operation)
            calls[step] = port.admin("GET", "/calls")["calls"]
            if step == "up" and len(port.actions()) != count:
                raise AssertionError(f"{len(port.actions())} actions after up, not {count}")
    if port.actions():
        raise AssertionError("destroy left actions behind")
    for step, seconds in times.items():
        yield f"provider.{step}_seconds_{count}", round(seconds, 2)
    for step, seconds in times.items():
        yield f"provider.{step}_vs_engine_floor", round(seconds / floor[step], 2)
    total = sum(calls["up"].values())
    yield "provider.calls_per_resource", round(total / count, 3)
    for step, routes in calls.items():
        for route, number in sorted(routes.items()):
            yield f"provider.calls_per_resource.{step}[{route}]", round(number / count, 3)
    yield "provider.peak_memory_mb", round(peak() / 2**20, 1)


def _faulty(folder: Path, engine: Engine, port: Port, count: int) -> Iterator[tuple[str, float]]:
    """5 % of calls answer 429 and 5 % answer 500: everything is there once in the end, and goes again."""
    stack = _stack(folder, engine, _actions(count), Path(sys.executable).parent, port.configuration)
    port.admin("PUT", "/faults", FAULTS)
    started = time.monotonic()
    attempts = _until_it_works(stack.up)
    yield f"provider.faults_up_seconds_{count}", round(time.monotonic() - started, 2)
    recorded = [
        r for r in (stack.export_stack().deployment or {})["resources"] if r["type"].endswith(":Action")
    ]
    ids = [resource["id"] for resource in recorded]
    there = port.actions()
    _until_it_works(stack.destroy)
    converged = sorted(ids) == sorted(there) == _identifiers(count) and not port.actions()
    port.admin("DELETE", "/faults")
    yield "provider.faults_attempts", attempts
    yield "provider.faults_converged", int(converged)


def _until_it_works(operation: Callable[..., Any]) -> int:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            operation(suppress_progress=True)
        except auto.CommandError:
            if attempt == _ATTEMPTS:
                raise
        else:
            return attempt
    raise AssertionError("unreachable")


def _floor(folder: Path, engine: Engine, count: int) -> dict[str, float]:
    plugin = folder / "plugin" / "pulumi-resource-noop"
    plugin.parent.mkdir(parents=True)
    script = Path(__file__).with_name("_noop_provider.py")
    plugin.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n', encoding="utf-8")
    plugin.chmod(0o755)

    def program() -> None:
        for identifier in _identifiers(count):
            pulumi.CustomResource("noop:index:Action", identifier, _body(identifier))

    stack = _stack(folder, engine, program, plugin.parent, {})
    return {
        "up": _seconds(stack.up),
        "nochange": _seconds(stack.up),
        "destroy": _seconds(stack.destroy),
    }


def _actions(count: int) -> Callable[[], None]:
    def program() -> None:
        for identifier in _identifiers(count):
            Action(identifier, _body(identifier))

    return program


def _identifiers(count: int) -> list[str]:
    return [f"action_{number:04d}" for number in range(count)]


def _body(identifier: str) -> dict[str, Any]:
    return {
        "identifier": identifier,
        "title": f"Deploy {identifier}",
        "description": "Deploys a version",
        "trigger": {
            "type": "self-service",
            "operation": "CREATE",
            "userInputs": {
                "properties": {
                    "version": {"type": "string", "title": "Version", "pattern": r"^\d+\.\d+\.\d+$"},
                    "replicas": {"type": "number", "minimum": 1, "maximum": 10, "default": 2},
                },
                "required": ["version"],
                "order": ["version", "replicas"],
            },
        },
        "invocationMethod": {
            "type": "WEBHOOK",
            "url": "https://hooks.example.com/port",
            "synchronized": False,
            "method": "POST",
            "headers": {"RUN_ID": "{{ .run.id }}"},
            "body": {
                "port_context": {"action": identifier, "runId": "{{ .run.id }}"},
                "inputs": "{{ .inputs }}",
            },
        },
    }


def _stack(
    folder: Path, engine: Engine, program: Callable[[], None], plugins: Path, configuration: dict[str, str]
) -> auto.Stack:
    (folder / "backend").mkdir(parents=True)
    name = "port-webhook" if configuration else "noop"
    project = {
        "name": "benchmark",
        "runtime": "python",
        "plugins": {"providers": [{"name": name, "path": str(plugins)}]},
    }
    (folder / "Pulumi.yaml").write_text(json.dumps(project), encoding="utf-8")
    command = auto.PulumiCommand.__new__(auto.PulumiCommand)
    command.command, command.version = str(engine.executable), VersionInfo.parse(engine.version)
    stack = auto.create_or_select_stack(
        "benchmark",
        project_name="benchmark",
        program=program,
        opts=auto.LocalWorkspaceOptions(
            work_dir=str(folder),
            pulumi_command=command,
            env_vars={
                "PULUMI_HOME": str(folder / "home"),
                "PULUMI_BACKEND_URL": (folder / "backend").as_uri(),
                "PULUMI_CONFIG_PASSPHRASE": "benchmark",
                "PULUMI_SKIP_UPDATE_CHECK": "1",
                "PORT_CLIENT_SECRET": configuration.get("clientSecret", ""),
            },
        ),
    )
    given = {key: value for key, value in configuration.items() if key != "clientSecret"}
    if given:
        stack.set_all_config({f"port-webhook:{key}": auto.ConfigValue(value) for key, value in given.items()})
    return stack


def _seconds(operation: Callable[..., Any]) -> float:
    started = time.monotonic()
    operation(suppress_progress=True)
    return time.monotonic() - started


class Port:
    """A local Port, and what happened to it."""

    def __init__(self, endpoint: Endpoint, session: requests.Session) -> None:
        self._endpoint = endpoint
        self._session = session
        self.configuration = {
            "baseUrl": endpoint.url,
            "clientId": endpoint.client_id,
            "clientSecret": endpoint.client_secret,
        }

    def admin(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self._endpoint.admin_token}"}
        reply = self._session.request(
            method, f"{self._endpoint.url}/_local{path}", json=body, headers=headers, timeout=30
        )
        reply.raise_for_status()
        return reply.json()

    def actions(self) -> list[str]:
        """Identifiers of all actions, asked again while faults are on."""
        body = {"clientId": self._endpoint.client_id, "clientSecret": self._endpoint.client_secret}
        url = self._endpoint.url
        while True:
            token = self._session.post(f"{url}/v1/auth/access_token", json=body, timeout=30)
            headers = {"Authorization": f"Bearer {token.json()['accessToken']}"}
            reply = self._session.get(f"{url}/v1/actions", headers=headers, timeout=30)
            if reply.ok:
                return [action["identifier"] for action in reply.json()["actions"]]


@contextmanager
def _local_port(home: Path) -> Iterator[Port]:
    endpoint = control.ensure_running(home)
    try:
        with requests.Session() as session:
            session.trust_env = False
            yield Port(endpoint, session)
    finally:
        control.stop(home)


@contextmanager
def _peak_memory(command: str) -> Iterator[Callable[[], int]]:
    """Highest resident memory of a child process, in bytes, as long as the context lasts."""
    highest = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.25):
            for process in psutil.Process().children(recursive=True):
                try:
                    if command in " ".join(process.cmdline()[:2]):
                        highest = max(highest, process.memory_info().rss)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: highest
    finally:
        ended.set()
        thread.join()
