"""Asynchronous runs while everything fails: `python -m tests.faults.soak [--runs 1000] [--seed 1]`.

The server is killed every few seconds, Port fails three calls in ten and is away for a while, requests are sent twice
and out of order, some with inputs that are refused, and for a while nothing can be written to the disk. Then:

- every run has a terminal status in Port;
- a run with `on_interrupt="fail"` was started at most once;
- a run with `on_interrupt="retry"` may have been started more often, but each that succeeded had exactly one effect
  at a service that takes the run's idempotency key.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import requests
from tests.faults.test_listener_faults import Bench, refuse_everything
from tests.unit.runtime.kit import FakePort, envelope, fake_port, route, signed, write_bundle, write_secrets

from port_webhook_handlers.runtime import control

SOURCE = """
import time, urllib.request
from pathlib import Path
from port_webhook_handlers.sdk import Inputs, Run, Success, action

class Form(Inputs):
    text: str = ""

def mark(run: Run) -> None:
    with open(Path(run.settings["state_dir"]) / "marks", "a") as stream:
        stream.write(f"{run.id} start {run.attempt}\\n")

@action("once", title="Once", operation="CREATE")
def once(inputs: Form, run: Run) -> Success:
    mark(run)
    run.log("working")
    time.sleep(0.05)
    run.upsert_entity("thing", run.id)
    return Success()

@action("again", title="Again", operation="CREATE", on_interrupt="retry")
def again(inputs: Form, run: Run) -> Success:
    mark(run)
    request = urllib.request.Request(run.settings["service"], b"{}", {"Idempotency-Key": run.idempotency_key})
    urllib.request.urlopen(request, timeout=10).close()
    time.sleep(0.05)
    return Success()
"""


class Service:
    """Has an effect once for each key."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.effects: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.url = ""

    def call(self, key: str) -> None:
        with self.lock:
            self.calls[key] += 1
            if self.calls[key] == 1:
                self.effects[key] += 1


@contextmanager
def service() -> Iterator[Service]:
    state = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            state.call(self.headers["idempotency-key"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class Soak:
    """The runs, and what is done to them."""

    def __init__(self, bench: Bench, port: FakePort, seed: int) -> None:
        self.bench = bench
        self.port = port
        self.random = random.Random(seed)
        self.kills = self.refused_calls = self.refused_requests = self.sent = 0
        self.stop = threading.Event()
        self.away = threading.Event()

    def fault(self, method: str, path: str) -> Any:
        """Port's faults: three calls in ten, and all while it is away."""
        if self.away.is_set() or self.random.random() < 0.3:
            self.refused_calls += 1
            return refuse_everything(method, path)
        return None

    def deliver(self, run_id: str) -> None:
        """Sends a request until it is accepted."""
        name = "again" if run_id.startswith("again") else "once"
        inputs: dict[str, Any] = {"count": "no number"} if "_bad_" in run_id else {"text": "a"}
        body = envelope(name, run_id, **inputs)
        while True:
            with suppress(requests.RequestException):
                url = f"{self.bench.status.url}/webhooks/{name}"
                self.sent += 1
                if requests.post(url, data=body, headers=signed(body), timeout=30).status_code == 202:
                    return
            self.refused_requests += 1
            time.sleep(0.1)

    def trouble(self) -> None:
        """Kills, outages and a full disk, until told to stop."""
        turn = 0
        while not self.stop.wait(2 + 2 * self.random.random()):
            turn += 1
            if turn % 5 == 2:
                self.away.set()
                self.stop.wait(5)
                self.away.clear()
            elif turn % 5 == 4:
                self._fill_disk()
            else:
                with suppress(psutil.Error, AssertionError):
                    self.bench.server().kill()
                    self.kills += 1

    def _fill_disk(self) -> None:
        with suppress(psutil.Error, AssertionError, OSError):
            pid = self.bench.server().pid
            # Every write beyond this fails, as on a full disk.
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            self.stop.wait(3)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def run(self, runs: int, seconds: float) -> list[str]:
        """Delivers the runs under trouble; returns their ids once all have ended, or raises."""
        names = [
            ("again" if number % 2 else "once") + ("_bad_" if number % 20 == 7 else "_") + str(number)
            for number in range(runs)
        ]
        deliveries = names + [name for name in names if self.random.random() < 0.3]
        self.random.shuffle(deliveries)
        self.port.fault = self.fault
        trouble = threading.Thread(target=self.trouble)
        trouble.start()
        try:
            with ThreadPoolExecutor(8) as senders:
                list(senders.map(self.deliver, deliveries))
            until = time.monotonic() + seconds
            # Half of the time under trouble, then in peace: what is left must come to its end.
            while open_runs := [name for name in names if self.port.ended(name) is None]:
                if time.monotonic() > until - seconds / 2:
                    self.stop.set()
                    self.port.fault = lambda method, path: None
                if time.monotonic() > until:
                    raise AssertionError(f"{len(open_runs)} runs have not ended: {open_runs[:5]}")
                time.sleep(0.2)
        finally:
            self.stop.set()
            trouble.join()
        return names


def soak(folder: Path, runs: int, seed: int, seconds: float = 300) -> dict[str, int]:
    """Figures by name; raises AssertionError where a promise is broken."""
    routes = (
        route("once", handler="app:once"),
        route("again", handler="app:again", on_interrupt="retry", max_attempts=50),
    )
    write_bundle(folder / "bundle", routes, SOURCE)
    write_secrets(folder)
    with service() as target, fake_port() as port:
        try:
            bench = Bench(folder, port, settings={"*": {"service": target.url}})
            work = Soak(bench, port, seed)
            names = work.run(runs, seconds)
        finally:
            control.stop(folder / "listener")
        starts = Counter(line.split()[0] for line in (folder / "marks").read_text().splitlines())
        status = {name: str((port.ended(name) or {}).get("status")) for name in names}
        repeated = [name for name in names if name.startswith("once") and starts[name] > 1]
        assert not repeated, f"started twice: {repeated[:5]}"
        lost = [name for name in names if status[name] not in ("SUCCESS", "FAILURE")]
        assert not lost, f"without terminal status: {lost[:5]}"
        refused = [name for name in names if "_bad_" in name]
        assert not [name for name in refused if status[name] != "FAILURE" or starts[name]]
        done = [name for name in names if name.startswith("again_") and status[name] == "SUCCESS"]
        wrong = [name for name in done if target.effects[name] != 1]
        assert not wrong, f"not exactly one effect: {wrong[:5]}"
        return {
            "runs": len(names),
            "requests sent": work.sent,
            "requests without a 202": work.refused_requests,
            "kills of the server": work.kills,
            "calls that Port refused": work.refused_calls,
            "runs without a terminal status": len(lost),
            "runs left IN_PROGRESS after a refusal": sum(status[name] == "None" for name in refused),
            'second starts with on_interrupt="fail"': len(repeated),
            'starts repeated with on_interrupt="retry"': sum(
                starts[name] - 1 for name in names if name.startswith("again_") and starts[name] > 1
            ),
            "of their effects, not exactly one": len(wrong),
            "SUCCESS": sum(value == "SUCCESS" for value in status.values()),
            "FAILURE, interrupted": sum(
                value == "FAILURE" and "_bad_" not in name for name, value in status.items()
            ),
            "FAILURE, refused inputs": len(refused),
        }


def main() -> int:
    """Prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        began = time.monotonic()
        for name, value in soak(Path(folder), arguments.runs, arguments.seed, 900).items():
            print(f"{name}: {value}")
        print(f"seconds: {time.monotonic() - began:.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
