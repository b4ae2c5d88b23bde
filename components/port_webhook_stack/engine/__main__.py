"""`python -m port_webhook_stack.engine`: makes the engine ready and names it."""

from __future__ import annotations

import sys

from port_webhook_stack.engine.resolver import EngineError, resolve


def _report(message: str) -> None:
    sys.stdout.write(f"  engine         {message}\n")
    sys.stdout.flush()


def main() -> int:
    """Returns the exit code."""
    try:
        engine = resolve(_report)
    except EngineError as error:
        sys.stderr.write(f"✗ engine         {error}\n")
        return 1
    sys.stdout.write(f"✓ engine         pulumi v{engine.version} ({engine.source}: {engine.executable})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
