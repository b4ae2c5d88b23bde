"""A local Port for tests: import the fixtures by name, `from tests.fixtures_localport import local_port`.

One server process serves all tests of a run; each test starts from an empty state.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from port_webhook_localport import control
from port_webhook_localport.control import Endpoint

TIMEOUT_SECONDS = 10.0


class LocalPort:
    """A running local Port with an authenticated client, for arranging and asserting.

    Attributes:
        endpoint: url, client_id, client_secret, admin_token, pid.
        home: its folder.
    """

    def __init__(self, endpoint: Endpoint, home: Path) -> None:
        self.endpoint = endpoint
        self.home = home
        self._session = requests.Session()
        self._session.trust_env = False
        self._token = ""

    @property
    def url(self) -> str:
        return self.endpoint.url

    @property
    def client_id(self) -> str:
        return self.endpoint.client_id

    @property
    def client_secret(self) -> str:
        return self.endpoint.client_secret

    def request(self, method: str, path: str, json: Any = None, **options: Any) -> requests.Response:
        """Any call with the organisation's token (fetched again after 401); does not check the status."""
        response = self._send(method, path, json, options)
        if response.status_code == 401 and "headers" not in options:
            body = {"clientId": self.client_id, "clientSecret": self.client_secret}
            reply = self._session.post(self.url + "/v1/auth/access_token", json=body, timeout=TIMEOUT_SECONDS)
            reply.raise_for_status()
            self._token = reply.json()["accessToken"]
            response = self._send(method, path, json, options)
        return response

    def api(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """A call under `/v1` that must succeed; returns the parsed reply."""
        response = self.request(method, "/v1" + path, json, **options)
        assert response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()

    def error(self, method: str, path: str, json: Any = None, **options: Any) -> tuple[int, str]:
        """A call under `/v1` that must fail; returns status and error code."""
        response = self.request(method, "/v1" + path, json, **options)
        assert not response.ok, f"{method} {path}: {response.status_code} {response.text}"
        return response.status_code, response.json()["error"]

    def admin(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """A call under `/_local` that must succeed; returns the parsed reply."""
        headers = {"Authorization": f"Bearer {self.endpoint.admin_token}"}
        response = self._session.request(
            method, f"{self.url}/_local{path}", json=json, headers=headers, timeout=TIMEOUT_SECONDS, **options
        )
        assert response.ok, f"{method} /_local{path}: {response.status_code} {response.text}"
        return response.json()

    def execute(self, action: str, properties: dict[str, Any] | None = None, **body: Any) -> str:
        """Starts a run; returns its id."""
        reply = self.api("POST", f"/actions/{action}/runs", {"properties": properties or {}, **body})
        return str(reply["run"]["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        run: dict[str, Any] = self.api("GET", f"/actions/runs/{run_id}", params={"version": "v2"})["run"]
        return run

    def logs(self, run_id: str) -> list[str]:
        """Messages of a run's log, oldest first."""
        return [line["message"] for line in self.api("GET", f"/actions/runs/{run_id}/logs")["runLogs"]]

    def calls(self) -> dict[str, int]:
        """Calls so far by route, such as `POST /v1/actions`."""
        calls: dict[str, int] = self.admin("GET", "/calls")["calls"]
        return calls

    def deliveries(self, **filters: str) -> list[dict[str, Any]]:
        """Attempts so far; filters are `run` and `action`."""
        found: list[dict[str, Any]] = self.admin("GET", "/deliveries", params=filters)["deliveries"]
        return found

    def finished(self, run_id: str, timeout: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        """Waits until a run has ended; returns it."""
        final = ("SUCCESS", "FAILURE", "DECLINED")
        eventually(lambda: self.run(run_id)["status"] in final, timeout, f"run {run_id} does not end")
        return self.run(run_id)

    def restart(self) -> None:
        """Stops the server and starts it again."""
        control.stop(self.home)
        self.endpoint = control.ensure_running(self.home)

    def close(self) -> None:
        self._session.close()

    def _send(self, method: str, path: str, json: Any, options: dict[str, Any]) -> requests.Response:
        headers = options.get("headers", {"Authorization": f"Bearer {self._token}"})
        rest = {"timeout": TIMEOUT_SECONDS, **options, "headers": headers}
        return self._session.request(method, self.url + path, json=json, **rest)


def eventually(
    holds: Callable[[], object], timeout: float = TIMEOUT_SECONDS, message: str = "never held"
) -> None:
    """Polls until the condition holds, else fails the test."""
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline, message
        time.sleep(0.01)


@functools.cache
def _shared_home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="local-port-"))

    def end() -> None:
        control.stop(home)
        shutil.rmtree(home, ignore_errors=True)

    atexit.register(end)
    return home


@pytest.fixture
def local_port() -> Iterator[LocalPort]:
    """The shared local Port, empty."""
    home = _shared_home()
    running = LocalPort(control.ensure_running(home), home)
    running.admin("POST", "/reset")
    yield running
    running.close()


@pytest.fixture
def own_local_port(tmp_path: Path) -> Iterator[LocalPort]:
    """A local Port of this test alone, which may be stopped, killed or restarted."""
    home = tmp_path / "local-port"
    running = LocalPort(control.ensure_running(home), home)
    yield running
    running.close()
    control.stop(home)
