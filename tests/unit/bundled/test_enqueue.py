"""Handing runs over: to SQS (a moto server), Kafka (librdkafka's own broker) and HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.bundled.services import failure
from tests.unit.localport.webhook import Webhook

from port_webhook_handlers.bundled.enqueue import kafka, sqs, web
from port_webhook_handlers.sdk import HandedOver, Run, action
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.testing import Invocation, invoke

SECRET = "w0rker-s3cret"
RUN = "r_0123456789abcdef"


def hand_over(handler: Any, payload: Any = None, seconds: float | None = None, **settings: Any) -> Invocation:
    return invoke(
        handler,
        inputs={"task": "rotate-keys", "payload": payload or {"a": 1}},
        trigger={"origin": "UI", "by": {"user": {"email": "ann@example.com"}}},
        secrets=dict.fromkeys(handler_of(handler).secrets, SECRET),
        settings=settings,
        seconds=seconds,
    )


def expected(action: str) -> dict[str, Any]:
    return {
        "runId": RUN,
        "action": action,
        "task": "rotate-keys",
        "payload": {"a": 1},
        "by": "ann@example.com",
        "report": {"method": "PATCH", "path": f"/v1/actions/runs/{RUN}"},
    }


@pytest.mark.parametrize("handler", [sqs.enqueue_on_sqs, kafka.enqueue_on_kafka, web.enqueue_by_http])
def test_a_message_twice_is_better_than_none(handler: Any) -> None:
    assert handler_of(handler).on_interrupt == "retry"


def test_a_synchronous_run_cannot_be_handed_over() -> None:
    @action("answer", mode="sync")
    def answer(run: Run) -> HandedOver:
        return HandedOver("to nobody")

    assert "a synchronous run ends with its answer" in str(invoke(answer).result.summary)


# --- HTTP -------------------------------------------------------------------------------------------------


@pytest.fixture
def worker() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()


def test_http(worker: Webhook) -> None:
    worker.status = 202
    outcome = hand_over(web.enqueue_by_http, url=f"{worker.url}/tasks", private=True)
    assert outcome.result == HandedOver(f"Waiting for a worker: {worker.url[7:]} has taken the run.")
    (request,) = worker.received
    assert request.json == expected("enqueue_by_http")
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert request.headers["idempotency-key"] == RUN


def test_http_that_fails(worker: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    worker.status = 401
    outcome = hand_over(web.enqueue_by_http, url=worker.url, private=True)
    assert failure(outcome) == f"{worker.url[7:]} answered 401, so nobody goes on with the run."
    assert hand_over(web.enqueue_by_http, url="http://127.0.0.1:1", private=True).retryable
    assert "must start with https://" in failure(hand_over(web.enqueue_by_http, url=worker.url))
    assert "may not call" in failure(hand_over(web.enqueue_by_http, url="https://127.0.0.1:1"))
    assert failure(hand_over(web.enqueue_by_http)).startswith("enqueue_by_http.url: must be a text")
    too_much = hand_over(web.enqueue_by_http, {"x": "y" * 300_000}, url=worker.url, private=True)
    assert failure(too_much).startswith("inputs.payload: the message has 300")


# --- SQS --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    from moto.server import ThreadedMotoServer

    credentials = tmp_path_factory.mktemp("aws") / "credentials"
    credentials.write_text("[default]\naws_access_key_id = id\naws_secret_access_key = key\n")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "endpoint": f"http://{host}:{port}",
        "region": "eu-west-1",
        "credentials_file": str(credentials),
    }
    server.stop()


def sqs_client(aws: dict[str, Any]) -> Any:
    import boto3

    return boto3.client(
        "sqs",
        region_name=aws["region"],
        endpoint_url=aws["endpoint"],
        aws_access_key_id="id",
        aws_secret_access_key="key",
    )


@pytest.mark.parametrize(("name", "received"), [("tasks", 2), ("tasks.fifo", 1)])
def test_sqs(name: str, received: int, aws: dict[str, Any]) -> None:
    client = sqs_client(aws)
    attributes = {"FifoQueue": "true"} if name.endswith(".fifo") else {}
    url = client.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
    # The second time stands for an attempt after an interruption.
    outcomes = [hand_over(sqs.enqueue_on_sqs, queue_url=url, **aws) for _ in range(2)]
    assert all(isinstance(outcome.result, HandedOver) for outcome in outcomes), outcomes
    messages = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    client.close()
    assert [json.loads(message["Body"]) for message in messages] == [expected("enqueue_on_sqs")] * received


def test_sqs_that_fails(aws: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{aws['endpoint']}/123456789012/nothing"
    assert failure(hand_over(sqs.enqueue_on_sqs, queue_url=url, **aws)).startswith(
        "SQS did not take the message: AWS refused SendMessage"
    )
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    nobody = aws | {"credentials_file": str(tmp_path / "nothing")}
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "Unable to locate credentials" in failure(hand_over(sqs.enqueue_on_sqs, queue_url=url, **nobody))
    assert failure(hand_over(sqs.enqueue_on_sqs, queue_url=url)).startswith("enqueue_on_sqs.region: must be")


def test_sqs_that_does_not_answer_is_asked_again(
    aws: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    nobody = aws | {"endpoint": "http://127.0.0.1:1"}
    outcome = hand_over(sqs.enqueue_on_sqs, queue_url="http://127.0.0.1:1/123456789012/tasks", **nobody)
    assert outcome.retryable
    assert "SQS cannot take the message now: AWS cannot be used" in str(outcome.result.summary)


def test_sqs_may_send_to_its_queue() -> None:
    handler = handler_of(sqs.enqueue_on_sqs)
    url = "https://sqs.eu-west-1.amazonaws.com/123456789012/tasks.fifo"
    assert handler.permissions_in("aws", {"queue_url": url}) == [
        {
            "actions": ["sqs:SendMessage"],
            "resources": ["arn:{partition}:sqs:eu-west-1:123456789012:tasks.fifo"],
        }
    ]
    assert handler.permissions_in("aws", {"queue_url": "http://127.0.0.1:5000/1/tasks"}) == []


# --- Kafka ------------------------------------------------------------------------------------------------


def test_kafka() -> None:
    from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

    # A client that brings a broker of its own, which others can connect to.
    broker = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    (address,) = [f"{found.host}:{found.port}" for found in broker.list_topics(timeout=10).brokers.values()]
    outcome = hand_over(kafka.enqueue_on_kafka, brokers=[address], topic="tasks", security="plaintext")
    assert outcome.result == HandedOver("Waiting for a worker: on topic tasks.")
    consumer = Consumer({"bootstrap.servers": address, "group.id": "g"})
    # Without a group's ceremony: whatever partition it is on.
    partitions = broker.list_topics("tasks", timeout=10).topics["tasks"].partitions
    consumer.assign([TopicPartition("tasks", number, OFFSET_BEGINNING) for number in partitions])
    message = None
    deadline = time.monotonic() + 20
    while message is None and time.monotonic() < deadline:
        message = consumer.poll(1)
    consumer.close()
    assert message is not None
    value = message.value()
    assert value is not None
    assert (message.key(), json.loads(value)) == (RUN.encode(), expected("enqueue_on_kafka"))


def test_kafka_that_fails() -> None:
    outcome = hand_over(
        kafka.enqueue_on_kafka, seconds=11, brokers=["127.0.0.1:1"], topic="tasks", user="u", ca_file=""
    )
    assert outcome.retryable
    assert "Kafka did not take the message" in str(outcome.result.summary)
    assert SECRET not in json.dumps(outcome.messages)
    wrong = hand_over(kafka.enqueue_on_kafka, brokers=["127.0.0.1:1"], topic="t", mechanism="MD5")
    assert failure(wrong).startswith("enqueue_on_kafka.mechanism: must be one of SCRAM-SHA-512")
