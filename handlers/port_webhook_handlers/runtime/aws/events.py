"""Events of Lambda: requests over HTTP (API Gateway's format 2.0, which Function URLs use too) and batches of SQS."""

from __future__ import annotations

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from port_webhook_handlers.runtime.receiver import Response


class EventError(ValueError):
    """An event that is not of the expected form; the message is safe to return."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the receiver takes it: names of headers in lower case, `source` the address of who sent it."""

    method: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    source: str | None = None


def request_of(event: Mapping[str, Any]) -> Request:
    """Reads an HTTP event.

    The gateway joins several values of one header with commas. No value that a signature needs can hold a comma
    but the one of `v1,…`, so a header that was sent twice stays recognisable: it is split again.

    Raises:
        EventError: it is none.
    """
    try:
        http = event["requestContext"]["http"]
        path = str(event.get("rawPath") or http["path"])
        stage = str(event["requestContext"].get("stage") or "$default")
        raw = event.get("body") or ""
        body = b64decode(raw, validate=True) if event.get("isBase64Encoded") else raw.encode()
        headers: list[tuple[bytes, bytes]] = []
        for name, value in (event.get("headers") or {}).items():
            for single in _values(name.lower(), value):
                headers.append(
                    (name.lower().encode("latin-1", "replace"), single.encode("latin-1", "replace"))
                )
        method = str(http["method"]).upper()
        source = http.get("sourceIp")
    except (KeyError, TypeError, AttributeError, Base64Error, UnicodeEncodeError) as error:
        raise EventError(f"The event is no HTTP request of format 2.0 ({type(error).__name__}).") from error
    if stage != "$default":
        path = path.removeprefix(f"/{stage}")
    return Request(method, path, tuple(headers), body, source if isinstance(source, str) else None)


def _values(name: str, value: object) -> list[str]:
    if isinstance(value, list):
        return [str(item) for item in value]
    text = str(value)
    if name == "x-port-signature" and text.count("v1,") > 1:
        return [f"v1,{part.strip().rstrip(',')}" for part in text.split("v1,") if part.strip(" ,")]
    if name == "x-port-timestamp" and "," in text:
        return [part.strip() for part in text.split(",")]
    return [text]


def answer_of(response: Response) -> dict[str, Any]:
    """A response in format 2.0."""
    headers = {"content-type": "application/json", "cache-control": "no-store"}
    headers |= {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    try:
        text, encoded = response.body.decode(), False
    except UnicodeDecodeError:
        text, encoded = b64encode(response.body).decode(), True
    return {"statusCode": response.status, "headers": headers, "body": text, "isBase64Encoded": encoded}


@dataclass(frozen=True, slots=True)
class Record:
    """A message of a batch.

    Attributes:
        id: of the message.
        body: its text.
        receipt: what its visibility is changed with.
        receives: how often it was delivered, from 1.
        queue_arn: of the queue it came from.
    """

    id: str
    body: str
    receipt: str
    receives: int
    queue_arn: str

    @property
    def queue_name(self) -> str:
        """Name of that queue."""
        return self.queue_arn.rpartition(":")[2]


def records_of(event: Mapping[str, Any]) -> Iterator[Record]:
    """The messages of a batch of SQS."""
    for record in event["Records"]:
        yield Record(
            str(record["messageId"]),
            str(record["body"]),
            str(record["receiptHandle"]),
            int(record.get("attributes", {}).get("ApproximateReceiveCount", 1)),
            str(record.get("eventSourceARN", "")),
        )


def failures(ids: list[str]) -> dict[str, Any]:
    """The answer that leaves these messages on their queue."""
    return {"batchItemFailures": [{"itemIdentifier": name} for name in ids]}
