"""Port's topics, on a broker that the admin routes name."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from port_webhook_localport.web import compact

if TYPE_CHECKING:
    from confluent_kafka import Producer

_SECONDS = 15.0
# Besides webhooks with `agent: true`.
TYPES = ("KAFKA", "GITLAB")


class PublishError(Exception):
    """The broker did not take a message; the text says why."""


class Publisher:
    """Writes messages one by one; called from threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settings: dict[str, Any] = {}
        self._producer: Producer | None = None

    def publish(self, settings: dict[str, Any], topic: str, key: str, value: bytes) -> None:
        """Returns once the broker has the message on disk of all replicas.

        Args:
            settings: brokers, username, password and, for a private authority, caFile.

        Raises:
            PublishError: no confluent-kafka, or the broker refuses or does not answer.
        """
        problems: list[str] = []

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                problems.append(str(error.str()))

        producer = self._connect(settings)
        producer.produce(topic, value, key=key, on_delivery=delivered)
        if producer.flush(_SECONDS):
            problems.append("no answer in time")
        if problems:
            raise PublishError(problems[0])

    def _connect(self, settings: dict[str, Any]) -> Producer:
        try:
            from confluent_kafka import Producer
        except ImportError:
            raise PublishError("the package confluent-kafka is not installed") from None
        with self._lock:
            if self._producer is None or settings != self._settings:
                configuration = {
                    "bootstrap.servers": ",".join(settings["brokers"]),
                    "security.protocol": "SASL_SSL",
                    "sasl.mechanism": "SCRAM-SHA-512",
                    "sasl.username": settings["username"],
                    "sasl.password": settings["password"],
                    "enable.idempotence": True,
                    "message.timeout.ms": int(_SECONDS * 1000) - 1000,
                    "log_level": 0,
                }
                if "caFile" in settings:
                    configuration["ssl.ca.location"] = settings["caFile"]
                self._producer, self._settings = Producer(configuration), dict(settings)
            return self._producer


def unsigned(run_id: str, webhook: dict[str, Any]) -> dict[str, Any]:
    """What a WEBHOOK invocation looks like on the topic, before it is signed.

    The evaluated body is the message; the invocation and the run's id are added where the body lacks them (what
    the execution agent needs; Port's exact form is not documented).
    """
    body: dict[str, Any] = dict(webhook["body"]) if isinstance(webhook["body"], dict) else {}
    payload = body.get("payload")
    payload = dict(payload) if isinstance(payload, dict) else {}
    action = payload.get("action")
    method = {key: webhook[key] for key in ("type", "agent", "synchronized", "method", "url", "headers")}
    payload["action"] = {**(action if isinstance(action, dict) else {}), "invocationMethod": method}
    context = body.get("context")
    body["context"] = {**(context if isinstance(context, dict) else {}), "runId": run_id}
    body["payload"] = payload
    body["headers"] = webhook["headers"]
    return body


def pipeline(run_id: str, action: str, method: dict[str, Any], context: dict[str, Any]) -> dict[str, Any]:
    """What a GITLAB invocation looks like on the topic: Port's former envelope, which agents read.

    It is signed without the member `headers` (Port's rule). Whether today's Port writes anything else into it is not
    documented.
    """
    entity = context["entity"] or None
    return {
        "action": action,
        "resourceType": "run",
        "status": "TRIGGERED",
        "trigger": {key: item for key, item in context["trigger"].items() if key != "operation"},
        "context": {
            "entity": entity and entity["identifier"],
            "blueprint": context["action"].get("blueprint"),
            "runId": run_id,
        },
        "payload": {
            "entity": entity,
            "action": {
                "invocationMethod": {**method, "agent": True},
                "trigger": context["trigger"].get("operation"),
            },
            "properties": context["inputs"] or {},
            "censoredProperties": context["action"].get("encryptedProperties", []),
        },
    }


def signed(body: dict[str, Any], timestamp: str, signature: str | None) -> bytes:
    """The bytes of a message; the signature is over the message without these two headers (Port's rule)."""
    headers: dict[str, Any] = dict(body["headers"])
    if signature is not None:
        headers["X-Port-Signature"] = signature
    headers["X-Port-Timestamp"] = int(timestamp) if timestamp.isdigit() else timestamp
    return compact({**body, "headers": headers}).encode()
