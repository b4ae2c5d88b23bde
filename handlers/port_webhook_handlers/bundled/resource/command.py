"""Makes resources with a command: an argument list that is filled in, never a shell.

A value cannot become an option: an argument that starts with a placeholder must not start with a dash once it is
filled in. What the command prints to standard error becomes the run's log; the last line of its standard output may
be a JSON object, the outputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from port_webhook_handlers.bundled.options import Options, fill
from port_webhook_handlers.bundled.resource.kinds import SECRET, Order, ProvisionError
from port_webhook_handlers.sdk import SettingError

_GRACE_SECONDS = 5.0
_LOG_LINES = 200


@dataclass(frozen=True, slots=True)
class Command:
    """A command template.

    Attributes:
        making, removing: program and arguments, with `{identifier}`, `{project}` and parameters.
        environment: variables beside PATH and the secret; not filled in.
        secret_variable: name under which the command gets the secret.
    """

    making: tuple[str, ...]
    removing: tuple[str, ...]
    environment: Mapping[str, str]
    secret_variable: str

    @classmethod
    def of(cls, options: Options) -> Command:
        """From the settings below `command`."""
        found = cls(
            making=options.texts("create"),
            removing=options.texts("delete"),
            environment=options.words("environment"),
            secret_variable=options.text("secret_variable", SECRET),
        )
        options.end()
        return found

    def create(self, order: Order) -> dict[str, Any]:
        """See `Provisioner.create`."""
        lines = self._run(self.making, order, "create").strip().splitlines()
        try:
            outputs = json.loads(lines[-1]) if lines else {}
        except ValueError:
            return {}
        return outputs if isinstance(outputs, dict) else {}

    def delete(self, order: Order) -> None:
        """See `Provisioner.delete`."""
        self._run(self.removing, order, "delete")

    def _run(self, template: tuple[str, ...], order: Order, key: str) -> str:
        arguments = [_argument(part, order.words(), f"command.{key}") for part in template]
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ") if name in os.environ}
        try:
            process = subprocess.Popen(
                arguments,
                cwd=order.project,
                env={**kept, **self.environment, self.secret_variable: order.secret},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise ProvisionError(f"{arguments[0]} cannot be started: {error.strerror}") from error
        last: list[str] = []
        assert process.stderr is not None  # noqa: S101 - for the type checker
        reader = threading.Thread(target=_relay, args=(process.stderr, order, last), daemon=True)
        reader.start()
        with process:
            late = threading.Event()
            timer = threading.Timer(order.timeout_seconds, _end, (process, late))
            timer.start()
            try:
                assert process.stdout is not None  # noqa: S101 - for the type checker
                output = process.stdout.read()
                code = process.wait()
            finally:
                timer.cancel()
                timer.join()
                reader.join(_GRACE_SECONDS)
        if late.is_set():
            raise ProvisionError(
                f"{arguments[0]} did not end within {order.timeout_seconds:.3g} s and was stopped"
            )
        if code:
            said = f": {last[-1]}" if last else ""
            raise ProvisionError(f"{arguments[0]} ended with exit code {code}{said}")
        return output


def _argument(template: str, words: Mapping[str, Any], where: str) -> str:
    value = fill(template, words, where)
    if (
        template.startswith("{")
        and value.startswith(("-", "@", "/"))
        and not template.startswith("{project}")
    ):
        raise SettingError(
            f"{where}: a value that starts an argument must not start with -, @ or /; "
            "narrow the parameter's pattern, or write --option={name}"
        )
    if any(ord(character) < 32 for character in value):
        raise SettingError(
            f"{where}: a value must hold no control characters; narrow the parameter's pattern"
        )
    return value


def _relay(stream: IO[str], order: Order, last: list[str]) -> None:
    for number, line in enumerate(stream):
        if text := line.rstrip():
            last[:] = [text[:500]]
            if number < _LOG_LINES:
                order.report(text)


def _end(process: subprocess.Popen[str], late: threading.Event) -> None:
    """Ends the command with whatever it has started."""
    late.set()
    from port_webhook_handlers.process import ProcessIdentity

    try:
        ProcessIdentity.of(process.pid).terminate(_GRACE_SECONDS)
    except (ProcessLookupError, ImportError):
        process.kill()
