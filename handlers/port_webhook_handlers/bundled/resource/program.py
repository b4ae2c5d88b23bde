"""Makes resources with a Pulumi program: a folder, and one stack for each resource.

The program is Python and runs in the handler's own process, so that a Pulumi CLI without its language host is
enough; the CLI must be on PATH, and the package `pulumi` installed where the listener runs: it is what the extra
`programs` of this distribution brings. A program that takes too long is interrupted as by Ctrl-C, and killed if that
does not help; its lock is removed then, because nobody holds it any more.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from port_webhook_handlers.bundled.options import Options, fill
from port_webhook_handlers.bundled.resource.kinds import Order, ProvisionError
from port_webhook_handlers.process import runs
from port_webhook_handlers.sdk import SettingError

if TYPE_CHECKING:
    from pulumi import automation

# Between the interruption and the end; together with the handler's reserve it must fit into the handler's time.
_GRACE_SECONDS = 8.0
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Program:
    """A folder with `Pulumi.yaml` and `__main__.py`.

    Attributes:
        folder: relative to the project.
        stack: template of the stack's name.
        config: templates of configuration values.
        backend: URL of the state's backend; None: files in the state of the listener's stack.
        environment: variables for providers.
        secret_variable: name under which CLI and providers get the secret; by default it is the passphrase.
    """

    folder: str
    stack: str
    config: Mapping[str, str]
    backend: str | None
    environment: Mapping[str, str]
    secret_variable: str

    @classmethod
    def of(cls, options: Options) -> Program:
        """From the settings below `program`."""
        found = cls(
            folder=options.text("folder"),
            stack=options.text("stack", "{identifier}"),
            config=options.words("config"),
            backend=options.text("backend", "") or None,
            environment=options.words("environment"),
            secret_variable=options.text("secret_variable", "PULUMI_CONFIG_PASSPHRASE"),
        )
        options.end()
        return found

    def create(self, order: Order) -> dict[str, Any]:
        """See `Provisioner.create`."""
        auto = _automation()
        words = order.words()
        config = {
            key: auto.ConfigValue(fill(template, words, f"program.config.{key}"))
            for key, template in self.config.items()
        }
        with _Limit(order) as limit:
            try:
                stack = _opened(auto, auto.create_stack, self._where(order))
                for key, value in config.items():
                    stack.set_config(key, value)
                outputs = stack.up(on_output=_lines(order)).outputs
            except auto.StackAlreadyExistsError:
                raise ProvisionError(
                    f"stack {self._name(order)} exists already; choose another identifier"
                ) from None
            except auto.CommandError as error:
                raise limit.failure(error, lambda: auto.select_stack(**self._where(order)).cancel()) from None
        # Secret outputs stay in the stack.
        return {name: output.value for name, output in outputs.items() if not output.secret}

    def delete(self, order: Order) -> None:
        """See `Provisioner.delete`."""
        auto = _automation()
        with _Limit(order) as limit:
            try:
                stack = _opened(auto, auto.select_stack, self._where(order))
                if order.again:
                    # The lock of the attempt that was interrupted.
                    stack.cancel()
                stack.destroy(on_output=_lines(order))
                stack.workspace.remove_stack(stack.name)
            except auto.StackNotFoundError:
                order.report(f"stack {self._name(order)} is gone already")
            except auto.CommandError as error:
                raise limit.failure(error, lambda: auto.select_stack(**self._where(order)).cancel()) from None

    def _name(self, order: Order) -> str:
        return fill(self.stack, order.words(), "program.stack")

    def _where(self, order: Order) -> dict[str, Any]:
        auto = _automation()
        folder = order.project / self.folder
        main = folder / "__main__.py"
        if not main.is_file() or not (folder / "Pulumi.yaml").is_file():
            raise SettingError(
                f"program.folder: {self.folder} holds no Pulumi.yaml and __main__.py; correct it"
            )
        home = order.state / "resources"
        backend = home / "state"
        backend.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = auto.ProjectSettings(name=_project_name(folder / "Pulumi.yaml"), runtime="python")
        # Stack files of a resource belong to its state, not into the program's folder.
        work = home / "work" / order.identifier
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        return {
            "stack_name": self._name(order),
            "project_name": settings.name,
            "program": lambda: _execute(folder, main),
            "opts": auto.LocalWorkspaceOptions(
                work_dir=str(work),
                project_settings=settings,
                env_vars={
                    "PULUMI_BACKEND_URL": self.backend or backend.as_uri(),
                    "PULUMI_HOME": os.environ.get("PULUMI_HOME", str(home / "home")),
                    "PULUMI_SKIP_UPDATE_CHECK": "1",
                    **self.environment,
                    self.secret_variable: order.secret,
                },
            ),
        }


class _Limit:
    """Interrupts the CLI when its time is over."""

    def __init__(self, order: Order) -> None:
        self._seconds = order.timeout_seconds
        self._late = False
        self._killed = False
        self._timer = threading.Timer(self._seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Limit:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()

    def failure(self, error: automation.CommandError, unlock: Callable[[], object]) -> ProvisionError:
        """What the end of the CLI means.

        Args:
            error: how it ended.
            unlock: removes the lock of a CLI that was killed.
        """
        # It has to be over before anybody may take the lock away.
        self.__exit__()
        if not self._late:
            return ProvisionError(_first_error(error))
        if self._killed:
            with contextlib.suppress(type(error)):
                unlock()
        return ProvisionError(f"the program did not end within {self._seconds:.3g} s and was stopped")

    def _end(self) -> None:
        import psutil

        self._late = True
        commands = [found for found in psutil.Process().children() if found.name().startswith("pulumi")]
        family = [member for command in commands for member in [command, *command.children(recursive=True)]]
        for command in commands:
            with contextlib.suppress(psutil.NoSuchProcess):
                command.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _GRACE_SECONDS
        # Only looked at: how it ended is for those who started it.
        while (left := [command for command in commands if runs(command)]) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._killed = bool(left)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()


def _automation() -> Any:
    try:
        from pulumi import automation
    except ImportError:
        raise ProvisionError(
            "the package pulumi is not installed where the listener runs; install port-webhook-handlers[programs], "
            "or use a command"
        ) from None
    return automation


def _opened(auto: Any, how: Callable[..., Any], where: Mapping[str, Any]) -> Any:
    """The stack; nothing was made yet if there is no CLI for it."""
    try:
        return how(**where)
    except FileNotFoundError as error:
        if error.filename != "pulumi":
            raise
        raise SettingError(
            "pulumi is not on PATH where the listener runs; install the Pulumi CLI there"
        ) from None
    except auto.InvalidVersionError as error:
        raise SettingError(f"pulumi on PATH cannot be used: {error}; install a newer one") from None


def _project_name(file: Path) -> str:
    for line in file.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key == "name" and value.strip():
            return value.strip().strip("\"'")
    raise SettingError(f"program.folder: {file.name} in {file.parent.name} has no name; add one")


def _execute(folder: Path, main: Path) -> None:
    sys.path.insert(0, str(folder))
    try:
        runpy.run_path(str(main), run_name="__main__")
    finally:
        sys.path.remove(str(folder))


def _lines(order: Order) -> Any:
    def report(text: str) -> None:
        if text.strip():
            order.report(text.rstrip())

    return report


def _first_error(error: automation.CommandError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marked = [line for line in lines if "error:" in line.lower()]
    return (marked or lines or ["pulumi failed"])[-1 if not marked else 0][:1000]
