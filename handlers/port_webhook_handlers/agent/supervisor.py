"""Keeps an agent of this machine running: `python -m port_webhook_handlers.agent.supervisor HOME`."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from port_webhook_handlers.agent import config as configuration
from port_webhook_handlers.agent.control import Places
from port_webhook_handlers.runtime.logs import Log

_BACKOFF_SECONDS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 15.0)
_STEADY_SECONDS: Final = 10.0
_CONFIGURATION_CODE: Final = 2


def main() -> None:
    """Restarts the agent whenever it ends, until SIGTERM."""
    places = Places(Path(sys.argv[1]))
    log = Log(path=places.log)
    seconds = configuration.parse(places.config.read_bytes()).limits.drain_seconds + 25
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    failures = 0
    while not ending.is_set():
        places.health_port.unlink(missing_ok=True)
        began = time.monotonic()
        with subprocess.Popen(
            [
                *(sys.executable, "-I", "-m", "port_webhook_handlers.agent"),
                *("--config", str(places.config), "--announce", str(places.health_port), "--follow-input"),
            ],
            # Its end tells the agent that nobody looks after it any more.
            stdin=subprocess.PIPE,
        ) as process:
            while process.poll() is None and not ending.wait(0.1):
                pass
            if ending.is_set():
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    process.kill()
                return
        log("agent process ended", code=process.returncode)
        if process.returncode == _CONFIGURATION_CODE and not failures:
            # It says why in the log; trying again at once would say it again.
            failures = len(_BACKOFF_SECONDS) - 1
        failures = 0 if time.monotonic() - began > _STEADY_SECONDS else failures
        ending.wait(_BACKOFF_SECONDS[min(failures, len(_BACKOFF_SECONDS) - 1)])
        failures += 1


if __name__ == "__main__":
    main()
