"""Finds or makes a Pulumi CLI: on PATH, downloaded, or built from its published Go module.

The version is pinned once, in `go.mod` beside this file. What was downloaded or built is cached for the
user, outside every clone.
"""

from port_webhook_stack.engine.resolver import Engine, EngineError, pinned_version, resolve

__all__ = ["Engine", "EngineError", "pinned_version", "resolve"]
