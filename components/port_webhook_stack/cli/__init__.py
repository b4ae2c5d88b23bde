"""The command `port-webhook`."""

from port_webhook_stack.cli import api, approvals, dead_letters, secrets
from port_webhook_stack.cli.app import main

# Modules that add commands to those of `app`.
__all__ = ["api", "approvals", "dead_letters", "main", "secrets"]
