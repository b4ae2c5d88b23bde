"""The command `port-webhook`."""

from port_webhook_stack.cli.app import main

__all__ = ["main"]
