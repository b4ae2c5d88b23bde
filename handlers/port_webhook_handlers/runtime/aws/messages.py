"""Messages on the queues, and sending them.

A queue of a privilege group carries accepted runs, the queue of reports what Port has to hear. Both are FIFO. Reports
have the run as their group, so that what concerns one run arrives in order and one run never holds up another. So have
runs, but those of an action that runs once at a time: they share a group, which SQS hands over one after the other.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.runtime.aws.api import AwsApi
from port_webhook_handlers.runtime.claims import Report

_VERSION: Final = 1


class MessageError(ValueError):
    """A message that none of these functions wrote."""


@dataclass(frozen=True, slots=True)
class RunMessage:
    """An accepted run.

    Attributes:
        run_id, route: which.
        body_hash: of the canonical body, in hex.
        body: the request's bytes.
        accepted_at: seconds since the epoch.
    """

    run_id: str
    route: str
    body_hash: str
    body: bytes
    accepted_at: float

    def dumps(self) -> str:
        """Text of the message."""
        return json.dumps(
            {
                "version": _VERSION,
                "run_id": self.run_id,
                "route": self.route,
                "body_hash": self.body_hash,
                # SQS takes no text with certain characters that are valid in JSON.
                "body": b64encode(self.body).decode(),
                "accepted_at": self.accepted_at,
            },
            separators=(",", ":"),
        )

    @classmethod
    def parse(cls, text: str) -> RunMessage:
        """Reads a message.

        Raises:
            MessageError: it is none.
        """
        body = _load(text)
        try:
            return cls(
                str(body["run_id"]),
                str(body["route"]),
                str(body["body_hash"]),
                b64decode(body["body"], validate=True),
                float(body["accepted_at"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise MessageError(f"no accepted run: {type(error).__name__}") from error


@dataclass(frozen=True, slots=True)
class ReportMessage:
    """Reports of a run, in order.

    Attributes:
        run_id: which run.
        reports: what Port has to hear; the kind `final` ends the run.
        refusal: route and hash of the body of a run that is ended without having been started.
    """

    run_id: str
    reports: tuple[Report, ...]
    refusal: tuple[str, str] | None = None

    def dumps(self) -> str:
        """Text of the message."""
        body: dict[str, Any] = {
            "version": _VERSION,
            "run_id": self.run_id,
            "reports": [[report.seq, report.kind, report.body] for report in self.reports],
        }
        if self.refusal is not None:
            body["refusal"] = list(self.refusal)
        return json.dumps(body, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> ReportMessage:
        """Reads a message.

        Raises:
            MessageError: it is none.
        """
        body = _load(text)
        try:
            reports = tuple(Report(int(seq), str(kind), dict(value)) for seq, kind, value in body["reports"])
            refusal = body.get("refusal")
            return cls(
                str(body["run_id"]), reports, None if refusal is None else (str(refusal[0]), str(refusal[1]))
            )
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise MessageError(f"no reports: {type(error).__name__}") from error


def _load(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise MessageError("is not JSON") from error
    if not isinstance(body, dict) or body.get("version") != _VERSION:
        raise MessageError("is of another version")
    return body


def send_run(api: AwsApi, queue: str, message: RunMessage, *, serial: bool = False) -> None:
    """Puts an accepted run on a queue; durable when it returns.

    Args:
        api: makes the call.
        queue: URL of the queue of the run's privilege group.
        message: the run.
        serial: no other run of its route is handed over before this one has ended.

    Raises:
        AwsError: it may not be there.
    """
    once = f"{message.run_id} {message.route} {message.body_hash}"
    api.call(
        "sqs",
        "SendMessage",
        {
            "QueueUrl": queue,
            "MessageBody": message.dumps(),
            "MessageGroupId": _digest(message.route if serial else message.run_id),
            "MessageDeduplicationId": _digest(once),
        },
    )


def send_reports(api: AwsApi, queue: str, message: ReportMessage, what: str) -> None:
    """Puts reports on the queue of reports.

    Args:
        what: says which reports these are, so that a repeat within minutes is not delivered twice.

    Raises:
        AwsError: it may not be there.
    """
    api.call(
        "sqs",
        "SendMessage",
        {
            "QueueUrl": queue,
            "MessageBody": message.dumps(),
            "MessageGroupId": message.run_id,
            "MessageDeduplicationId": _digest(f"{message.run_id} {what}"),
        },
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def final_message(run_id: str, final: Mapping[str, Any]) -> ReportMessage:
    """The message that ends a run in Port."""
    # After all others of the run.
    return ReportMessage(run_id, (Report(FINAL_SEQ, "final", dict(final)),))


FINAL_SEQ: Final = 1_000_000_000


def split(reports: Sequence[Report], most_bytes: int) -> list[list[Report]]:
    """Cuts reports into parts that fit a message; one that is alone too large is a part of its own."""
    parts: list[list[Report]] = []
    size = 0
    for report in reports:
        length = len(json.dumps(report.body)) + 100
        if not parts or size + length > most_bytes:
            parts.append([])
            size = 0
        parts[-1].append(report)
        size += length
    return parts
