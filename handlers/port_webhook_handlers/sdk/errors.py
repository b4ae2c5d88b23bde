"""Errors of the handler SDK."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A place in a source file.

    Attributes:
        file: path as the interpreter knows it.
        line: counted from one.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class SdkError(Exception):
    """Base of every error that the SDK raises."""


class HandlerDefinitionError(SdkError):
    """A handler or an `Inputs` class is declared in a way that cannot work.

    Attributes:
        location: where the declaration stands.
        problem: what is wrong and how to put it right, without the place.
    """

    def __init__(self, location: SourceLocation, problem: str) -> None:
        super().__init__(f"{location}: {problem}")
        self.location = location
        self.problem = problem


class InputError(SdkError):
    """An input of a run does not have the declared type.

    Attributes:
        path: the input, such as `inputs.version`.
        problem: what is wrong with its value; never the value itself, which may be secret.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path} {problem}")
        self.path = path
        self.problem = problem


class RetryableError(SdkError):
    """Raised by a handler that failed and may safely be started again.

    The listener starts it again until the handler's `max_attempts` is reached; then the run is a FAILURE.
    """


class UndeclaredSecretError(SdkError):
    """A handler asked for a secret that its decorator does not list."""


class SettingError(SdkError):
    """A setting of the stack that a handler needs is missing or unusable."""
