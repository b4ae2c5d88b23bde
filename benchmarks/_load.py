"""The load generator: wrk on a core of its own, with requests that were signed ahead."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECRET = "benchmark-secret-0123456789-0123456789"
_SCRIPT = Path(__file__).with_name("_load.lua")


class UnavailableError(Exception):
    """This machine cannot run the benchmark; the message says why."""


@dataclass(frozen=True)
class Cores:
    """The core of the server with its whole process tree, and that of the load generator."""

    server: int
    load: int


@dataclass(frozen=True)
class Load:
    """What a load brought.

    Attributes:
        requests: answered.
        seconds: how long it took.
        p50, p99: latency in microseconds.
        processor_microseconds: processor time of the server's process tree for each request.
    """

    requests: int
    seconds: float
    p50: int
    p99: int
    processor_microseconds: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


def cores() -> Cores:
    """Two cores of this machine.

    Raises:
        UnavailableError: there is only one, or wrk is missing.
    """
    if shutil.which("wrk") is None:
        raise UnavailableError("wrk is not installed; on Debian and Ubuntu: apt-get install wrk")
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        raise UnavailableError("the server and the load need a core each")
    first, second = sorted(os.sched_getaffinity(0))[:2]
    return Cores(first, second)


def body(action: str, run_id: str) -> bytes:
    """An envelope as Port sends it for an action on a service, about 1 KiB."""
    content = {
        "port_context": {"action": action, "runId": run_id},
        "inputs": {"version": "1.4.2", "replicas": 2, "region": "eu-west-1", "reason": "a benchmark run"},
        "entity": {
            "identifier": "cart",
            "title": "Cart",
            "blueprint": "service",
            "team": ["payments"],
            "icon": "Service",
            "properties": {"language": "Python", "tier": 1, "url": "https://example.com/cart"},
            "relations": {"system": "shop", "owner": None},
            "createdAt": "2026-01-28T09:14:11.000Z",
            "updatedAt": "2026-01-28T09:14:11.000Z",
        },
        "trigger": {
            "by": {
                "user": {"email": "dev@example.com", "firstName": "D", "lastName": "E"},
                "userId": "auth0|65f0a1b2c3d4e5f60718293a",
                "orgId": "org_Ab3dEf6hIj9kLm2n",
            },
            "origin": "UI",
            "at": "2026-01-28T09:14:11.000Z",
            "operation": "DAY-2",
        },
    }
    return json.dumps(content, separators=(",", ":")).encode()


def port_headers(_: str, content: bytes) -> dict[str, str]:
    """Headers of Port's signature."""
    stamp = str(int(time.time()))
    return {
        "x-port-timestamp": stamp,
        "x-port-signature": _signature(SECRET.encode(), f"{stamp}.", content),
    }


def standard_headers(run_id: str, content: bytes) -> dict[str, str]:
    """Headers of Standard Webhooks."""
    stamp = str(int(time.time()))
    return {
        "webhook-id": run_id,
        "webhook-timestamp": stamp,
        "webhook-signature": _signature(SECRET.encode(), f"{run_id}.{stamp}.", content),
    }


def write_requests(path: Path, action: str, count: int, standard: bool = False) -> None:
    """Signs requests with run ids that no other file of this process has."""
    headers = standard_headers if standard else port_headers
    with path.open("wb") as stream:
        for run_id in _run_ids(count):
            content = body(action, run_id)
            lines = [f"{name}: {value}".encode() for name, value in headers(run_id, content).items()]
            stream.write(b"\t".join([*lines, content]) + b"\n")


def run(url: str, requests: Path, core: int, *, connections: int, seconds: float, pause_ms: int = 0) -> Load:
    """Puts load on a URL.

    Raises:
        RuntimeError: not every request was answered 2xx.
    """
    command = [
        "taskset", "-c", str(core),
        "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(_SCRIPT), url,
        "--", str(requests), str(pause_ms),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
    if done.returncode != 0 or line is None:
        raise RuntimeError(f"wrk failed: {done.stdout[-500:]} {done.stderr[-500:]}")
    result = json.loads(line.removeprefix("RESULT "))
    if result["bad_status"] or result["failed"]:
        raise RuntimeError(f"not every request was served: {result}")
    return Load(result["requests"], result["microseconds"] / 1e6, result["p50"], result["p99"])


def _signature(key: bytes, prefix: str, content: bytes) -> str:
    digest = hmac.new(key, prefix.encode() + content, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


_serial = 0


def _run_ids(count: int) -> Iterator[str]:
    global _serial
    for _ in range(count):
        _serial += 1
        yield f"r_{hashlib.sha256(str(_serial).encode()).hexdigest()[:16]}"
