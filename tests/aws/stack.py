"""The deployed listener on this machine: the real archive under the real runtime client, queues and table in moto."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.aws.cloud import Gate
from tests.aws.lambda_host import Function

REGION = "eu-west-1"
_HTTP_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD")
Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body of an answer."""
KEYS = {"AWS_SECRET_ACCESS_KEY": "secret-key", "AWS_SESSION_TOKEN": "session"}


class AwsStack:
    """Functions and what they use, created as the components do.

    Attributes:
        gate: in front of AWS.
        url: base URL of the listener.
        functions: by name.
        prefix: of all names.
        table: name of the ledger.
        received: bodies of requests.
    """

    def __init__(
        self,
        folder: Path,
        archive: Path,
        digest: str,
        moto_url: str,
        port_url: str,
        secrets: Mapping[str, Any],
        *,
        max_receives: int = 3,
        **deployment: Any,
    ) -> None:
        import boto3

        self.gate = Gate(moto_url)
        options = {
            "region_name": REGION,
            "endpoint_url": moto_url,
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
        }
        self.sqs = boto3.client("sqs", **options)
        self.dynamodb = boto3.client("dynamodb", **options)
        self.secretsmanager = boto3.client("secretsmanager", **options)
        self.folder = folder
        root = folder / "task"
        with zipfile.ZipFile(archive) as package:
            package.extractall(root)
        prefix = f"t{time.time_ns()}"
        self.prefix = prefix
        self.table = f"{prefix}-ledger"
        self.dynamodb.create_table(
            TableName=self.table,
            KeySchema=[{"AttributeName": "run_id", "KeyType": "HASH"}],
            AttributeDefinitions=[
                {"AttributeName": name, "AttributeType": kind}
                for name, kind in (("run_id", "S"), ("dead", "S"), ("updated_at", "N"))
            ],
            GlobalSecondaryIndexes=[
                {
                    "IndexName": "dead-letters",
                    "KeySchema": [
                        {"AttributeName": "dead", "KeyType": "HASH"},
                        {"AttributeName": "updated_at", "KeyType": "RANGE"},
                    ],
                    "Projection": {"ProjectionType": "ALL"},
                }
            ],
            BillingMode="PAY_PER_REQUEST",
        )
        self.dead = self._queue(f"{prefix}-dead.fifo", FifoQueue="true")
        self.work = self._queue(
            f"{prefix}-work.fifo",
            FifoQueue="true",
            RedrivePolicy=json.dumps(
                {"deadLetterTargetArn": self._arn(self.dead), "maxReceiveCount": max_receives}
            ),
        )
        self.reports_dead = self._queue(f"{prefix}-reports-dead.fifo", FifoQueue="true")
        self.reports = self._queue(f"{prefix}-reports.fifo", FifoQueue="true")
        self.secrets = {
            name: self.secretsmanager.create_secret(
                Name=f"{prefix}-{name}", SecretString=json.dumps({key: secrets[key] for key in keys})
            )["ARN"]
            for name, keys in (
                ("signing", ["signing"]),
                ("api", ["api"]),
                ("handlers", ["secrets", "decryption"]),
            )
        }
        self._kept: list[tuple[str, str]] = []
        self._common = {"digest": digest, "table": self.table, "reports": self.reports, **deployment}
        self.functions: dict[str, Function] = {}
        for name, environment in {
            "receiver": {
                "queues": {"default": self.work, "other": self.work},
                "functions": {"other": "synchronous"},
                "overlap_seconds": 3600,
                "secrets": {name: self.secrets[name] for name in ("signing", "api")},
                "port_base_url": port_url,
            },
            "worker": {"queues": {"default": self.work}, "secrets": {"handlers": self.secrets["handlers"]}},
            "synchronous": {"secrets": {"handlers": self.secrets["handlers"]}},
            "reporter": {"secrets": {"api": self.secrets["api"]}, "port_base_url": port_url},
            "dead_letters": {"queues": {"default": self.dead}},
        }.items():
            self.functions[name] = Function(
                name, root, f"entry.{name}", self._environment(name, {**self._common, **environment}), folder
            )
        self.received: list[bytes] = []
        self._gateway = _gateway(self.functions["receiver"], self.received)
        self._invoker = _invoke_api(self.functions)
        self.url = f"http://127.0.0.1:{self._gateway.server_address[1]}"
        invoker = f"http://127.0.0.1:{self._invoker.server_address[1]}"
        self.functions["receiver"].environment["AWS_ENDPOINT_URL_LAMBDA"] = invoker

    def _environment(self, name: str, deployment: Mapping[str, Any]) -> dict[str, str]:
        return {
            # So that the gate knows whose call it is.
            "AWS_ACCESS_KEY_ID": name,
            **KEYS,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.gate.url,
            "PORT_WEBHOOK": json.dumps(deployment),
        }

    def _queue(self, name: str, **attributes: str) -> str:
        url: str = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        return url

    def _arn(self, url: str) -> str:
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
        arn: str = found["Attributes"]["QueueArn"]
        return arn

    # Event sources

    def deliver(self) -> int:
        """Hands every visible message to its function, until none is left; how many were."""
        delivered = 0
        while found := sum(
            self._deliver_one(url, name)
            for url, name in (
                (self.work, "worker"),
                (self.dead, "dead_letters"),
                (self.reports, "reporter"),
            )
        ):
            delivered += found
        return delivered

    def _deliver_one(self, url: str, function: str) -> int:
        messages = self.sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=10 if function == "reporter" else 1,
            AttributeNames=["All"],
            VisibilityTimeout=600,
        ).get("Messages", [])
        if not messages:
            return 0
        made = self.functions[function].invoke(sqs_event(messages, self._arn(url)))
        failed = {item["MessageId"] for item in messages}
        if not made.error:
            failed = {item["itemIdentifier"] for item in made.payload["batchItemFailures"]}
        for item in messages:
            if item["MessageId"] in failed:
                self._kept.append((url, item["ReceiptHandle"]))
            else:
                self.sqs.delete_message(QueueUrl=url, ReceiptHandle=item["ReceiptHandle"])
        return len(messages)

    def pass_time(self) -> None:
        """What waits for a time has reached it: hidden messages are visible, leases have ended."""
        kept, self._kept = self._kept, []
        for url, receipt in kept:
            with contextlib.suppress(self.sqs.exceptions.ClientError):
                self.sqs.change_message_visibility(QueueUrl=url, ReceiptHandle=receipt, VisibilityTimeout=0)
        for item in self.dynamodb.scan(TableName=self.table)["Items"]:
            if "lease" in item:
                self.dynamodb.update_item(
                    TableName=self.table,
                    Key={"run_id": item["run_id"]},
                    UpdateExpression="SET lease = :past",
                    ExpressionAttributeValues={":past": {"N": "1"}},
                )

    def settle(self, rounds: int = 20) -> None:
        """Delivers and lets time pass until nothing is left on the queues."""
        for _ in range(rounds):
            if not self.deliver() and not self._kept:
                return
            self.pass_time()

    # What is there

    def item(self, run_id: str) -> dict[str, Any]:
        """Plain values of a run in the ledger; {} if it is unknown."""
        found = self.dynamodb.get_item(TableName=self.table, Key={"run_id": {"S": run_id}}).get("Item", {})
        return {name: next(iter(value.values())) for name, value in found.items()}

    def waiting(self, url: str) -> int:
        """Messages on a queue, visible or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(value) for value in found.values())

    def log(self) -> str:
        """What all functions wrote."""
        return "\n".join(function.log for function in self.functions.values())

    def close(self) -> None:
        for server in (self._gateway, self._invoker):
            server.shutdown()
            server.server_close()
        for function in self.functions.values():
            function.close()
        self.gate.close()
        for client in (self.sqs, self.dynamodb, self.secretsmanager):
            client.close()


def signed(secret: str, body: bytes, at: float | None = None) -> dict[str, str]:
    """The headers that Port sends with a body."""
    stamp = str(int(time.time() if at is None else at))
    value = hmac.digest(secret.encode(), stamp.encode() + b"." + body, hashlib.sha256)
    return {
        "content-type": "application/json",
        "x-port-timestamp": stamp,
        "x-port-signature": f"v1,{base64.b64encode(value).decode()}",
    }


def http_event(
    method: str, path: str, headers: Mapping[str, str], body: bytes, *, encoded: bool = False
) -> dict[str, Any]:
    """A request as an HTTP API or a Function URL hands it over."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": dict(headers),
        "requestContext": {"stage": "$default", "http": {"method": method, "path": path}},
        "body": base64.b64encode(body).decode() if encoded else body.decode(),
        "isBase64Encoded": encoded,
    }


def sqs_event(messages: Sequence[Mapping[str, Any]], queue_arn: str) -> dict[str, Any]:
    """Messages as an event source hands them over."""
    return {
        "Records": [
            {
                "messageId": item["MessageId"],
                "receiptHandle": item["ReceiptHandle"],
                "body": item["Body"],
                "attributes": item["Attributes"],
                "eventSource": "aws:sqs",
                "eventSourceARN": queue_arn,
            }
            for item in messages
        ]
    }


def _gateway(function: Function, received: list[bytes]) -> ThreadingHTTPServer:
    def answer(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        received.append(body)
        made = function.invoke(http_event(method, path, headers, body))
        if made.error:
            return 502, {}, b'{"message":"Internal Server Error"}'
        return made.payload["statusCode"], made.payload["headers"], made.payload["body"].encode()

    return http_server(answer)


def _invoke_api(functions: Mapping[str, Function]) -> ThreadingHTTPServer:
    def answer(method: str, path: str, _: Mapping[str, str], body: bytes) -> Reply:
        name = path.split("/")[3]
        made = functions[name].invoke(json.loads(body))
        headers = {"x-amz-function-error": "Unhandled"} if made.error else {}
        return 200, headers, json.dumps(made.payload).encode()

    return http_server(answer)


def http_server(answer: Callable[[str, str, Mapping[str, str], bytes], Reply]) -> ThreadingHTTPServer:
    """A server on a port of its own.

    Args:
        answer: what comes back for method, path, headers (names in lower case, as AWS joins them) and body.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            joined: dict[str, str] = {}
            for name, value in self.headers.items():
                name = name.lower()
                joined[name] = f"{joined[name]},{value}" if name in joined else value
            status, headers, data = answer(self.command, self.path, joined, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            return

    for method in _HTTP_METHODS:
        setattr(Handler, f"do_{method}", Handler.handle_any)

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    return server


@contextlib.contextmanager
def deployed(stack: AwsStack) -> Iterator[AwsStack]:
    """The stack, closed at the end."""
    try:
        yield stack
    finally:
        stack.close()
