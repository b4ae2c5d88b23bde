"""Puts runs on a topic of Kafka; the password of its user is a secret of the stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from port_webhook_handlers.bundled.enqueue import Task, message_of
from port_webhook_handlers.bundled.options import Options, own
from port_webhook_handlers.sdk import Failure, HandedOver, Result, RetryableError, Run, SettingError, action

PASSWORD = "KAFKA_PASSWORD"  # noqa: S105 - the name of a secret, not its value
"""The secret that holds the password."""

_KEYS = ("brokers", "topic", "user", "mechanism", "security", "ca_file")
_RESERVE_SECONDS = 10


@action(
    "enqueue_on_kafka",
    title="Hand over by Kafka",
    description="Puts the run on a topic; a worker goes on with it and reports.",
    icon="Kafka",
    operation="CREATE",
    secrets=[PASSWORD],
    timeout_seconds=60,
    on_interrupt="retry",
)
def enqueue_on_kafka(inputs: Task, run: Run) -> Result:
    """Sends one message and waits until all replicas in sync have it; the run's id is its key."""
    try:
        options = own(run, _KEYS)
        topic = options.text("topic")
        config = _config(options, run)
        body = message_of(inputs, run)
    except (SettingError, ValueError) as error:
        return Failure(str(error))
    try:
        from confluent_kafka import KafkaException, Producer
    except ImportError:
        return Failure("the package confluent-kafka is not installed where the listener runs; install it")
    ends: list[Any] = []
    seconds = max(1.0, run.seconds_left - _RESERVE_SECONDS)
    config["message.timeout.ms"] = int(seconds * 1000)
    try:
        producer = Producer(config)
        producer.produce(topic, body.encode(), key=run.id, on_delivery=lambda error, _: ends.append(error))
        producer.flush(seconds + 1)
    except KafkaException as error:
        return Failure(f"Kafka cannot be used: {error.args[0].str()}")
    if not ends:
        raise RetryableError(f"Kafka did not take the message within {seconds:.3g} s")
    if ends[0] is not None:
        text = f"Kafka did not take the message: {ends[0].str()}"
        if ends[0].retriable() or ends[0].name() == "_MSG_TIMED_OUT":
            raise RetryableError(text)
        return Failure(text)
    return HandedOver(f"Waiting for a worker: on topic {topic}.")


def _config(options: Options, run: Run) -> dict[str, Any]:
    security = options.choice("security", ("sasl_ssl", "ssl", "plaintext"), "sasl_ssl")
    config: dict[str, Any] = {
        "bootstrap.servers": ",".join(options.texts("brokers")),
        "security.protocol": security,
        "enable.idempotence": True,
        "log_level": 0,
    }
    if ca := options.text("ca_file", ""):
        if not Path(ca).is_file():
            raise options.error("ca_file", f"{ca} does not exist where the listener runs; correct it")
        config["ssl.ca.location"] = ca
    if security == "sasl_ssl":
        config["sasl.mechanism"] = options.choice(
            "mechanism", ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"), "SCRAM-SHA-512"
        )
        config["sasl.username"] = options.text("user")
        config["sasl.password"] = run.secret(PASSWORD).strip()
    return config
