from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
from tests.fixtures_localport import LocalPort, eventually
from tests.unit.localport.definitions import action
from tests.unit.localport.webhook import Webhook

from port_webhook_localport import control
from port_webhook_localport.control import Endpoint, LocalPortError
from port_webhook_localport.signature import sign


def test_nothing_runs_in_a_new_folder(tmp_path: Path) -> None:
    assert control.status(tmp_path / "absent") is None
    assert control.stop(tmp_path / "absent") is False
    assert not (tmp_path / "absent").exists()


def test_starts_once_and_keeps_port_and_credentials(own_local_port: LocalPort) -> None:
    first = own_local_port.endpoint
    assert control.ensure_running(own_local_port.home) == first
    assert control.status(own_local_port.home) == first
    assert len(first.client_secret) >= 40
    assert first.client_secret.isascii()
    assert control.stop(own_local_port.home) is True
    assert control.status(own_local_port.home) is None
    assert control.stop(own_local_port.home) is False
    again = control.ensure_running(own_local_port.home)
    assert (again.url, again.client_secret, again.admin_token) == (
        first.url,
        first.client_secret,
        first.admin_token,
    )
    assert again.pid != first.pid


def test_concurrent_starters_make_one_server(tmp_path: Path) -> None:
    home = tmp_path / "home"
    try:
        with ThreadPoolExecutor(4) as pool:
            endpoints = list(pool.map(lambda _: control.ensure_running(home), range(4)))
        assert len(set(endpoints)) == 1
        servers = [
            process.pid
            for process in psutil.process_iter(["cmdline"])
            if str(home) in (process.info["cmdline"] or [])
        ]
        assert servers == [endpoints[0].pid]
    finally:
        control.stop(home)


def test_files_are_private_and_the_command_line_holds_no_secret(own_local_port: LocalPort) -> None:
    home = own_local_port.home
    for name in ("credentials.json", "endpoint.json", "localport.log", "state.sqlite3", "state.sqlite3-wal"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    endpoint = own_local_port.endpoint
    arguments = " ".join(psutil.Process(endpoint.pid).cmdline())
    for secret in (endpoint.client_secret, endpoint.admin_token):
        assert secret not in arguments
        assert secret not in repr(endpoint)
    record = json.loads((home / "endpoint.json").read_text())
    assert {"url", "client_id", "pid", "start_time", "nonce"} == set(record)
    for file in home.iterdir():
        content = file.read_bytes()
        assert endpoint.client_secret.encode() not in content, file
        assert endpoint.admin_token.encode() not in content, file


def test_a_taken_port_is_replaced_and_the_log_says_so(own_local_port: LocalPort) -> None:
    before = own_local_port.endpoint.url
    control.stop(own_local_port.home)
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", int(before.rpartition(":")[2])))
        thief.listen()
        after = control.ensure_running(own_local_port.home).url
    assert after != before
    assert "is taken by another program" in (own_local_port.home / "localport.log").read_text()
    control.stop(own_local_port.home)
    assert control.ensure_running(own_local_port.home).url == after


def test_a_server_that_does_not_answer_is_replaced(own_local_port: LocalPort) -> None:
    hung = psutil.Process(own_local_port.endpoint.pid)
    hung.kill()
    eventually(lambda: not hung.is_running() or hung.status() == psutil.STATUS_ZOMBIE)
    assert control.status(own_local_port.home) is None
    assert control.ensure_running(own_local_port.home).pid != hung.pid


def test_another_process_with_the_recorded_id_is_left_alone(own_local_port: LocalPort) -> None:
    control.stop(own_local_port.home)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        record = {
            "url": own_local_port.url, "client_id": "a", "pid": bystander.pid, "start_time": time.time() - 1000, "nonce": "n",
        }  # fmt: skip
        (own_local_port.home / "endpoint.json").write_text(json.dumps(record))
        assert control.stop(own_local_port.home) is False
        assert bystander.poll() is None
        bystander.kill()


def test_a_start_that_fails_shows_the_log(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite3").write_text("this is not a database, and long enough to be seen as damaged")
    with pytest.raises(LocalPortError, match="file is not a database"):
        control.ensure_running(tmp_path)


def test_credentials_need_their_key(own_local_port: LocalPort) -> None:
    home = own_local_port.home
    name = json.loads((home / "credentials.json").read_text())["key"]
    key = Path(os.environ["XDG_STATE_HOME"]) / "port-webhook-stack" / f"localport-{name}.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    kept = key.read_text()
    key.unlink()
    with pytest.raises(LocalPortError, match="is missing"):
        control.status(home)
    key.write_text(kept)
    assert control.status(home) == own_local_port.endpoint
    control.remove(home)
    assert not home.exists()
    assert not key.exists()


def token_status(local_port: LocalPort, client_secret: str) -> int:
    body = {"clientId": local_port.client_id, "clientSecret": client_secret}
    return local_port.request("POST", "/v1/auth/access_token", body, headers={}).status_code


def test_a_rotation_in_steps(own_local_port: LocalPort, webhook: Webhook) -> None:
    home, old = own_local_port.home, own_local_port.client_secret
    own_local_port.api("POST", "/actions", action("x", webhook.url))

    def signed_with(secret: str) -> bool:
        own_local_port.execute("x")
        eventually(lambda: webhook.received)
        request = webhook.received.pop()
        timestamp = request.headers["x-port-timestamp"]
        return request.headers["x-port-signature"] == sign(secret, timestamp, request.body)

    new = control.rotate_secret(home, "stage").client_secret
    assert new != old
    assert control.rotate_secret(home, "stage").client_secret == new
    with pytest.raises(LocalPortError, match="activate the new one first"):
        control.rotate_secret(home, "retire")
    assert (token_status(own_local_port, old), token_status(own_local_port, new)) == (200, 200)
    assert signed_with(old)
    own_local_port.restart()
    assert own_local_port.client_secret == new
    assert signed_with(old)

    control.rotate_secret(home, "activate", 60)
    assert signed_with(new)
    assert token_status(own_local_port, old) == 200
    control.rotate_secret(home, "retire")
    assert (token_status(own_local_port, old), token_status(own_local_port, new)) == (401, 200)
    own_local_port.restart()
    assert signed_with(new)

    control.rotate_secret(home, "stage")
    control.rotate_secret(home, "activate", 0)
    eventually(lambda: token_status(own_local_port, new) == 401)
    assert control.status(home) == control.ensure_running(home)
    for file in home.iterdir():
        content = file.read_bytes()
        assert not any(secret.encode() in content for secret in (old, new)), file


def test_a_rotation_needs_a_local_port_that_runs(tmp_path: Path) -> None:
    with pytest.raises(LocalPortError, match="does not run"):
        control.rotate_secret(tmp_path, "stage")


def test_damaged_credentials_are_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text("{")
    with pytest.raises(LocalPortError, match=r"credentials\.json is damaged"):
        control.ensure_running(tmp_path)


def test_a_second_server_of_one_folder_refuses(own_local_port: LocalPort) -> None:
    command = [sys.executable, "-m", "port_webhook_localport", "--home", str(own_local_port.home)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode == 1
    assert "another local Port already serves" in second.stderr
    assert control.status(own_local_port.home) == own_local_port.endpoint


def test_state_survives_sigkill(own_local_port: LocalPort) -> None:
    own_local_port.api("POST", "/blueprints", {"identifier": "b", "title": "B", "schema": {"properties": {}}})
    token = own_local_port.request("GET", "/v1/blueprints").request.headers["Authorization"]
    os.kill(own_local_port.endpoint.pid, signal.SIGKILL)
    endpoint = control.ensure_running(own_local_port.home)
    reply = requests.get(endpoint.url + "/v1/blueprints", headers={"Authorization": token}, timeout=5)
    assert [item["identifier"] for item in reply.json()["blueprints"]] == ["b"]


def test_sigterm_ends_the_server_in_order(own_local_port: LocalPort) -> None:
    own_local_port.admin(
        "PUT", "/faults", {"api": [{"prefix": "/v1/actions", "delaySeconds": 60, "status": 500}]}
    )
    server = psutil.Process(own_local_port.endpoint.pid)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(own_local_port.request, "GET", "/v1/actions", headers={})
        eventually(lambda: "GET /v1/actions" in own_local_port.calls())
        server.terminate()
        assert waiting.result().status_code == 500
    eventually(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
    assert not (own_local_port.home / "endpoint.json").exists()
    assert not (own_local_port.home / "state.sqlite3-wal").exists()
    assert "Traceback" not in (own_local_port.home / "localport.log").read_text()


def test_control_imports_no_server(tmp_path: Path) -> None:
    code = (
        "import sys, port_webhook_localport.control; "
        "print([name for name in ('uvicorn', 'jsonschema', 'jq', 'sqlite3', 'requests') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "[]"


def test_endpoint_is_a_value(own_local_port: LocalPort) -> None:
    endpoint = own_local_port.endpoint
    assert endpoint == Endpoint(
        endpoint.url, endpoint.client_id, endpoint.client_secret, endpoint.admin_token, endpoint.pid
    )
