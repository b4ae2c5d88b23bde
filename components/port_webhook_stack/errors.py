"""Errors that a user of the program sees: one clean message, no traceback."""

from __future__ import annotations

import pulumi


class StackError(pulumi.RunError):
    """What stops a deployment before anything is created; its message names the remedy."""


class SettingsError(StackError):
    """A value of the stack file is missing, unknown or wrong; the message names the key."""

    def __init__(self, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{key}: {problem}. {remedy}")
        self.key = key


class DefinitionsError(StackError):
    """Definitions of actions or automations that lint refuses."""
