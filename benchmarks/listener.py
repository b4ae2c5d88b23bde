"""The listener against what one would write otherwise: rates, latency, and what a child process costs.

Server and load have a core each, the server with its whole process tree. Each figure is the median of several
rounds; systems take turns, so that a disturbance of the machine meets them all.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from benchmarks import _load as load
from benchmarks._load import Cores, Load
from port_webhook_handlers.bundle import build
from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.children import ChildPool
from port_webhook_handlers.runtime.config import Limits, ListenerConfig
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.secret_file import ApiCredentials, SecretFile, SigningSecret, StoredSecrets
from port_webhook_handlers.sdk.invoke import run_request

ROOT = Path(__file__).resolve().parent.parent
CONNECTIONS = 64
ASYNC_CONNECTIONS = 128

HANDLERS = """
from typing import Annotated

from port_webhook_handlers.sdk import Field, Inputs, Run, Success, action


class Form(Inputs):
    version: Annotated[str, Field(title="Version", pattern=r"\\d+\\.\\d+\\.\\d+")]
    replicas: Annotated[int, Field(minimum=1, maximum=20)] = 1
    region: str = "eu-west-1"
    reason: Annotated[str, Field(max_length=200)] = ""


@action("bench_sync", title="Nothing, at once", operation="CREATE", mode="sync")
def bench_sync(inputs: Form, run: Run) -> Success:
    return Success(response={"ok": True})


@action("bench_async", title="Nothing, later", operation="CREATE")
def bench_async(inputs: Form, run: Run) -> Success:
    return Success()
"""


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """Processes started within run on that core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


@contextmanager
def module(name: str, *arguments: str, core: int, folder: Path) -> Iterator[str]:
    """A server that is one of our modules; its URL."""
    port = _free_port()
    with pinned(core), (folder / f"{arguments[:1]}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", name, *arguments, str(port)], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        _wait_for(port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def listener(folder: Path, cores: Cores, port_url: str) -> Iterator[control.ListenerStatus]:
    """A listener with everything on, as it is deployed."""
    source = folder / "handlers" / "bench_handlers.py"
    source.parent.mkdir(parents=True)
    source.write_text(HANDLERS)
    store = SecretFile(folder / "secrets" / "store", folder / "keys" / "key")
    store.write(
        StoredSecrets(
            signing=(SigningSecret(load.SECRET),), api=ApiCredentials("client", "benchmark-api-secret")
        )
    )
    config = ListenerConfig(
        bundle=build([source], folder / "bundles").path,
        secrets_file=store.path,
        secrets_key_file=store.key_path,
        port_base_url=port_url,
        state_dir=folder,
        limits=Limits(max_queued=1_000_000),
    )
    home = folder / "listener"
    with pinned(cores.server):
        status = control.start(home, config)
    try:
        yield status
    finally:
        control.stop(home)


def _metric(status: control.ListenerStatus, name: str) -> float:
    with urllib.request.urlopen(str(status.metrics_url), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return float(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)))


def _fdatasync_microseconds(folder: Path) -> float:
    """Median time of an fdatasync after one page was written, on the file system of the ledger."""
    times = []
    with (folder / "probe").open("wb", buffering=0) as stream:
        for _ in range(200):
            stream.write(os.urandom(4096))
            began = time.perf_counter()
            os.fdatasync(stream.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def _listening(url: str) -> psutil.Process:
    """The process that listens there, or the one that holds the socket for its children."""
    port = int(url.rsplit(":", 1)[1])
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(item.status == "LISTEN" and item.laddr.port == port for item in process.net_connections()):
                return process
    raise RuntimeError(f"nobody listens at {url}")


def _processor_seconds(process: psutil.Process) -> float:
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        with suppress(psutil.Error):
            times = member.cpu_times()
            total += times.user + times.system
    return total


class _Bench:
    def __init__(self, folder: Path, cores: Cores, seconds: float, rounds: int) -> None:
        self.folder = folder
        self.cores = cores
        self.seconds = seconds
        self.rounds = rounds
        self._files = 0

    def put(
        self,
        url: str,
        action: str,
        *,
        rate: float,
        standard: bool = False,
        connections: int = CONNECTIONS,
        pause_ms: int = 0,
    ) -> Load:
        """Load with fresh requests, enough for the rate."""
        self._files += 1
        path = self.folder / f"requests-{self._files}"
        load.write_requests(path, action, int(rate * self.seconds) + 2 * connections, standard)
        server = _listening(url)
        before = _processor_seconds(server)
        try:
            done = load.run(
                f"{url}/webhooks/{action}",
                path,
                self.cores.load,
                connections=connections,
                seconds=self.seconds,
                pause_ms=pause_ms,
            )
        finally:
            path.unlink()
        used = _processor_seconds(server) - before
        return replace(done, processor_microseconds=used / done.requests * 1e6)


def _rates(name: str, loads: list[Load]) -> float:
    rates = [item.rate for item in loads]
    middle = statistics.median(rates)
    processor = statistics.median(item.processor_microseconds for item in loads)
    print(
        f"{name}.requests_per_second: {middle:.0f} (from {min(rates):.0f} to {max(rates):.0f} in "
        f"{len(rates)} rounds; {processor:.0f} microseconds of processor time each)",
        flush=True,
    )
    return middle


def sync(
    bench: _Bench, status: control.ListenerStatus, bare: str, fastapi: str
) -> Iterator[tuple[str, float]]:
    """Synchronous runs against both peers, and latency at the same offered load."""
    systems: dict[str, Callable[[], Load]] = {
        "listener.sync": lambda: bench.put(status.url, "bench_sync", rate=15_000),
        "fastapi_standardwebhooks": lambda: bench.put(fastapi, "bench_sync", rate=10_000, standard=True),
        "bare_asgi": lambda: bench.put(bare, "bench_sync", rate=40_000),
    }
    loads: dict[str, list[Load]] = {name: [] for name in systems}
    for put in systems.values():
        put()  # Warm.
    for _ in range(bench.rounds):
        for name, put in systems.items():
            loads[name].append(put())
    rate = {name: _rates(name, found) for name, found in loads.items()}
    yield (
        "listener.sync_vs_fastapi_standardwebhooks",
        rate["listener.sync"] / rate["fastapi_standardwebhooks"],
    )
    yield "listener.sync_vs_bare_asgi", rate["listener.sync"] / rate["bare_asgi"]

    # Half of what the slower of the two can do, in pauses of whole milliseconds.
    offered = min(rate["listener.sync"], rate["fastapi_standardwebhooks"]) / 2
    pause = max(1, round(CONNECTIONS / offered * 1000))
    ours, theirs, offers = [], [], []
    for _ in range(bench.rounds):
        one = bench.put(status.url, "bench_sync", rate=4 * offered, pause_ms=pause)
        two = bench.put(fastapi, "bench_sync", rate=4 * offered, standard=True, pause_ms=pause)
        ours.append(one.p99)
        theirs.append(two.p99)
        offers += [one.rate, two.rate]
    print(f"offered: {min(offers):.0f} to {max(offers):.0f} requests per second")
    yield "listener.p99_microseconds", statistics.median(ours)
    yield "fastapi_standardwebhooks.p99_microseconds", statistics.median(theirs)
    yield "listener.p99_vs_fastapi", statistics.median(ours) / statistics.median(theirs)


def asynchronous(
    bench: _Bench, status: control.ListenerStatus, bare: str, port: str
) -> Iterator[tuple[str, float]]:
    """Asynchronous runs: accepted durably, then run and reported, all within the measured run."""

    def ended() -> int:
        with urllib.request.urlopen(f"{port}/ended", timeout=10) as answer:
            return int(answer.read())

    bares, accepts, runs = [], [], []
    rows = _metric(status, "port_webhook_ledger_rows_total")
    commits = _metric(status, "port_webhook_ledger_commits_total")
    for _ in range(bench.rounds):
        bares.append(bench.put(bare, "bench_async", rate=40_000, connections=ASYNC_CONNECTIONS))
        before, began = ended(), time.monotonic()
        accepted = bench.put(status.url, "bench_async", rate=15_000, connections=ASYNC_CONNECTIONS)
        until = time.monotonic() + 120
        while (done := ended() - before) < accepted.requests:
            if time.monotonic() > until:
                raise RuntimeError(
                    f"{accepted.requests - done} of {accepted.requests} runs were not reported"
                )
            time.sleep(0.1)
        accepts.append(accepted)
        runs.append(accepted.requests / (time.monotonic() - began))
    bare_rate = _rates("bare_asgi.at_128_connections", bares)
    accept_rate = _rates("listener.async_accept", accepts)
    yield "listener.async_run_and_reported_per_second", statistics.median(runs)
    yield "listener.fdatasync_microseconds", _fdatasync_microseconds(bench.folder)
    commits = _metric(status, "port_webhook_ledger_commits_total") - commits
    rows = _metric(status, "port_webhook_ledger_rows_total") - rows
    if commits:
        yield "listener.rows_per_commit", rows / commits
    yield "listener.async_vs_bare_asgi", accept_rate / bare_rate


def run(small: bool) -> Iterator[tuple[str, float]]:
    """The figures; none, and a reason, where this machine cannot give them."""
    try:
        cores = load.cores()
    except load.UnavailableError as reason:
        print(f"listener: skipped, {reason}")
        return
    if missing := [name for name in ("fastapi", "standardwebhooks") if find_spec(name) is None]:
        print(f"listener: skipped, {missing[0]} is not installed; run `make bench`")
        return
    with tempfile.TemporaryDirectory(prefix="listener-bench-") as name:
        folder = Path(name)
        bench = _Bench(folder, cores, *((2.0, 3) if small else (5.0, 5)))
        with (
            module("benchmarks._port_stub", core=cores.load, folder=folder) as port,
            module("benchmarks._peers", "bare", core=cores.server, folder=folder) as bare,
            module("benchmarks._peers", "fastapi", core=cores.server, folder=folder) as fastapi,
            listener(folder, cores, port) as status,
        ):
            yield from sync(bench, status, bare, fastapi)
            yield from asynchronous(bench, status, bare, port)
        yield "handler.child_overhead_ms", child_overhead_ms(folder)


def child_overhead_ms(folder: Path) -> float:
    """What a run in a child costs beyond the call of the same code in this process: the median of 500 in turn."""
    bundle = build([folder / "handlers" / "bench_handlers.py"], folder / "bundles")
    request: dict[str, Any] = {
        "run": {"id": "r_1", "action": "bench_sync", "attempt": 1, "deadline": time.time() + 600},
        "handler": "bench_handlers:bench_sync",
        "inputs": {"version": "1.4.2"},
        "secrets": {},
        "settings": {},
    }
    line = json.dumps(request).encode() + b"\n"

    async def in_child() -> float:
        work = folder / "work"
        work.mkdir()
        pool = ChildPool(bundle.path, bundle.digest, work, Log())
        times = []
        try:
            for _ in range(550):
                began = time.perf_counter()
                await pool.run_shared(
                    "r_1", "bench_sync", request["handler"], line, 20, 1, lambda message: None
                )
                times.append(time.perf_counter() - began)
        finally:
            await pool.close()
        return statistics.median(times[50:])

    sys.path.insert(0, str(folder / "handlers"))
    try:
        here = []
        for _ in range(550):
            began = time.perf_counter()
            run_request(json.loads(line), lambda message: None)
            here.append(time.perf_counter() - began)
    finally:
        sys.path.pop(0)
    return (asyncio.run(in_child()) - statistics.median(here[50:])) * 1000
