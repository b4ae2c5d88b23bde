"""Processes are killed and Port fails; every run that was accepted still ends, and none runs twice unasked."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from tests.unit.runtime.kit import (
    ROUTES,
    FakePort,
    envelope,
    fake_port,
    listener_config,
    poll,
    route,
    signed,
    write_bundle,
    write_secrets,
)

from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.config import Limits
from port_webhook_handlers.runtime.control import ListenerStatus


class Bench:
    def __init__(self, folder: Path, port: FakePort, **changes: Any) -> None:
        self.folder = folder
        self.home = folder / "listener"
        self.port = port
        limits = Limits(drain_seconds=1, max_children=4, retry_seconds=0.1)
        self.config = listener_config(folder, port.url, limits=limits, **changes)
        self.status: ListenerStatus = self.start()

    def start(self) -> ListenerStatus:
        self.status = control.start(self.home, self.config)
        return self.status

    def server(self) -> psutil.Process:
        return poll(lambda: psutil.Process(self.status.pid).children())[0]  # type: ignore[no-any-return]

    def kill_server(self) -> None:
        server = self.server()
        server.kill()
        poll(lambda: server.pid not in [p.pid for p in psutil.Process(self.status.pid).children()])

    def send(self, name: str, run_id: str, **inputs: Any) -> requests.Response:
        body = envelope(name, run_id, **inputs)
        url = f"{self.status.url}/webhooks/{name}"
        return requests.post(url, data=body, headers=signed(body), timeout=30)

    def end(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = poll(lambda: self.port.ended(run_id), 30)
        return found

    def marks(self, run_id: str, word: str = "start") -> list[str]:
        path = self.folder / "marks"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if line.startswith(f"{run_id} {word}")]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    routes = (*ROUTES, route("single", handler="app:work", max_concurrency=1))
    write_bundle(tmp_path / "bundle", routes)
    write_secrets(tmp_path)
    with fake_port() as port:
        try:
            yield Bench(tmp_path, port)
        finally:
            control.stop(tmp_path / "listener")


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def refuse_everything(method: str, path: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    return 503, {}, {"ok": False, "error": "unavailable", "message": "down"}


def test_a_run_that_was_interrupted_fails(bench: Bench) -> None:
    go = bench.folder / "go"
    bench.send("work", "r_1", text=f"until {go}")
    started = poll(lambda: bench.marks("r_1"))
    child = int(started[0].split()[-1])
    bench.kill_server()
    run = bench.end("r_1")
    assert run["status"] == "FAILURE"
    assert "interrupted, outcome unknown" in run["summary"]
    assert is_gone(child), "what was left of it is ended"
    go.touch()
    assert bench.send("work", "r_1", text=f"until {go}").json() == {"accepted": True, "runId": "r_1"}
    assert len(bench.marks("r_1")) == 1
    assert bench.marks("r_1", "end") == []
    assert bench.port.statuses("r_1") == 1


def test_a_run_that_may_be_repeated_is_repeated(bench: Bench) -> None:
    go = bench.folder / "go"
    bench.send("rework", "r_1", text=f"until {go}")
    poll(lambda: bench.marks("r_1"))
    bench.kill_server()
    poll(lambda: len(bench.marks("r_1")) == 2)
    go.touch()
    assert bench.end("r_1")["status"] == "SUCCESS"
    assert len(bench.marks("r_1", "end")) == 1, "the first execution was ended before the second began"
    assert bench.marks("r_1", "end 2")


def test_accepted_runs_start_after_a_crash(bench: Bench) -> None:
    go = bench.folder / "go"
    bench.send("single", "r_0", text=f"until {go}")
    poll(lambda: bench.marks("r_0"))
    for number in range(1, 4):
        bench.send("single", f"r_{number}", text="a")
    bench.kill_server()
    assert bench.end("r_0")["status"] == "FAILURE"
    for number in range(1, 4):
        assert bench.end(f"r_{number}")["status"] == "SUCCESS"
        assert len(bench.marks(f"r_{number}")) == 1


def test_a_finished_run_is_reported_not_repeated(bench: Bench) -> None:
    bench.port.fault = refuse_everything
    bench.send("greet", "r_1", text="a")
    poll(lambda: "run ended" in (bench.home / "listener.log").read_text())
    bench.kill_server()
    poll(lambda: (found := control.status(bench.home)) and found.healthy)
    bench.port.fault = lambda method, path: None
    run = bench.end("r_1")
    assert (run["status"], run["summary"]) == ("SUCCESS", "greeted a")
    assert bench.port.logs["r_1"]
    assert len(bench.marks("r_1")) == 1


def test_everything_dies_and_is_started_again(bench: Bench) -> None:
    go = bench.folder / "go"
    bench.send("work", "r_1", text=f"until {go}")
    poll(lambda: bench.marks("r_1"))
    supervisor = psutil.Process(bench.status.pid)
    for process in [supervisor, *supervisor.children(recursive=True)]:
        process.kill()
    poll(lambda: control.status(bench.home) is None)
    former = bench.status
    assert bench.start().url == former.url
    assert "interrupted" in bench.end("r_1")["summary"]


def test_a_child_that_is_killed(bench: Bench) -> None:
    bench.send("work", "r_1", text="until /nonexistent")
    child = int(poll(lambda: bench.marks("r_1"))[0].split()[-1])
    os.kill(child, signal.SIGKILL)
    run = bench.end("r_1")
    assert run["status"] == "FAILURE"
    assert "SIGKILL" in run["summary"]


def test_an_interrupted_synchronous_run_is_not_repeated(bench: Bench) -> None:
    body_error: list[Exception] = []

    def ask() -> None:
        try:
            bench.send("ask", "s_1", text="hang")
        except requests.ConnectionError as error:
            body_error.append(error)

    caller = threading.Thread(target=ask)
    caller.start()
    poll(lambda: bench.marks("s_1"))
    bench.kill_server()
    caller.join()
    assert body_error
    poll(lambda: (found := control.status(bench.home)) and found.healthy)
    answer = bench.send("ask", "s_1", text="hang")
    assert (answer.status_code, answer.json()["error"]) == (500, "interrupted")
    assert len(bench.marks("s_1")) == 1
    assert bench.port.statuses("s_1") == 0


def test_stop_lets_runs_end_and_fails_the_rest(bench: Bench) -> None:
    go = bench.folder / "go"
    bench.send("single", "r_0", text="until /nonexistent")
    bench.send("work", "r_1", text=f"until {go}")
    poll(lambda: bench.marks("r_0") and bench.marks("r_1"))
    bench.send("single", "r_2", text="a")
    go.touch()
    assert control.stop(bench.home)
    assert "listener was stopped" in (bench.port.ended("r_0") or {})["summary"]
    assert (bench.port.ended("r_1") or {})["status"] == "SUCCESS"
    assert "before the run started" in (bench.port.ended("r_2") or {})["summary"]
    assert bench.marks("r_2") == []


def test_a_pause_keeps_what_waits(bench: Bench) -> None:
    bench.send("single", "r_0", text="until /nonexistent")
    poll(lambda: bench.marks("r_0"))
    bench.send("single", "r_1", text="a")
    assert control.stop(bench.home, end_deployments=False)
    assert bench.port.ended("r_1") is None
    bench.start()
    assert bench.end("r_1")["status"] == "SUCCESS"


def test_no_accepted_run_is_lost_or_doubled_by_crashes(bench: Bench) -> None:
    chance = random.Random(7)
    accepted: list[str] = []
    finished = threading.Event()

    def send_all() -> None:
        for number in range(60):
            run_id = f"r_{number}"
            for _ in range(100):
                try:
                    if bench.send("greet", run_id, text="a").status_code == 202:
                        accepted.append(run_id)
                        break
                except requests.RequestException:
                    time.sleep(0.05)
        finished.set()

    sender = threading.Thread(target=send_all)
    sender.start()
    for _ in range(4):
        finished.wait(0.3 + chance.random())
        bench.kill_server()
    sender.join()
    assert len(accepted) == 60
    for run_id in accepted:
        run = bench.end(run_id)
        assert (
            run["status"] == "SUCCESS" or "interrupted" in run["summary"] or "process ended" in run["summary"]
        )
        assert len(bench.marks(run_id)) <= 1
    assert sum(bench.end(run_id)["status"] == "SUCCESS" for run_id in accepted) > 30
