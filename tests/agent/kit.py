"""What the agent's tests need: agents as processes, a destination, and signed messages as Port makes them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
from confluent_kafka import ConsumerGroupTopicPartitions, Producer

from port_webhook_handlers.agent.config import AgentConfig
from port_webhook_handlers.runtime.secret_file import ApiCredentials, SecretFile, SigningSecret, StoredSecrets
from port_webhook_stack.agent import kafka_broker


def poll(
    condition: Callable[[], Any], seconds: float = 20, message: str = "it did not happen in time"
) -> Any:
    """The first true value of the condition."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, message
        time.sleep(0.02)
    return value


@dataclass
class Received:
    """One request that a destination got."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Destination:
    """A real HTTP server; `answer` decides what each request gets, `headers` are sent with all replies."""

    url: str = ""
    received: list[Received] = field(default_factory=list)
    answer: Callable[[Received], tuple[int, bytes]] = lambda request: (200, b"")
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def run_ids(self) -> list[str]:
        return [request.headers["x-port-run-id"] for request in list(self.received)]


@contextmanager
def destination() -> Iterator[Destination]:
    target = Destination()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", "0")))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Received(self.command, self.path, headers, body)
            target.received.append(request)
            status, data = target.answer(request)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("location", f"{target.url}/elsewhere")
            for name, value in {**target.headers, "content-length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            return

    for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
        setattr(Handler, f"do_{method}", Handler.answer)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, request: Any, client_address: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    target.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield target
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def signature(secret: str, timestamp: str, data: bytes) -> str:
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + data, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def is_signed(request: Received, secret: str) -> bool:
    """Whether the bytes as they arrived carry Port's signature."""
    expected = signature(secret, request.headers["x-port-timestamp"], request.body)
    return hmac.compare_digest(expected, request.headers["x-port-signature"])


def topic_message(
    run_id: str, url: str, secret: str, *, action: str = "ship", synchronized: bool = False, **changes: Any
) -> bytes:
    """A message of the topic as Port writes it."""
    body: dict[str, Any] = {
        "port_context": {"action": action, "runId": run_id},
        "inputs": {"text": "Zoë ✓"},
        "action": action,
        "resourceType": "run",
        "status": "TRIGGERED",
        "context": {"entity": None, "blueprint": None, "runId": run_id},
        "payload": {
            "action": {
                "invocationMethod": {
                    "type": "WEBHOOK",
                    "agent": True,
                    "synchronized": synchronized,
                    "method": "POST",
                    "url": url,
                    "headers": {"x-custom": "yes"},
                }
            }
        },
        "headers": {"x-custom": "yes"},
        **changes,
    }
    timestamp = int(time.time())
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    body["headers"] = {
        **body["headers"],
        "X-Port-Signature": signature(secret, str(timestamp), data),
        "X-Port-Timestamp": timestamp,
    }
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class AgentProcess:
    """An agent in a process of its own."""

    def __init__(
        self,
        folder: Path,
        config: AgentConfig,
        client_id: str,
        client_secret: str,
        environment: dict[str, str] | None = None,
        **secrets: str,
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log_file = folder / "agent.log"
        store = SecretFile(folder / "store", folder / "key")
        store.write(
            StoredSecrets(
                (SigningSecret(client_secret),),
                ApiCredentials(client_id, client_secret),
                (client_secret,),
                secrets,
            )
        )
        config_file = folder / "agent.json"
        body = {**config.to_json(), "secrets_file": str(store.path), "secrets_key_file": str(store.key_path)}
        config_file.write_text(json.dumps(body))
        self._announced = folder / "health-port"
        self._announced.unlink(missing_ok=True)
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "port_webhook_handlers.agent"),
                    *("--config", str(config_file), "--announce", str(self._announced)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **{name: value for name, value in os.environ.items() if "PROXY" not in name.upper()},
                    **(environment or {}),
                },
            )

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def _get(self, path: str) -> requests.Response:
        with requests.Session() as session:
            session.trust_env = False
            return session.get(f"http://127.0.0.1:{self._announced.read_text()}{path}", timeout=5)

    def ready(self) -> dict[str, Any]:
        """The content of `/health/ready`; waits until it can be asked."""
        poll(lambda: self._announced.exists() or self.process.poll() is not None, message=self.log)
        assert self.process.poll() is None, self.log
        return dict(self._get("/health/ready").json())

    def metrics(self) -> str:
        return self._get("/metrics").text

    def until_ready(self, seconds: float = 30) -> AgentProcess:
        poll(lambda: self.ready()["ready"], seconds, f"the agent does not get ready: {self.log}")
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ends it in order; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


class Topic:
    """The topics of an organisation on a real broker, a user of it, and a producer that writes as Port does."""

    def __init__(self, home: Path, organization: str, secret: str, partitions: int = 3) -> None:
        self.home = home
        self.organization = organization
        self.secret = secret
        self.username = f"user-{organization}"
        self.password = kafka_broker.new_password()
        endpoint = kafka_broker.ensure_running(home)
        self.brokers, self.ca_file = endpoint.brokers, endpoint.ca_file
        self.runs = f"{organization}.runs"
        kafka_broker.add_topics(home, [self.runs, f"{organization}.change.log"], partitions=partitions)
        kafka_broker.add_user(home, self.username, self.password, prefix=f"{organization}.")
        self._admin = kafka_broker.admin(home)
        self._producer = Producer({**self.client(), "linger.ms": 2, "enable.idempotence": True})

    def client(self) -> dict[str, Any]:
        """Configuration of a client."""
        return {
            "bootstrap.servers": self.brokers,
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": self.username,
            "sasl.password": self.password,
            "ssl.ca.location": str(self.ca_file),
            "log_level": 0,
        }

    def write(self, *values: bytes, topic: str | None = None, partition: int | None = None) -> None:
        """Writes messages and waits until the broker has them."""
        for value in values:
            options = {} if partition is None else {"partition": partition}
            while True:
                try:
                    self._producer.produce(topic or self.runs, value, **options)
                    break
                except BufferError:
                    self._producer.poll(0.1)
            self._producer.poll(0)
        assert self._producer.flush(30) == 0

    def send(self, url: str, *run_ids: str, **changes: Any) -> None:
        """Writes a signed message for each run."""
        self.write(*(topic_message(run_id, url, self.secret, **changes) for run_id in run_ids))

    def committed(self, group: str) -> int:
        """Sum of the committed offsets of a group over all partitions of the topic of runs."""
        request = ConsumerGroupTopicPartitions(group)
        [future] = self._admin.list_consumer_group_offsets([request]).values()
        places = future.result(20).topic_partitions
        return sum(place.offset for place in places if place.topic == self.runs and place.offset > 0)

    def close(self) -> None:
        self._producer.flush(5)
