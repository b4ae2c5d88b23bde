"""Credentials of a task of ECS."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from port_webhook_handlers.runtime.aws.api import AwsError
from port_webhook_handlers.runtime.aws.container import ContainerCredentials

EXPIRES = 2_000_000_000.0


@pytest.fixture
def handed_out() -> Iterator[tuple[str, list[int]]]:
    """URL, and how often it was asked."""
    asked: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(1)
            data = json.dumps(
                {
                    "AccessKeyId": f"key-{len(asked)}",
                    "SecretAccessKey": "s",
                    "Token": "t",
                    "Expiration": datetime.fromtimestamp(EXPIRES, UTC).isoformat(),
                }
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/role", asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_they_are_kept_until_shortly_before_they_expire(handed_out: tuple[str, list[int]]) -> None:
    url, asked = handed_out
    now = EXPIRES - 1000
    credentials = ContainerCredentials({"AWS_CONTAINER_CREDENTIALS_FULL_URI": url}, lambda: now)
    assert [credentials().access_key, credentials().access_key] == ["key-1", "key-1"]
    now = EXPIRES - 100
    assert credentials().access_key == "key-2"
    assert len(asked) == 2


def test_an_answer_that_is_no_use_does_not_keep_the_former_ones(
    handed_out: tuple[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = handed_out
    now = EXPIRES - 1000
    credentials = ContainerCredentials({"AWS_CONTAINER_CREDENTIALS_FULL_URI": url}, lambda: now)
    assert credentials().access_key == "key-1"
    now = EXPIRES - 100
    with monkeypatch.context() as patched:
        later = datetime.fromtimestamp(EXPIRES + 3600, UTC).isoformat()
        patched.setattr(json, "load", lambda response: {"Expiration": later})
        for _ in range(2):
            with pytest.raises(AwsError, match=r"cannot be read from ECS \(KeyError\)"):
                credentials()
    assert credentials().access_key == f"key-{len(asked)}" != "key-1"


def test_an_address_that_does_not_answer_is_named_without_a_secret() -> None:
    credentials = ContainerCredentials({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/role"})
    with pytest.raises(AwsError, match="credentials of the task"):
        credentials()
    with pytest.raises(AwsError, match="no http"):
        ContainerCredentials({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "file:///etc/passwd"})()


def test_without_a_task_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with pytest.raises(AwsError, match="neither a role of the task nor AWS_ACCESS_KEY_ID is there"):
        ContainerCredentials({})()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    assert ContainerCredentials({})().access_key == "id"
