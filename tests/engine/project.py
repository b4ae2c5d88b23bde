"""A copy of this project in a folder of its own, driven through its command line on the real engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import requests
import yaml

from port_webhook_localport import control

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Pulumi.yaml", "__main__.py", "stacks", "examples")


@dataclass
class Result:
    """What a command printed, and how it ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout + self.stderr


class Project:
    """The project's files in a temporary folder; the code is the checkout's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.user_state = folder.parent / "user-state"
        folder.mkdir()
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)
        (folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PORT_", "PULUMI_"))},
            "XDG_STATE_HOME": str(self.user_state),
            "COLUMNS": "200",
        }

    @property
    def state(self) -> Path:
        return self.folder / ".state" / "local"

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Starts `port-webhook …` and does not wait for it."""
        return subprocess.Popen(
            [str(self.folder / ".venv" / "bin" / "port-webhook"), *arguments],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def cli(self, *arguments: str, check: bool = True, timeout: float = 240, **environment: str) -> Result:
        """Runs `port-webhook …` to its end."""
        process = self.start(*arguments, **environment)
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            stdout, stderr = process.communicate()
            raise AssertionError(f"{arguments} did not end:\n{stdout}{stderr}") from None
        result = Result(process.returncode, stdout, stderr)
        assert not check or result.code == 0, f"port-webhook {' '.join(arguments)}:\n{result.text}"
        return result

    def pulumi(self, *arguments: str) -> Result:
        """Runs the engine's own command line on the same stack."""
        from port_webhook_stack.driver import environment_for
        from port_webhook_stack.engine import resolve

        engine = resolve(lambda message: None)
        process = subprocess.run(
            [str(engine.executable), "--non-interactive", *arguments],
            cwd=self.folder,
            env={**self.environment, **environment_for(self.folder, "local", engine)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Result(process.returncode, process.stdout, process.stderr)

    def exported(self, name: str) -> dict[str, Any]:
        """Outputs of a resource in the stack's state."""
        state = json.loads(self.pulumi("stack", "export", "-s", "local").stdout)
        resources = state["deployment"]["resources"]
        outputs: dict[str, Any] = next(r for r in resources if r["urn"].endswith(f"::{name}"))["outputs"]
        return outputs

    def configure(self, values: Mapping[str, Any], stack: str = "local") -> None:
        """Changes keys of a stack file; None removes one."""
        path = self.folder / "stacks" / f"Pulumi.{stack}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        for key, value in values.items():
            if value is None:
                content["config"].pop(key, None)
            else:
                content["config"][key] = value
        path.write_text(yaml.safe_dump(content), encoding="utf-8")

    def endpoint(self) -> dict[str, Any]:
        """Address and credentials of the local Port."""
        with mock.patch.dict(os.environ, {"XDG_STATE_HOME": str(self.user_state)}):
            found = control.status(self.state / "localport")
        if found is None:
            raise FileNotFoundError("local Port does not run")
        return {name: getattr(found, name) for name in ("url", "client_id", "client_secret", "admin_token")}

    def port(self, method: str, path: str, **options: Any) -> Any:
        """Calls the local Port's API as an administrator of the organisation would."""
        endpoint = self.endpoint()
        with requests.Session() as session:
            session.trust_env = False
            token = session.post(
                f"{endpoint['url']}/v1/auth/access_token",
                json={"clientId": endpoint["client_id"], "clientSecret": endpoint["client_secret"]},
                timeout=10,
            ).json()["accessToken"]
            response = session.request(
                method,
                endpoint["url"] + path,
                headers={"authorization": f"Bearer {token}"},
                timeout=10,
                **options,
            )
        return response.json()

    def admin(self, method: str, path: str, **options: Any) -> Any:
        """Calls the local Port's admin routes: faults, counters, deliveries."""
        endpoint = self.endpoint()
        with requests.Session() as session:
            session.trust_env = False
            response = session.request(
                method,
                endpoint["url"] + path,
                headers={"authorization": f"Bearer {endpoint['admin_token']}"},
                timeout=10,
                **options,
            )
        assert response.ok, response.text
        return response.json()

    def processes(self) -> list[psutil.Process]:
        """Every process that works in this folder or was started for it."""
        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                if str(self.folder) in command or process.cwd().startswith(str(self.folder)):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def clean_up(self) -> None:
        """Ends what a failed test left running."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(self.processes(), timeout=5)


def changes(result: Result) -> dict[str, int]:
    """Counts of resources by what happened to them, as the command line prints them."""
    line = next(line for line in result.stdout.splitlines() if line.startswith("✓ stack"))
    return {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", line.rpartition("(")[0])}


def eventually(condition: Any, seconds: float = 20) -> None:
    """Waits until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def fresh(folder: Path) -> Iterator[Project]:
    """A project that is cleaned up afterwards."""
    project = Project(folder / "project")
    try:
        yield project
    finally:
        project.clean_up()
