import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import requests
from tests.unit.runtime.kit import (
    API_SECRET,
    HANDLERS,
    SECRET,
    TOKEN,
    FakePort,
    envelope,
    fake_port,
    listener_config,
    poll,
    signed,
    write_bundle,
    write_secrets,
)

from port_webhook_handlers.process import ProcessIdentity, spawn_detached
from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.config import Limits
from port_webhook_handlers.runtime.control import ListenerError


@pytest.fixture
def port() -> Iterator[FakePort]:
    with fake_port() as fake:
        yield fake


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    write_bundle(tmp_path / "bundle")
    write_secrets(tmp_path)
    yield tmp_path / "listener"
    control.stop(tmp_path / "listener")


def send(url: str, route: str, body: bytes) -> requests.Response:
    return requests.post(f"{url}/webhooks/{route}", data=body, headers=signed(body), timeout=20)


def test_start_serve_and_stop(home: Path, port: FakePort) -> None:
    config = listener_config(home.parent, port.url)
    assert control.status(home) is None
    started = control.start(home, config)
    assert started.healthy
    assert started.port == int(started.url.rpartition(":")[2])
    assert control.status(home) == started

    body = envelope("greet", "r_1", text="you")
    answer = send(started.url, "greet", body)
    assert (answer.status_code, answer.json()) == (202, {"accepted": True, "runId": "r_1"})
    run = poll(lambda: port.ended("r_1"))
    assert (run["status"], run["summary"], run["link"]) == ("SUCCESS", "greeted you", "https://example.com/x")
    assert "runs_total" in requests.get(started.metrics_url or "", timeout=5).text

    assert control.start(home, config) == started, "nothing to change, so nothing is exchanged"
    assert control.stop(home)
    assert control.status(home) is None
    assert not ProcessIdentity(started.pid, started.start_time).is_alive()
    assert not control.stop(home)
    again = control.start(home, config)
    assert again.url == started.url, "a picked port is kept"
    assert again.nonce != started.nonce


def test_update_in_place_keeps_the_address_and_loses_no_request(home: Path, port: FakePort) -> None:
    folder = home.parent
    config = listener_config(folder, port.url)
    started = control.start(home, config)
    changed = write_bundle(folder / "bundle2", source=HANDLERS.replace("greeted", "welcomed"))
    answers: list[int] = []
    finished = threading.Event()

    def keep_sending() -> None:
        number = 0
        while not finished.is_set():
            number += 1
            answers.append(
                send(started.url, "_verification", envelope("_verification", f"v{number}")).status_code
            )

    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        poll(lambda: answers)
        updated = control.start(home, replace(config, bundle=folder / "bundle2"))
        count = len(answers)
        poll(lambda: len(answers) > count + 20)
    finally:
        finished.set()
        sender.join()
    assert set(answers) == {200}
    assert (updated.url, updated.pid, updated.nonce) == (started.url, started.pid, started.nonce)
    assert updated.digest == changed.digest != started.digest
    send(started.url, "greet", envelope("greet", "r_1", text="you"))
    assert poll(lambda: port.ended("r_1"))["summary"] == "welcomed you"


def test_a_handler_that_runs_ends_under_the_former_server(home: Path, port: FakePort) -> None:
    folder = home.parent
    config = listener_config(folder, port.url)
    started = control.start(home, config)
    go = folder / "go"
    send(started.url, "work", envelope("work", "r_1", text=f"until {go}"))
    poll(lambda: (folder / "marks").exists())
    control.start(home, replace(config, limits=Limits(drain_seconds=2, max_children=3)))
    go.touch()
    assert poll(lambda: port.ended("r_1"))["status"] == "SUCCESS"
    assert (folder / "marks").read_text().count("start") == 1


def test_an_unusable_bundle_leaves_the_former_server(home: Path, port: FakePort) -> None:
    folder = home.parent
    config = listener_config(folder, port.url)
    started = control.start(home, config)
    write_bundle(folder / "bundle2")
    (folder / "bundle2" / "app.py").write_text("raise SystemExit")
    with pytest.raises(ListenerError, match=r"app\.py is changed"):
        control.start(home, replace(config, bundle=folder / "bundle2"))
    assert control.status(home) == started
    assert send(started.url, "ask", envelope("ask", "s_1", text="x")).status_code == 200


def test_a_missing_secret_is_named(home: Path, port: FakePort) -> None:
    write_secrets(home.parent, secrets={})
    with pytest.raises(ListenerError, match=r"greet.*TOKEN"):
        control.start(home, listener_config(home.parent, port.url))
    assert control.status(home) is None


def test_a_taken_port_is_named(home: Path, port: FakePort) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(ListenerError, match=rf"listener\.port.*{number}"):
            control.start(home, listener_config(home.parent, port.url, port=number))
        started = control.start(home, listener_config(home.parent, port.url))
        with pytest.raises(ListenerError, match=rf"listener\.port.*{number}"):
            control.start(home, listener_config(home.parent, port.url, port=number))
        assert control.status(home) == started


def test_a_new_port_moves_the_listener(home: Path, port: FakePort) -> None:
    started = control.start(home, listener_config(home.parent, port.url))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    moved = control.start(home, listener_config(home.parent, port.url, port=number))
    assert (moved.port, moved.healthy, moved.pid) == (number, True, started.pid)


def test_concurrent_starts_make_one_listener(home: Path, port: FakePort) -> None:
    config = listener_config(home.parent, port.url)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(control.start(home, config).pid)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == 1


def test_a_killed_supervisor_is_replaced_on_the_same_port(home: Path, port: FakePort) -> None:
    config = listener_config(home.parent, port.url)
    started = control.start(home, config)
    os.kill(started.pid, signal.SIGKILL)
    poll(lambda: control.status(home) is None)
    again = control.start(home, config)
    assert (again.url, again.healthy) == (started.url, True)
    assert again.pid != started.pid


def test_stop_ends_deployed_processes(home: Path, port: FakePort) -> None:
    control.start(home, listener_config(home.parent, port.url))
    deployments = home.parent / "deployments"
    identities = []
    for place in ("a.json", "b/current.json"):
        identity = spawn_detached(["sleep", "60"], log_file=deployments / "log")
        path = deployments / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"pid": identity.pid, "start_time": identity.start_time, "version": "1"}))
        identities.append(identity)
    (deployments / "broken.json").write_text("{")
    assert control.stop(home, end_deployments=False)
    assert all(identity.is_alive() for identity in identities)
    assert not control.stop(home)
    assert not any(identity.is_alive() for identity in identities)


def test_secrets_stay_secret(home: Path, port: FakePort) -> None:
    started = control.start(home, listener_config(home.parent, port.url))
    send(started.url, "greet", envelope("greet", "r_1", text="confidential-text"))
    poll(lambda: port.ended("r_1"))
    supervisor = psutil.Process(started.pid)
    for process in [supervisor, *supervisor.children(recursive=True)]:
        shown = " ".join(process.cmdline()) + str(process.environ())
        assert not any(secret in shown for secret in (SECRET, API_SECRET, TOKEN))
    control.stop(home)
    token = home / "control.token"
    assert token.stat().st_mode & 0o077 == 0
    for path in home.rglob("*"):
        if path.is_file() and "pycache" not in path.parts:
            data = path.read_bytes()
            for secret in (SECRET, API_SECRET, TOKEN, "confidential-text"):
                assert secret.encode() not in data, path.name


def test_control_needs_the_token(home: Path, port: FakePort) -> None:
    control.start(home, listener_config(home.parent, port.url))
    number = json.loads((home / "supervisor.json").read_text())["control_port"]
    for headers in ({}, {"authorization": "Bearer wrong"}):
        for method, path in (("GET", "/status"), ("POST", "/stop"), ("POST", "/update")):
            answer = requests.request(
                method, f"http://127.0.0.1:{number}{path}", headers=headers, data="{}", timeout=5
            )
            assert answer.status_code == 404
    assert control.status(home) is not None


def test_a_dead_server_is_restarted(home: Path, port: FakePort) -> None:
    started = control.start(home, listener_config(home.parent, port.url))
    server = ProcessIdentity.of(psutil.Process(started.pid).children()[0].pid)
    os.kill(server.pid, signal.SIGKILL)
    healed = poll(
        lambda: (status := control.status(home)) and status.healthy and not server.is_alive() and status
    )
    assert (healed.pid, healed.url) == (started.pid, started.url)
