"""Pulumi components that give Port a verified webhook backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from port_webhook_stack.catalog import BlueprintSet
    from port_webhook_stack.errors import DefinitionsError, SettingsError, StackError
    from port_webhook_stack.settings import Settings
    from port_webhook_stack.verification import Verification
    from port_webhook_stack.webhook_stack import WebhookStack

__all__ = [
    "BlueprintSet",
    "DefinitionsError",
    "Settings",
    "SettingsError",
    "StackError",
    "Verification",
    "WebhookStack",
]

_HOME = {
    "BlueprintSet": "catalog",
    "DefinitionsError": "errors",
    "Settings": "settings",
    "SettingsError": "errors",
    "StackError": "errors",
    "Verification": "verification",
    "WebhookStack": "webhook_stack",
}


def __getattr__(name: str) -> Any:
    # The command line and the plugin share this package and should not pay for importing pulumi.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
