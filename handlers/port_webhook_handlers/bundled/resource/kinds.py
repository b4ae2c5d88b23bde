"""Kinds of resources: what may be created, with which parameters, and by what."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from port_webhook_handlers.bundled.options import Options, entry
from port_webhook_handlers.sdk import SettingError

SECRET: Final = "RESOURCE_SECRET"  # noqa: S105 - the name of a secret, not its value
"""The secret that provisioners get in their environment."""

_DEFAULT_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*"
_LONGEST: Final = 200
_MOST_SECONDS: Final = 850


class ProvisionError(Exception):
    """The resource was not made or not removed. The message is for the run's page."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be made or removed.

    Attributes:
        identifier: of the resource, its entity and its stack.
        parameters: checked values by name.
        secret: value of `RESOURCE_SECRET`.
        state: folder of the stack's state.
        project: folder that relative paths start from.
        report: takes one line for each step.
        timeout_seconds: until it gives up.
        again: an earlier attempt may have been interrupted in the middle.
    """

    identifier: str
    parameters: Mapping[str, str]
    secret: str
    state: Path
    project: Path
    report: Callable[[str], None]
    timeout_seconds: float
    again: bool = False

    def words(self) -> dict[str, Any]:
        """What templates may name."""
        return {"identifier": self.identifier, "project": str(self.project), **self.parameters}


class Provisioner(Protocol):
    """What makes and removes resources of one kind.

    Both methods raise ProvisionError, and SettingError as long as they have not changed anything.
    """

    def create(self, order: Order) -> dict[str, Any]:
        """Makes the resource and gives its outputs."""

    def delete(self, order: Order) -> None:
        """Removes the resource; one that is gone already is no error."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of the settings.

    Attributes:
        name: its key below `kinds`.
        patterns: by parameter, what a whole value must match.
        defaults: of the parameters that may be left out.
        provisioner: does the work.
        seconds: until it is stopped, if the handler has so long.
    """

    name: str
    patterns: Mapping[str, str]
    defaults: Mapping[str, str]
    provisioner: Provisioner
    seconds: float

    @classmethod
    def of(cls, settings: Mapping[str, Any], name: str) -> Kind:
        """The kind that settings describe.

        Raises:
            SettingError: there is none of that name, or it cannot be used.
        """
        from port_webhook_handlers.bundled.resource.command import Command
        from port_webhook_handlers.bundled.resource.program import Program

        options = entry(settings, "kinds", name, "choose one of these, or add it there")
        patterns, defaults = {}, {}
        for parameter, values in options.mapping("parameters").items():
            single = Options(values or {}, f"kinds.{name}.parameters.{parameter}")
            patterns[parameter] = _checked(single, single.text("pattern", _DEFAULT_PATTERN))
            if default := single.text("default", ""):
                defaults[parameter] = default
            single.end()
        command, program = options.part("command"), options.part("program")
        seconds = options.number("timeout_seconds", _MOST_SECONDS, lowest=1, highest=_MOST_SECONDS)
        options.end()
        if (command is None) == (program is None):
            raise options.error("command", "give either command or program")
        provisioner = Command.of(command) if command is not None else Program.of(program)  # type: ignore[arg-type]
        return cls(name, patterns, defaults, provisioner, seconds)

    def check(self, given: Mapping[str, Any]) -> dict[str, str]:
        """The parameters with defaults.

        Raises:
            SettingError: one is missing, unknown or not what its pattern allows; its value is not shown.
        """
        if unknown := sorted(set(given) - set(self.patterns)):
            known = ", ".join(sorted(self.patterns)) or "none"
            raise SettingError(
                f"parameters.{unknown[0]}: {self.name} has no such parameter (it has: {known})"
            )
        values: dict[str, str] = {}
        for name, pattern in self.patterns.items():
            value = given.get(name, self.defaults.get(name))
            if value is None:
                raise SettingError(f"parameters.{name}: is missing; {self.name} needs it")
            if not isinstance(value, str) or len(value) > _LONGEST or not re.fullmatch(pattern, value):
                raise SettingError(f"parameters.{name}: must match {pattern}, {_LONGEST} characters at most")
            values[name] = value
        return values


def _checked(options: Options, pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise options.error("pattern", f"is no regular expression: {error}") from None
    return pattern
