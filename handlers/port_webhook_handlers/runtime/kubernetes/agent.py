"""Our execution agent as a process in a cluster: configured by the environment, secrets in mounted files."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the agent until SIGTERM. Argument: folder of the bundle, which it does not need."""
    from port_webhook_handlers.agent.__main__ import main as run

    del sys.argv[1:]
    run()


if __name__ == "__main__":
    main()
