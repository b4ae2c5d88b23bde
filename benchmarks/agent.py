"""Figures of the execution agent on a real broker.

Every ratio is against a peer or a limit that is measured in the same run on the same broker. The API of Port is a
stub in a process of its own, and so is the destination. The broker runs with full JIT; without it TLS is slow.

- `agent.forward_vs_limit`: messages per second forwarded to a URL with 20 ms latency at concurrency 32, everything
  on, against the lesser of 32 / 0.02 s and a bare aiohttp loop.
- `agent.forward_vs_official_style`: against a loop that makes the calls of Port's own agent, one after the other.
- `agent.calls_per_message`: calls to Port's API for each forwarded message.
- `agent.p99_vs_sequential`: time from produce to delivery at 20 messages a second, against the same loop.
- `agent.direct_vs_bare_consume`: messages per second that a listener claims durably and acknowledges while it runs a
  no-op handler, against a bare consume loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SECRET = "organisation-secret-0123456789-0123456789"
LATENCY_SECONDS = 0.020
CONCURRENCY = 32
STEADY_PER_SECOND = 20
FIRST = tuple(f"r_first{number}" for number in range(20))
API_ANSWER = b'{"ok":true,"accessToken":"t","expiresIn":10800,"tokenType":"Bearer"}'


# The stub: API of Port and destination in one


class Stub:
    """Counts and answers; what arrives outside `/v1` is a delivery."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.calls = 0
        self.arrivals: dict[str, float] = {}
        self.count = 0
        self.first = self.last = 0.0
        self.held: list[Connection] | None = None


class Connection(asyncio.Protocol):
    def __init__(self, stub: Stub) -> None:
        import httptools

        self._stub = stub
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._run = ""
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-port-run-id":
            self._run = value.decode()

    def on_message_complete(self) -> None:
        stub, path, self._path = self._stub, self._path, b""
        if path.startswith(b"/v1/"):
            stub.calls += 1
            if stub.held is not None:
                stub.held.append(self)
            else:
                self._answer(API_ANSWER)
        elif path == b"/_stub":
            found = {
                "calls": stub.calls,
                "count": stub.count,
                "seconds": stub.last - stub.first,
                "arrivals": stub.arrivals,
            }
            self._answer(json.dumps(found).encode())
        elif path == b"/_hold":
            stub.held = []
            self._answer(b"{}")
        elif path == b"/_release":
            held, stub.held = stub.held or [], None
            for connection in held:
                connection._answer(API_ANSWER)
            self._answer(b"{}")
        elif path == b"/_reset":
            stub.calls, stub.count, stub.arrivals, stub.first = 0, 0, {}, 0.0
            self._answer(b"{}")
        else:
            now = time.time()
            stub.first = stub.first or now
            stub.last = now
            stub.count += 1
            stub.arrivals[self._run] = now
            if stub.latency:
                asyncio.get_running_loop().call_later(stub.latency, self._answer, b"{}")
            else:
                self._answer(b"{}")

    def _answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def serve(latency: float) -> None:
    import uvloop

    async def run() -> None:
        stub = Stub(latency)
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(stub), "127.0.0.1", 0, backlog=512
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    uvloop.run(run())


@contextmanager
def stub(latency: float = 0.0) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", str(latency)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.wait()


def ask(url: str, path: str = "/_stub") -> dict[str, Any]:
    with urlopen(url + path) as reply:
        return dict(json.load(reply))


def until(condition: Any, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


# What is measured


def forward(topic: Any, folder: Path, api: str, target: str, count: int, name: str) -> Any:
    """An agent with everything on; returns once it has delivered `count` messages."""
    from tests.agent.kit import AgentProcess

    from port_webhook_handlers.agent.config import AgentConfig, AgentLimits, KafkaSettings

    config = AgentConfig(
        source="kafka",
        name=name,
        port_base_url=api,
        organization_id=topic.organization,
        allowed_hosts=(target.removeprefix("http://"),),
        kafka=KafkaSettings(brokers=topic.brokers, username=topic.username, ca_file=topic.ca_file),
        limits=AgentLimits(per_destination=CONCURRENCY),
    )
    agent = AgentProcess(folder / name, config, "client", SECRET, KAFKA_PASSWORD=topic.password)
    if count:
        until(lambda: ask(target)["count"] >= count)
    return agent


def bare_requests(target: str, body: bytes, count: int) -> float:
    """Requests per second of aiohttp at the same concurrency, with nothing around it."""
    import aiohttp

    async def run() -> float:
        left = iter(range(count))

        async def worker(session: aiohttp.ClientSession) -> None:
            for _ in left:
                async with session.post(target, data=body) as reply:
                    await reply.read()

        connector = aiohttp.TCPConnector(limit=CONCURRENCY)
        async with aiohttp.ClientSession(connector=connector) as session:
            began = time.perf_counter()
            await asyncio.gather(*(worker(session) for _ in range(CONCURRENCY)))
            return count / (time.perf_counter() - began)

    return asyncio.run(run())


def official_style(topic: Any, api: str, target: str, count: int, group: str) -> float:
    """Messages per second of a loop that does for each what Port's own agent does, one after the other."""
    import requests
    from confluent_kafka import Consumer

    def call(method: str, path: str, body: dict[str, Any]) -> None:
        login = {"clientId": "client", "clientSecret": SECRET}
        token = requests.post(f"{api}/v1/auth/access_token", json=login, timeout=30).json()["accessToken"]
        headers = {"Authorization": f"Bearer {token}", "User-Agent": "official-style"}
        requests.request(method, api + path, json=body, headers=headers, timeout=30).raise_for_status()

    from port_webhook_handlers.port.signature import sign

    consumer = Consumer(
        {**topic.client(), "group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )
    consumer.subscribe([topic.runs])
    done, began = 0, 0.0
    try:
        while done < count:
            message = consumer.poll(1)
            if message is None or message.error():
                continue
            began = began or time.perf_counter()
            document = json.loads(message.value())
            run_id = document["context"]["runId"]
            headers = document["headers"]
            signature, timestamp = headers.pop("X-Port-Signature"), headers.pop("X-Port-Timestamp")
            data = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
            assert sign(SECRET, str(timestamp), data) == signature
            logs = f"/v1/actions/runs/{run_id}/logs"
            for text in ("received", "preparing the payload", "sending"):
                call("POST", logs, {"message": text})
            now = str(int(time.time()))
            signed = sign(SECRET, now, json.dumps(document, separators=(",", ":")).encode())
            reply = requests.request(
                "POST",
                document["payload"]["action"]["invocationMethod"]["url"],
                json=document,
                headers={"X-Port-Timestamp": now, "X-Port-Signature": signed, "x-port-run-id": run_id},
                timeout=30,
            )
            reply.raise_for_status()
            for text in ("answered", "finished"):
                call("POST", logs, {"message": text})
            consumer.commit(message=message, asynchronous=False)
            done += 1
        return done / (time.perf_counter() - began)
    finally:
        consumer.close()


def warm_up(topic: Any, target: str) -> None:
    """The first messages open connections and load code."""
    topic.send(f"{target}/ship", *FIRST)
    until(lambda: set(FIRST) <= set(ask(target)["arrivals"]))


def steady(topic: Any, target: str, prefix: str, seconds: int) -> float:
    """99th percentile of the time from a produced message to its delivery, at a rate that saturates nobody."""
    ask(target, "/_reset")
    sent: dict[str, float] = {}
    began = time.monotonic()
    total = STEADY_PER_SECOND * seconds
    for number in range(total):
        time.sleep(max(0.0, began + number / STEADY_PER_SECOND - time.monotonic()))
        run_id = f"r_{prefix}{number}"
        sent[run_id] = time.time()
        topic.send(f"{target}/ship", run_id)
    until(lambda: ask(target)["count"] >= total)
    arrivals = ask(target)["arrivals"]
    return statistics.quantiles([arrivals[run_id] - at for run_id, at in sent.items()], n=100)[98]


def bare_consume(topic: Any, count: int) -> float:
    """Messages per second of a bare consume loop."""
    from confluent_kafka import Consumer

    consumer = Consumer(
        {**topic.client(), "group.id": f"{topic.organization}.bare", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic.runs])
    done, began = 0, 0.0
    try:
        while done < count:
            messages = consumer.consume(500, 0.05)
            if messages and not began:
                began = time.perf_counter()
            done += sum(1 for message in messages if message.error() is None)
        return done / (time.perf_counter() - began)
    finally:
        consumer.close()


NOOP = """
from port_webhook_handlers.sdk import Run, Success, action

@action("noop", title="No-op", operation="CREATE")
def noop(run: Run) -> Success:
    return Success()
"""


def direct(topic: Any, folder: Path, api: str, count: int) -> float:
    """Messages per second that a listener claims durably and acknowledges; reports come after the clock."""
    from tests.unit.runtime.kit import listener_config, route, write_bundle, write_secrets

    from port_webhook_handlers.runtime import control
    from port_webhook_handlers.runtime.config import Limits
    from port_webhook_handlers.runtime.secret_file import ApiCredentials, SigningSecret

    folder.mkdir()
    write_bundle(folder / "bundle", (route("noop", inputs_schema={"type": "object"}),), NOOP)
    write_secrets(
        folder,
        signing=(SigningSecret(SECRET),),
        api=ApiCredentials("client", SECRET),
        secrets={"KAFKA_PASSWORD": topic.password},
    )
    agent = {
        "source": "kafka",
        "name": "direct",
        "organization_id": topic.organization,
        "kafka": {"brokers": topic.brokers, "username": topic.username, "ca_file": str(topic.ca_file)},
    }
    config = listener_config(folder, api, agent=agent, limits=Limits(max_queued=20 * count, drain_seconds=1))
    status = control.start(folder / "listener", config)
    try:
        assert status.metrics_url is not None

        def delivered() -> int:
            with urlopen(status.metrics_url) as reply:
                text = reply.read().decode()
            found = [line for line in text.splitlines() if 'messages_total{outcome="delivered"}' in line]
            return int(float(found[0].rpartition(" ")[2])) if found else 0

        # Reports wait for the end of the clock, as long as Port does not answer.
        ask(api, "/_hold")
        seen, first, at = 0, 0, 0.0
        while seen < count:
            seen, now = delivered(), time.perf_counter()
            if seen and not at:
                first, at = seen, now
            time.sleep(0.02)
        return (count - first) / (now - at)
    finally:
        ask(api, "/_release")
        control.stop(folder / "listener")


def run(small: bool) -> Iterator[tuple[str, float]]:
    """The figures."""
    from tests.agent.kit import Topic, topic_message

    from port_webhook_stack.agent import kafka_broker

    forwarded, peers = (1_500, 1_000) if small else (6_000, 4_000)
    looped, seconds = (40, 4) if small else (120, 12)
    consumed, claims = (20_000, 2_000) if small else (100_000, 10_000)
    os.environ["NO_PROXY"] = "*"
    folder = Path(tempfile.mkdtemp(prefix="agent-bench-"))
    home = folder / "kafka"
    try:
        kafka_broker.ensure_running(home)
        with stub() as api, stub(LATENCY_SECONDS) as slow:
            topic = Topic(home, "bench1", SECRET)
            topic.send(f"{slow}/ship", *(f"r_{number}" for number in range(forwarded)))
            agent = forward(topic, folder, api, slow, forwarded, "slow")
            rate = (forwarded - 1) / ask(slow)["seconds"]
            agent.stop()
            peer = bare_requests(f"{slow}/ship", topic_message("r_1", slow, SECRET), peers)
            note(f"forwarded {rate:.0f}/s; aiohttp {peer:.0f}/s")
            yield "agent.forward_vs_limit", rate / min(CONCURRENCY / LATENCY_SECONDS, peer)
        with stub() as api, stub() as fast:
            topic = Topic(home, "bench2", SECRET)
            topic.send(f"{fast}/ship", *(f"r_{number}" for number in range(forwarded)))
            agent = forward(topic, folder, api, fast, forwarded, "fast")
            rate = (forwarded - 1) / ask(fast)["seconds"]
            agent.stop()
            calls = ask(api)["calls"]
            official = official_style(topic, api, fast, looped, f"{topic.organization}.official")
            note(f"forwarded {rate:.0f}/s with {calls} calls; official style {official:.1f}/s")
            yield "agent.forward_vs_official_style", rate / official
            yield "agent.calls_per_message", calls / forwarded
        with stub() as api, stub() as fast:
            topic = Topic(home, "bench3", SECRET)
            agent = forward(topic, folder, api, fast, 0, "steady").until_ready()
            warm_up(topic, fast)
            ours = steady(topic, fast, "a", seconds)
            agent.stop()
            topic = Topic(home, "bench4", SECRET)
            total = STEADY_PER_SECOND * seconds + len(FIRST)
            reader = subprocess.Popen(
                [sys.executable, __file__, "--sequential", str(total), str(home), api, fast, topic.password]
            )
            warm_up(topic, fast)
            theirs = steady(topic, fast, "b", seconds)
            reader.wait(60)
            note(f"p99 {ours * 1000:.1f} ms; sequential {theirs * 1000:.1f} ms")
            yield "agent.p99_vs_sequential", ours / theirs
        with stub() as api:
            topic = Topic(home, "bench5", SECRET)
            runs = (f"r_{number}" for number in range(consumed))
            topic.send("http://nowhere.invalid", *runs, action="noop", inputs={})
            bare = bare_consume(topic, consumed)
            claimed = direct(topic, folder / "direct", api, claims)
            note(f"claimed {claimed:.0f}/s; bare consume {bare:.0f}/s")
            yield "agent.direct_vs_bare_consume", claimed / bare
    finally:
        kafka_broker.remove(home)
        shutil.rmtree(folder, ignore_errors=True)


def note(text: str) -> None:
    print(f"# {text}", file=sys.stderr, flush=True)


def sequential(count: int, home: Path, api: str, target: str, password: str) -> None:
    from types import SimpleNamespace

    from port_webhook_stack.agent import kafka_broker

    endpoint = kafka_broker.status(home)
    assert endpoint is not None
    client = {
        "bootstrap.servers": endpoint.brokers,
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "user-bench4",
        "sasl.password": password,
        "ssl.ca.location": str(endpoint.ca_file),
    }
    topic = SimpleNamespace(client=lambda: client, runs="bench4.runs", organization="bench4")
    official_style(topic, api, target, count, "bench4.official")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", type=float)
    parser.add_argument("--sequential", nargs=5)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        serve(arguments.serve)
    elif arguments.sequential:
        count, home, *rest = arguments.sequential
        sequential(int(count), Path(home), *rest)
