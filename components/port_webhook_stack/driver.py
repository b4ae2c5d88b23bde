"""Runs the project's program on the real engine, and recovers what an interruption left behind.

The program runs in this process through the Automation API, so that a Pulumi CLI without its Python language
host is enough; the files and the state are those that plain `pulumi` uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import yaml
from pulumi import Output
from pulumi import automation as auto
from semver import VersionInfo

from port_webhook_handlers.process import ProcessIdentity
from port_webhook_stack import importing
from port_webhook_stack.engine import Engine
from port_webhook_stack.importing import ImportedResource

LOCAL_STACK = "local"
LOCAL_PASSPHRASE = "port-webhook-local"  # noqa: S105  # published: it protects nothing

Report = Callable[[str], None]


class DriverError(Exception):
    """An operation of the engine failed; the message is what the user should read."""


@dataclass
class Outcome:
    """What an operation did.

    Attributes:
        changes: number of resources by operation (`create`, `update`, `same`, …).
        outputs: exports of the program; secret ones are left out.
        warnings: diagnostics of severity warning.
    """

    changes: Mapping[str, int] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> int:
        """Resources that are not as they were before."""
        return sum(count for operation, count in self.changes.items() if operation not in ("same", "read"))


def backend_folder(project: Path) -> Path:
    """Where the local stack's state is kept: in the clone."""
    return project / ".state" / "pulumi"


def environment_for(project: Path, stack: str, engine: Engine) -> dict[str, str]:
    """Environment variables under which plain `pulumi` works on the same stack.

    The local stack always uses the clone's own file backend and the published passphrase; any other stack uses
    whatever the user is logged in to.
    """
    values = {"PULUMI_SKIP_UPDATE_CHECK": "1"}
    if stack == LOCAL_STACK:
        backend = backend_folder(project)
        backend.mkdir(parents=True, exist_ok=True)
        values |= {
            "PULUMI_HOME": str(project / ".state" / "pulumi-home"),
            "PULUMI_BACKEND_URL": backend.as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": LOCAL_PASSPHRASE,
        }
    scripts = [str(engine.executable.parent), str(Path(sys.executable).parent)]
    values["PATH"] = os.pathsep.join([*scripts, os.environ.get("PATH", os.defpath)])
    return values


def forget_backend(project: Path) -> None:
    """Removes the clone's own backend if no stack is left in it."""
    root = project / ".state"
    if not any(root.glob("pulumi/.pulumi/stacks/*/*.json")):
        for name in ("pulumi", "pulumi-home"):
            shutil.rmtree(root / name, ignore_errors=True)
    if root.is_dir() and not any(root.iterdir()):
        root.rmdir()


class StackDriver:
    """One stack of the project.

    Raises:
        DriverError: the stack cannot be opened: no Pulumi.yaml, no such stack file, a wrong passphrase.
    """

    def __init__(self, project: Path, stack: str, engine: Engine, report: Report) -> None:
        self._project = project
        self._report = report
        self._cli = _Cli(engine)
        self._environment = environment_for(project, stack, engine)
        project_file = project / "Pulumi.yaml"
        if not project_file.is_file():
            raise DriverError(f"{project_file} is missing: run the command in the project's folder")
        name = yaml.safe_load(project_file.read_text(encoding="utf-8"))["name"]
        stack_file = project / "stacks" / f"Pulumi.{stack}.yaml"
        if not stack_file.is_file():
            known = sorted(path.name.split(".")[1] for path in (project / "stacks").glob("Pulumi.*.yaml"))
            raise DriverError(
                f"stack {stack!r} has no file {stack_file.relative_to(project)}; "
                f"known stacks: {', '.join(known) or 'none'}"
            )
        self._stack_name = stack
        self._project_name = str(name)
        self._remove_dead_locks()
        try:
            self._stack = auto.create_or_select_stack(
                stack_name=stack,
                project_name=self._project_name,
                program=self._program,
                opts=auto.LocalWorkspaceOptions(
                    work_dir=str(project), pulumi_command=self._cli, env_vars=self._environment
                ),
            )
        except auto.CommandError as error:
            raise DriverError(_first_error(str(error))) from error

    def up(self) -> Outcome:
        """Deploys the program. Raises DriverError."""
        return self._operate(
            lambda on_event: self._stack.up(on_event=on_event, suppress_progress=True), writes=True
        )

    def preview(self) -> Outcome:
        """Shows what `up` would do. Raises DriverError."""
        return self._operate(lambda on_event: self._stack.preview(on_event=on_event))

    def refresh(self) -> Outcome:
        """Reads the present state of every resource. Raises DriverError."""
        return self._operate(
            lambda on_event: self._stack.refresh(on_event=on_event, run_program=True, suppress_progress=True)
        )

    def import_resources(self, resources: Sequence[ImportedResource]) -> Outcome:
        """Takes existing objects into the state, as they are. Raises DriverError.

        An object that the program does not declare under the same name and parent is deleted by the next `up`.
        """
        kept = {
            name: Output.secret(output.value) if output.secret else output.value
            for name, output in self._stack.outputs().items()
        }
        return self._operate(
            lambda on_event: self._stack.up(
                program=importing.program(resources, kept),
                target=[resource.urn(self._stack_name, self._project_name) for resource in resources],
                on_event=on_event,
                suppress_progress=True,
            ),
            writes=True,
        )

    def path_to(self, name: str) -> tuple[tuple[str, str], ...]:
        """A resource of the state and the components around it as (type, name), outermost first.

        Raises:
            DriverError: not exactly one resource has the name.
        """
        resources = (self._stack.export_stack().deployment or {}).get("resources", [])
        by_urn = {resource["urn"]: resource for resource in resources}
        found = [urn for urn in by_urn if urn.rpartition("::")[2] == name]
        if len(found) != 1:
            count = f"{len(found)} resources" if found else "no resource"
            raise DriverError(
                f"{count} of stack {self._stack_name} has the name {name!r}; name another parent"
            )
        path = []
        urn = found[0]
        while urn in by_urn and by_urn[urn]["type"] != "pulumi:pulumi:Stack":
            path.append((str(by_urn[urn]["type"]), urn.rpartition("::")[2]))
            urn = by_urn[urn].get("parent", "")
        return tuple(reversed(path))

    def destroy(self) -> Outcome:
        """Removes every resource, then the stack's state; the stack file stays. Raises DriverError."""
        try:
            outcome = self._destroy(run_program=True)
        except DriverError as error:
            # The program only tells which credentials are in force now; one with mistakes must not keep the
            # stack alive.
            self._report(f"{str(error).splitlines()[0]}: removing what the state names, without the program")
            outcome = self._destroy(run_program=False)
        self._stack.workspace.remove_stack(self._stack_name, preserve_config=True)
        return outcome

    def _destroy(self, *, run_program: bool) -> Outcome:
        return self._operate(
            lambda on_event: self._stack.destroy(
                on_event=on_event, run_program=run_program, suppress_progress=True
            ),
            writes=True,
        )

    def outputs(self) -> dict[str, Any]:
        """Exports of the last deployment; secret ones are left out."""
        return {name: output.value for name, output in self._stack.outputs().items() if not output.secret}

    def set_secret(self, key: str, value: str, *, path: bool = False) -> None:
        """Writes an encrypted value to the stack file; it is not among any process's arguments.

        Args:
            key: the setting, with its namespace.
            value: in plain text.
            path: `key` names a place inside a setting, such as `port-webhook-stack:secrets.TOKEN`.

        Raises:
            DriverError: the stack cannot be opened, or the key is no such place.
        """
        options = ["--secret", "--stack", self._stack_name, *(["--path"] if path else [])]
        try:
            self._cli.run(
                ["config", "set", *options, "--", key], str(self._project), self._environment, stdin=value
            )
        except auto.CommandError as error:
            raise DriverError(_first_error(str(error))) from error

    def _program(self) -> None:
        # The program may import modules that lie beside it, as it may under plain `pulumi`.
        if str(self._project) not in sys.path:
            sys.path.insert(0, str(self._project))
        runpy.run_path(str(self._project / "__main__.py"), run_name="__main__")

    def _operate(
        self, operation: Callable[[Callable[[auto.EngineEvent], None]], Any], *, writes: bool = False
    ) -> Outcome:
        events = _Events(self._report)
        with self._cli.interruptible(self._report):
            try:
                if writes:
                    self._clear_pending_creates()
                result = operation(events)
            except auto.ConcurrentUpdateError as error:
                raise DriverError(
                    f"another operation works on stack {self._stack_name}: wait for it. If it died on another "
                    f"machine, remove its lock with `pulumi cancel -s {self._stack_name}`"
                ) from error
            except Exception as error:
                if events.errors:
                    raise DriverError("\n".join(events.errors)) from error
                if isinstance(error, auto.CommandError):
                    raise DriverError(_first_error(str(error))) from error
                raise
            finally:
                if self._cli.interrupted:
                    self._report("interrupted: run the command again to finish what was begun")
        summary = getattr(result, "summary", None)
        changes = getattr(summary, "resource_changes", None) or getattr(result, "change_summary", None) or {}
        outputs = getattr(result, "outputs", None) or {}
        return Outcome(
            changes={str(getattr(key, "value", key)): int(count) for key, count in changes.items()},
            outputs={name: output.value for name, output in outputs.items() if not output.secret},
            warnings=events.warnings,
        )

    def _remove_dead_locks(self) -> None:
        """After SIGKILL the lock of a file backend stays: removed only if its owner died on this very host."""
        url = self._environment.get("PULUMI_BACKEND_URL", os.environ.get("PULUMI_BACKEND_URL", ""))
        if not url.startswith("file://"):
            return
        root = Path(url.removeprefix("file://")) / ".pulumi" / "locks"
        for lock in root.glob(f"**/{self._project_name}/{self._stack_name}/*.json"):
            try:
                owner = json.loads(lock.read_text(encoding="utf-8"))
                pid, host = int(owner["pid"]), str(owner["hostname"])
            except (OSError, ValueError, KeyError):
                continue
            if host == socket.gethostname() and not _runs(pid):
                lock.unlink(missing_ok=True)
                self._report(
                    f"removed the lock of process {pid}, which was killed in the middle of an operation"
                )

    def _clear_pending_creates(self) -> None:
        deployment = dict(self._stack.export_stack().deployment or {})
        pending = [o for o in deployment.get("pending_operations") or [] if o.get("type") == "creating"]
        if not pending:
            return
        # What such an operation did create is taken over by the provider, which finds its own object in Port.
        self._report(
            f"{len(pending)} resources were being created when the last operation died: creating them anew"
        )
        deployment["pending_operations"] = [o for o in deployment["pending_operations"] if o not in pending]
        self._stack.import_stack(auto.Deployment(version=3, deployment=deployment))


class _Cli(auto.PulumiCommand):
    """The engine as the Automation API wants it, in a process group of its own.

    A terminal sends Ctrl-C to every process of the foreground group. The engine takes a second one as "stop at
    once", so it must get exactly those that the user typed.
    """

    def __init__(self, engine: Engine) -> None:
        # The base class looks for `<root>/bin/pulumi` only.
        self.command = str(engine.executable)
        self.version = VersionInfo.parse(engine.version)
        self.interrupted = False
        self._running: set[subprocess.Popen[str]] = set()

    def run(
        self,
        args: list[str],
        cwd: str,
        additional_env: Mapping[str, str],
        on_output: Callable[[str], Any] | None = None,
        on_error: Callable[[str], Any] | None = None,
        *,
        stdin: str | None = None,
    ) -> auto.CommandResult:
        environment = {**os.environ, **additional_env, "PULUMI_AUTOMATION_API": "true"}
        process = subprocess.Popen(
            [self.command, "--non-interactive", *args],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=environment,
            encoding="utf-8",
            errors="replace",
            process_group=0,
        )
        self._running.add(process)
        chunks: dict[str, list[str]] = {"stdout": [], "stderr": []}

        def consume(name: str, stream: Any, callback: Callable[[str], Any] | None) -> None:
            with stream:
                for line in stream:
                    text = line.rstrip()
                    chunks[name].append(text)
                    if callback:
                        callback(text)

        threads = [
            threading.Thread(target=consume, args=("stdout", process.stdout, on_output), daemon=True),
            threading.Thread(target=consume, args=("stderr", process.stderr, on_error), daemon=True),
        ]
        for thread in threads:
            thread.start()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin as stream:
                stream.write(stdin or "")
        try:
            code = process.wait()
            for thread in threads:
                thread.join()
        finally:
            self._running.discard(process)
        result = auto.CommandResult("\n".join(chunks["stdout"]), "\n".join(chunks["stderr"]), code)
        if code != 0:
            raise auto.errors.create_command_error(result)
        return result

    @contextlib.contextmanager
    def interruptible(self, report: Report) -> Iterator[None]:
        """Hands Ctrl-C and SIGTERM on to the engine, which then finishes what is under way."""
        self.interrupted = False
        count = 0

        def forward(number: int, frame: FrameType | None) -> None:
            nonlocal count
            count += 1
            self.interrupted = True
            report("stopping…" if count == 1 else "stopping at once…")
            for process in list(self._running):
                with contextlib.suppress(ProcessLookupError):
                    if count < 3:
                        os.kill(process.pid, signal.SIGINT)
                    else:
                        os.killpg(process.pid, signal.SIGKILL)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


class _Events:
    """Turns the engine's events into progress, errors and warnings."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def __call__(self, event: auto.EngineEvent) -> None:
        if event.resource_pre_event:
            step = event.resource_pre_event.metadata
            operation = str(getattr(step.op, "value", step.op))
            if operation not in ("same", "read"):
                self._report(f"{operation} {step.type.rsplit(':', 1)[-1]} {step.urn.rsplit('::', 1)[-1]}")
        elif event.diagnostic_event:
            message = _name_input(_plain(event.diagnostic_event.message).strip())
            if not message:
                return
            owner = (event.diagnostic_event.urn or "").rsplit("::", 1)[-1]
            line = f"{owner}: {message}" if owner and not owner.startswith("default_") else message
            if event.diagnostic_event.severity == "error":
                # The engine repeats at the end what a resource or the program has said already.
                repeated = message in ("update failed", "preview failed") or any(
                    message.endswith(said) for said in self.errors
                )
                if not repeated:
                    self.errors.append(line)
            elif event.diagnostic_event.severity == "warning":
                self.warnings.append(line)
            elif event.diagnostic_event.severity.startswith("info"):
                self._report(line)


def _plain(text: str) -> str:
    return re.sub(r"<\{%[^%]*%\}>|\x1b\[[0-9;]*m", "", text)


def _name_input(message: str) -> str:
    """Names a refused input as the user knows it; the engine would also print its value."""
    refusal = re.fullmatch(
        r"(\S+) resource '([^']*)': property (\S+) value \{.*?\} has a problem: (.*)", message, re.DOTALL
    )
    if refusal is None:
        return message
    kind, _, path, reason = refusal.groups()
    if kind.startswith("pulumi:providers:"):
        return f"{kind.removeprefix('pulumi:providers:')}:{path}: {reason}"
    return f"{path}: {reason}"


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
    return "\n".join(errors) or text


def _runs(pid: int) -> bool:
    try:
        ProcessIdentity.of(pid)
    except ProcessLookupError:
        return False
    return True
