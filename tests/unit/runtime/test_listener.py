"""A whole listener, spoken to over HTTP."""

import functools
import json
import re
import socket
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
    TOKEN,
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

from port_webhook_handlers.port.payload import LEGACY, RUN_ID_HEADER
from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.config import Limits
from port_webhook_handlers.runtime.control import ListenerStatus

LISTENER_ROUTES = (
    *(item for item in ROUTES if item.name != "work"),
    route("work", max_attempts=3),
    route("brief", handler="app:work", timeout_seconds=0.7),
    route("single", handler="app:work", max_concurrency=1),
    route("missing", handler="app:missing"),
    route("theirs", handler="app:work", payload=LEGACY),
    route("headed", handler="app:ask", mode="sync", payload=RUN_ID_HEADER),
    route("brief_ask", handler="app:ask", mode="sync", timeout_seconds=0.7),
)


class Listener:
    def __init__(self, folder: Path, port: FakePort, status: ListenerStatus) -> None:
        self.folder = folder
        self.port = port
        self.status = status
        self.session = requests.Session()

    def send(self, name: str, run_id: str, **inputs: Any) -> requests.Response:
        body = envelope(name, run_id, **inputs)
        return self.session.post(
            f"{self.status.url}/webhooks/{name}", data=body, headers=signed(body), timeout=30
        )

    def end(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = poll(lambda: self.port.ended(run_id))
        return found

    def marks(self, run_id: str) -> list[str]:
        path = self.folder / "marks"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(run_id + " ")]

    @property
    def log(self) -> str:
        return (self.folder / "listener" / "listener.log").read_text()


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    folder = tmp_path_factory.mktemp("listener")
    write_bundle(folder / "bundle", LISTENER_ROUTES)
    write_secrets(folder)
    with fake_port() as port:
        limits = Limits(drain_seconds=1, max_children=6, retry_seconds=0.2)
        config = listener_config(folder, port.url, limits=limits, public_url="https://hooks.example.com/x")
        started = Listener(folder, port, control.start(folder / "listener", config))
        try:
            yield started
        finally:
            started.session.close()
            control.stop(folder / "listener")


def test_an_asynchronous_run(listener: Listener) -> None:
    answer = listener.send("greet", "r_greet", text="you")
    assert (answer.status_code, answer.json()) == (202, {"accepted": True, "runId": "r_greet"})
    run = listener.end("r_greet")
    assert run["status"] == "SUCCESS"
    assert run["statusLabel"] == "half way"
    assert run["link"] == "https://example.com/x"
    (log,) = listener.port.logs["r_greet"]
    assert log.startswith("hello you ")
    (entity,) = [item for item in listener.port.entities if "run_id=r_greet" in item["query"]]
    assert entity["body"]["identifier"] == "t1"
    poll(lambda: '"printed [redacted]"' in listener.log)
    assert TOKEN not in listener.log
    assert TOKEN not in json.dumps(listener.port.calls)


def test_runs_of_actions_that_exist_in_port_already(listener: Listener) -> None:
    legacy = {
        "action": "theirs",
        "context": {"entity": None, "blueprint": None, "runId": "r_theirs"},
        "payload": {"entity": None, "properties": {"text": "theirs"}},
    }
    post, url = listener.session.post, f"{listener.status.url}/webhooks/"
    body = json.dumps(legacy).encode()
    assert post(f"{url}theirs", data=body, headers=signed(body), timeout=30).status_code == 202
    assert listener.end("r_theirs")["status"] == "SUCCESS"
    action = {"identifier": "headed", "title": "Headed"}
    for name, status in (("r_headed", "IN_PROGRESS"), ("r_over", "SUCCESS")):
        listener.port.runs[name] = {"id": name, "status": status, "action": action}
    body = b'{"text":"spread"}'
    found = {
        name: post(f"{url}headed", data=body, headers={**signed(body), "RUN_ID": name}, timeout=30)
        for name in ("r_headed", "r_over", "r_theirs", "r_unknown")
    }
    assert (found["r_headed"].status_code, found["r_headed"].json()["text"]) == (200, "spread")
    for name in ("r_over", "r_theirs", "r_unknown"):
        assert (found[name].status_code, found[name].json()["error"]) == (403, "unconfirmed_run"), name
    with socket.create_connection(("127.0.0.1", listener.status.port), timeout=10) as connection:
        connection.sendall(message(body, "RUN_ID: r_headed\r\n" * 2).replace(b"/ask ", b"/headed "))
        assert b'"duplicate_header"' in connection.recv(65536)


def test_a_synchronous_run(listener: Listener) -> None:
    answer = listener.send("ask", "s_ask", text="hello")
    assert answer.status_code == 200
    assert answer.json()["text"] == "hello"
    assert set(answer.json()["environment"]) <= {
        "PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
    }  # fmt: skip
    assert listener.send("ask", "s_ask", text="hello").json() == answer.json()
    assert listener.marks("s_ask") == ["start"]
    assert listener.port.statuses("s_ask") == 0


@pytest.mark.parametrize(
    ("text", "status", "reason"),
    [
        ("fail", 422, "handler_failed"),
        ("raise", 500, "handler_error"),
        ("die", 500, "interrupted"),
    ],
)
def test_a_synchronous_failure(listener: Listener, text: str, status: int, reason: str) -> None:
    answer = listener.send("ask", f"s_{text}", text=text)
    assert (answer.status_code, answer.json()["error"]) == (status, reason)
    assert "Traceback" not in answer.text
    assert listener.send("ask", f"s_{text}", text=text).json() == answer.json()
    assert listener.marks(f"s_{text}") == ["start"]
    assert listener.port.statuses(f"s_{text}") == 0


def test_a_synchronous_run_ends_at_its_deadline(listener: Listener) -> None:
    began = time.monotonic()
    answer = listener.send("brief_ask", "s_hang", text="hang")
    assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")
    assert time.monotonic() - began < 5


def test_a_repeat_in_flight_waits(listener: Listener) -> None:
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(listener.send("ask", "s_slow", text="slow").json()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all(answer == answers[0] for answer in answers)
    assert listener.marks("s_slow") == ["start"]


def test_a_child_is_reused_by_its_route_only(listener: Listener) -> None:
    first = listener.send("ask", "s_reuse1", text="a").json()["pid"]
    assert listener.send("ask", "s_reuse2", text="a").json()["pid"] == first
    listener.send("work", "r_reuse", text="a")
    listener.end("r_reuse")
    assert listener.marks("r_reuse")[0] != f"start 1 {first}"


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_a_run_is_ended_at_its_time_limit_with_all_it_started(listener: Listener) -> None:
    listener.send("brief", "r_hang", text="hang")
    run = listener.end("r_hang")
    assert run["status"] == "FAILURE"
    assert "0.7 s" in run["summary"]
    first, second = listener.marks("r_hang")
    for pid in (int(first.split()[2]), int(second.split()[1])):
        poll(functools.partial(_is_gone, pid))


def test_a_retryable_error_is_tried_again(listener: Listener) -> None:
    listener.send("work", "r_retry", text="retry")
    assert listener.end("r_retry")["status"] == "SUCCESS"
    assert [mark.split()[:2] for mark in listener.marks("r_retry")] == [
        ["start", "1"], ["start", "2"], ["start", "3"], ["end", "3"],
    ]  # fmt: skip


def test_a_process_that_dies(listener: Listener) -> None:
    listener.send("work", "r_die", text="die")
    run = listener.end("r_die")
    assert run["status"] == "FAILURE"
    assert "code 9" in run["summary"]
    assert len(listener.marks("r_die")) == 1, "on_interrupt=fail: started at most once"
    listener.send("rework", "r_die_again", text="die")
    assert listener.end("r_die_again")["status"] == "SUCCESS"
    assert [mark.split()[1] for mark in listener.marks("r_die_again") if mark.startswith("start")] == [
        "1",
        "2",
    ]


def test_no_more_runs_at_once_than_allowed(listener: Listener) -> None:
    go = listener.folder / "go-single"
    for number in range(3):
        listener.send("single", f"r_single{number}", text=f"until {go}")
    poll(lambda: listener.marks("r_single0"))
    listener.send("work", "r_beside", text="a")
    listener.end("r_beside")
    assert listener.marks("r_single1") == [], "other routes go on, this one waits"
    go.touch()
    for number in range(3):
        assert listener.end(f"r_single{number}")["status"] == "SUCCESS"


def test_a_handler_that_cannot_be_loaded(listener: Listener) -> None:
    listener.send("missing", "r_missing", text="a")
    run = listener.end("r_missing")
    assert run["status"] == "FAILURE"
    assert "missing" in run["summary"]


def test_refused_runs_end_in_port(listener: Listener) -> None:
    answer = listener.send("work", "r_bad", text=1, other=2)
    assert (answer.status_code, answer.json()["accepted"]) == (202, False)
    run = listener.end("r_bad")
    assert run["status"] == "FAILURE"
    assert "`text`" in run["summary"]
    assert "`other`" in run["summary"]
    assert listener.send("gone", "r_gone").status_code == 404
    assert listener.end("r_gone")["status"] == "FAILURE"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("size", [256 * 1024, 256 * 1024 + 1, 1024 * 1024, 8 * 1024 * 1024])
def test_the_size_limit(listener: Listener, size: int, streamed: bool) -> None:
    frame = len(envelope("_verification", "v_00000", pad=""))
    body = envelope("_verification", f"v_{size % 89999:05}", pad="x" * (size - frame))
    assert len(body) == size
    data: Any = (body[start : start + 65536] for start in range(0, size, 65536)) if streamed else body
    try:
        answer = requests.post(
            f"{listener.status.url}/webhooks/_verification", data=data, headers=signed(body), timeout=10
        )
    except requests.ConnectionError:
        # Far too much is not read to its end.
        assert size > 2 * 1024 * 1024
        return
    assert answer.status_code == (200 if size == 256 * 1024 else 413)


def test_who_is_addressed(listener: Listener) -> None:
    for headers, status in (
        ({"host": "hooks.example.com"}, 200),
        ({"host": f"localhost:{listener.status.port}"}, 200),
        ({"host": "evil.example.com"}, 421),
        ({"host": "127.0.0.1.evil.example.com"}, 421),
        ({"origin": "https://evil.example.com"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": listener.status.url}, 200),
    ):
        answer = requests.get(f"{listener.status.url}/health", headers=headers, timeout=5)
        assert answer.status_code == status, headers


def test_health_and_head(listener: Listener) -> None:
    url = f"{listener.status.url}/health"
    assert requests.get(url, timeout=5).json() == {
        "status": "ok",
        "nonce": listener.status.nonce,
        "digest": listener.status.digest,
    }
    assert requests.head(url, timeout=5).content == b""


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"GARBAGE\r\n\r\n",
        b"POST /webhooks/work HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /webhooks/work HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"POST /webhooks/work HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /webhooks/\xff\xfe HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n",
        b"GET http://evil/health HTTP/1.1\r\nhost: evil\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
    ],
)
def test_garbage_on_the_wire(listener: Listener, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", listener.status.port), timeout=5) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b" 5" not in answer.split(b"\r\n")[0]
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert requests.get(f"{listener.status.url}/health", timeout=5).status_code == 200


def test_metrics_are_private(listener: Listener) -> None:
    assert requests.get(f"{listener.status.url}/metrics", timeout=5).status_code == 404
    text = requests.get(listener.status.metrics_url or "", timeout=5).text
    assert 'port_webhook_runs{state="queued"}' in text


def test_the_log_is_lines_of_json_without_bodies(listener: Listener) -> None:
    listener.send("work", "r_log", text="confidential-input")
    listener.end("r_log")
    lines = [json.loads(line) for line in listener.log.splitlines()]
    assert any(line.get("run") == "r_log" and line["event"] == "run ended" for line in lines)
    assert "confidential-input" not in listener.log


def converse(port: int, data: bytes, *, half_close: bool = False) -> bytes:
    """What is answered until the listener closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def message(body: bytes, *lines: str) -> bytes:
    headers = {**signed(body), "host": "localhost", "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST /webhooks/ask HTTP/1.1\r\n{head}{''.join(lines)}\r\n".encode() + body


def test_requests_that_follow_at_once_are_answered_in_order(listener: Listener) -> None:
    texts = [f"number {number}" for number in range(20)]
    messages = [message(envelope("ask", f"p_{text[7:]}", text=text)) for text in texts]
    last = message(envelope("ask", "p_last", text="last"), "connection: close\r\n")
    answer = converse(listener.status.port, b"".join(messages) + last)
    assert re.findall(rb'"text":"([^"]+)"', answer) == [text.encode() for text in [*texts, "last"]]


def test_who_has_nothing_more_to_say_is_answered(listener: Listener) -> None:
    body = envelope("ask", "h_1", text="heard")
    assert b'"text":"heard"' in converse(listener.status.port, message(body), half_close=True)


def test_a_head_without_end_is_refused(listener: Listener) -> None:
    lines = "".join(f"x-{number}: {'a' * 1000}\r\n" for number in range(99))
    assert converse(listener.status.port, message(b"{}", lines)).startswith(b"HTTP/1.1 431 ")
    many = "".join(f"x-{number}: a\r\n" for number in range(1000))
    assert converse(listener.status.port, message(b"{}", many)).startswith(b"HTTP/1.1 431 ")
    with pytest.raises(ConnectionError):
        converse(listener.status.port, b"GET /health HTTP/1.1\r\nx: " + b"a" * 64 * 1024 * 1024)


def test_a_sender_may_wait_to_be_asked_for_the_body(listener: Listener) -> None:
    body = envelope("ask", "e_1", text="asked")
    head, _, _ = message(body, "expect: 100-continue\r\n", "connection: close\r\n").partition(b"\r\n\r\n")
    with socket.create_connection(("127.0.0.1", listener.status.port), timeout=10) as connection:
        connection.sendall(head + b"\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert b'"text":"asked"' in connection.recv(65536)
