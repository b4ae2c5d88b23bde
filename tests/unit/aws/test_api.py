"""Calls to AWS over HTTP: attempts, connections, errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.aws.sigv4 import Credentials


class Aws:
    """Answers what it is told to, in order; None closes the connection."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, Any]] | None] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.connections: set[Any] = set()
        aws = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                aws.requests.append((self.path, dict(self.headers), body))
                aws.connections.add(self.client_address)
                answer = aws.answers.pop(0)
                if answer is None:
                    self.close_connection = True
                    return
                data = json.dumps(answer[1]).encode()
                self.send_response(answer[0])
                if "failed" in answer[1]:
                    self.send_header("x-amz-function-error", "Unhandled")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                # As if this side had given the connection up a moment later.
                self.close_connection = bool(answer[1].get("close"))

            def log_message(self, format: str, *args: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self.thread.start()


@pytest.fixture
def aws() -> Iterator[Aws]:
    aws = Aws()
    yield aws
    aws.server.shutdown()
    aws.server.server_close()
    aws.thread.join()


@pytest.fixture
def api(aws: Aws) -> Iterator[AwsApi]:
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{aws.server.server_address[1]}"}
    api = AwsApi("eu-west-1", lambda: Credentials("id", "key"), environment)
    yield api
    api.close()


def test_a_call_is_the_services_json_protocol(aws: Aws, api: AwsApi) -> None:
    aws.answers = [(200, {"Attributes": {}})]
    assert api.call("dynamodb", "UpdateItem", {"TableName": "t"}) == {"Attributes": {}}
    path, headers, body = aws.requests[0]
    assert path == "/"
    assert headers["x-amz-target"] == "DynamoDB_20120810.UpdateItem"
    assert headers["content-type"] == "application/x-amz-json-1.0"
    assert json.loads(body) == {"TableName": "t"}


def test_one_connection_serves_many_calls(aws: Aws, api: AwsApi) -> None:
    aws.answers = [(200, {}), (200, {}), (200, {})]
    for _ in range(3):
        api.call("sqs", "SendMessage", {})
    assert len(aws.connections) == 1


def test_a_connection_that_was_given_up_meanwhile_costs_no_attempt(aws: Aws, api: AwsApi) -> None:
    aws.answers = [(200, {"close": True}), (200, {"again": 1})]
    api.call("sqs", "SendMessage", {})
    assert api.call("sqs", "SendMessage", {}) == {"again": 1}
    assert len(aws.requests) == 2


def test_passing_errors_are_tried_again(aws: Aws, api: AwsApi) -> None:
    aws.answers = [(500, {}), (400, {"__type": "com.amazonaws#ThrottlingException"}), (200, {"done": 1})]
    assert api.call("dynamodb", "GetItem", {}) == {"done": 1}


def test_other_errors_are_not(aws: Aws, api: AwsApi) -> None:
    aws.answers = [(400, {"__type": "x#ConditionalCheckFailedException", "message": "no"})]
    with pytest.raises(AwsError, match="ConditionalCheckFailedException no") as caught:
        api.call("dynamodb", "PutItem", {})
    assert caught.value.code == "ConditionalCheckFailedException"
    assert not caught.value.ambiguous


def test_a_call_without_an_answer_may_have_taken_effect(aws: Aws, api: AwsApi) -> None:
    aws.answers = [None] * 3
    with pytest.raises(AwsError) as caught:
        api.call("sqs", "SendMessage", {})
    assert caught.value.ambiguous


def test_a_function_is_invoked_once(aws: Aws, api: AwsApi) -> None:
    aws.answers = [(200, {"value": 1})]
    assert json.loads(api.invoke("name", b"{}", 5)) == {"value": 1}
    assert aws.requests[0][0] == "/2015-03-31/functions/name/invocations"
    aws.answers = [None]
    with pytest.raises(AwsError):
        api.invoke("name", b"{}", 5)
    aws.answers = [(200, {"failed": True})]
    with pytest.raises(AwsError, match="ended with an error"):
        api.invoke("name", b"{}", 5)


def test_endpoints_of_other_partitions() -> None:
    def endpoint(region: str) -> str:
        return AwsApi(region, lambda: Credentials("id", "key"), {})._endpoint("sqs")

    assert endpoint("eu-west-1") == "https://sqs.eu-west-1.amazonaws.com"
    assert endpoint("cn-north-1") == "https://sqs.cn-north-1.amazonaws.com.cn"
