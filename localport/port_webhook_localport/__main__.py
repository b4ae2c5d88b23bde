"""`python -m port_webhook_localport --home DIR` serves one local Port in the foreground."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="port_webhook_localport", description="Serves a local Port.")
    parser.add_argument("--home", type=Path, required=True, help="folder of its state")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    from port_webhook_localport.home import Home, LocalPortError
    from port_webhook_localport.server import serve

    try:
        serve(Home(arguments.home.absolute()))
    except LocalPortError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
