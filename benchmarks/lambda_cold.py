"""Cold starts of the receiver on Lambda: a fresh interpreter, the real archive, a local server in AWS's place.

Both sides of a ratio run in turn in the same measurement, each in an interpreter of its own. Ours starts from the
unpacked archive without compiled files, as on Lambda; boto3 has its compiled files, as in Lambda's runtime.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from port_webhook_handlers.bundle import Bundle, build
from port_webhook_stack.listener.aws_archive import build_archive

ROOT = Path(__file__).resolve().parents[1]
SECRET = "signing-secret"

_OURS = """
import json, sys
event = json.loads(sys.stdin.read())
sys.path.insert(0, sys.argv[1])
import entry
answer = entry.receiver(event, None)
print(answer["statusCode"])
"""

_BOTO3 = """
import base64, hashlib, hmac, json, os, sys, time
event = json.loads(sys.stdin.read())
import boto3
options = {"region_name": "eu-west-1", "endpoint_url": os.environ["AWS_ENDPOINT_URL"]}
secrets = boto3.client("secretsmanager", **options)
queue = boto3.client("sqs", **options)

def handler(event, context):
    body = event["body"].encode()
    stamp, signature = event["headers"]["x-port-timestamp"], event["headers"]["x-port-signature"]
    content = json.loads(secrets.get_secret_value(SecretId="signing")["SecretString"])
    key = content["signing"][0]["value"].encode()
    expected = "v1," + base64.b64encode(hmac.digest(key, stamp.encode() + b"." + body, "sha256")).decode()
    if not hmac.compare_digest(expected, signature) or abs(time.time() - int(stamp)) > 300:
        return {"statusCode": 401}
    queue.send_message(QueueUrl=os.environ["QUEUE"], MessageBody=event["body"])
    return {"statusCode": 202}

print(handler(event, None)["statusCode"])
"""

_BARE = """
import base64, hmac, json, sys
event = json.loads(sys.stdin.read())

def handler(event, context):
    body = event["body"].encode()
    stamp, signature = event["headers"]["x-port-timestamp"], event["headers"]["x-port-signature"]
    expected = "v1," + base64.b64encode(hmac.digest(b"signing-secret", stamp.encode() + b"." + body, "sha256")).decode()
    ok = hmac.compare_digest(expected, signature)
    json.loads(body)
    return {"statusCode": 403 if ok else 401}

print(handler(event, None)["statusCode"])
"""


def run(small: bool) -> Iterator[tuple[str, float]]:
    """Yields the figures of this benchmark."""
    rounds = 7 if small else 25
    with tempfile.TemporaryDirectory() as folder, _Aws() as aws:
        root, size, bundle = _unpacked(Path(folder))
        environment = _environment(aws.url, bundle)
        accept, verify = _event("deploy_microservice"), _event("another_action")
        ours, boto3, short, bare = (
            ([sys.executable, "-c", _OURS, str(root)], accept, "202"),
            ([sys.executable, "-c", _BOTO3], accept, "202"),
            ([sys.executable, "-c", _OURS, str(root)], verify, "403"),
            ([sys.executable, "-c", _BARE], verify, "403"),
        )
        times: list[list[float]] = [[], [], [], []]
        for _ in range(rounds + 1):
            for found, (command, event, expected) in zip(times, (ours, boto3, short, bare), strict=True):
                found.append(_seconds(command, event, expected, environment))
        # The first round fills the system's file cache.
        accepted, peer, verified, least = (statistics.median(found[1:]) for found in times)
        warm = _warm(root, environment, accept, rounds)
    yield "lambda.archive_bytes", float(size)
    yield "lambda.accept_cold_ms", accepted * 1000
    yield "lambda.accept_cold_boto3_ms", peer * 1000
    yield "lambda.accept_cold_vs_boto3", accepted / peer
    yield "lambda.verify_cold_ms", verified * 1000
    yield "lambda.verify_cold_bare_ms", least * 1000
    yield "lambda.verify_cold_vs_bare", verified / least
    yield "lambda.accept_warm_ms", warm


def _unpacked(folder: Path) -> tuple[Path, int, Bundle]:
    bundle = build(["port_webhook_handlers.bundled.deploy"], folder / "bundles")
    archive = build_archive(
        bundle,
        folder / "archives",
        architecture="x86_64",
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        requirements=[ROOT / "requirements" / "handlers.txt"],
        handler_settings={},
        delegated=[],
    )
    root = folder / "task"
    with zipfile.ZipFile(archive.path) as package:
        package.extractall(root)
    return root, archive.size, bundle


def _environment(url: str, bundle: Bundle) -> dict[str, str]:
    queue = f"{url}/123456789012/runs"
    groups = {route["privilege_group"] for route in bundle.routes.values()}
    deployment = {
        "digest": bundle.digest,
        "table": "ledger",
        "secrets": {"signing": "signing"},
        "queues": dict.fromkeys(sorted(groups), f"{queue}.fifo"),
        "reports": f"{url}/123456789012/reports.fifo",
    }
    return {
        "PATH": os.environ["PATH"],
        "AWS_REGION": "eu-west-1",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": url,
        "QUEUE": queue,
        "PORT_WEBHOOK": json.dumps(deployment),
    }


def _event(action: str) -> bytes:
    body = json.dumps(
        {
            "port_context": {"action": action, "runId": "r_cold"},
            "inputs": {"version": "1.4.2"},
            "entity": {"identifier": "cart", "blueprint": "service"},
            "trigger": {"origin": "UI"},
        }
    )
    stamp = str(int(time.time()))
    signature = hmac.digest(SECRET.encode(), f"{stamp}.{body}".encode(), hashlib.sha256)
    event = {
        "version": "2.0",
        "rawPath": "/webhooks/deploy_microservice",
        "headers": {
            "content-type": "application/json",
            "x-port-timestamp": stamp,
            "x-port-signature": f"v1,{base64.b64encode(signature).decode()}",
        },
        "requestContext": {"stage": "$default", "http": {"method": "POST", "path": "/"}},
        "body": body,
        "isBase64Encoded": False,
    }
    return json.dumps(event).encode()


def _seconds(command: list[str], event: bytes, expected: str, environment: dict[str, str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, input=event, capture_output=True, env=environment, check=False)
    seconds = time.perf_counter() - began
    answer = done.stdout.decode().strip()
    if answer != expected:
        raise RuntimeError(f"answered {answer!r} instead of {expected}: {done.stderr.decode()[-1000:]}")
    return seconds


def _warm(root: Path, environment: dict[str, str], event: bytes, rounds: int) -> float:
    """Milliseconds of one accept in an environment that has served before."""
    script = """
import json, statistics, sys, time
event = json.loads(sys.stdin.read())
sys.path.insert(0, sys.argv[1])
import entry
function = entry.receiver
times = []
for _ in range(int(sys.argv[2])):
    began = time.perf_counter()
    assert function(event, None)["statusCode"] == 202
    times.append(time.perf_counter() - began)
print(statistics.median(times[1:]) * 1000)
"""
    command = [sys.executable, "-c", script, str(root), str(rounds * 10)]
    done = subprocess.run(command, input=event, capture_output=True, env=environment, check=True)
    return float(done.stdout)


class _Aws:
    """Answers GetSecretValue and SendMessage."""

    def __enter__(self) -> _Aws:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer in one packet, or delayed acknowledgements are what is measured.
            wbufsize = -1

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if (self.headers.get("X-Amz-Target") or "").endswith("GetSecretValue"):
                    value = json.dumps({"signing": [{"value": SECRET, "not_after": None}]})
                    answer: dict[str, Any] = {"ARN": "signing", "Name": "signing", "SecretString": value}
                else:
                    text = json.loads(body)["MessageBody"]
                    digest = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
                    answer = {"MessageId": "1", "MD5OfMessageBody": digest}
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-amz-json-1.0")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
