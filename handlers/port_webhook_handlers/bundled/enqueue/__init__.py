"""Hands runs to workers that exist already, over a queue or a topic, and leaves them open.

The message says all that a worker needs to go on and to report back:

    {"runId": "r_…", "action": "enqueue_on_sqs", "task": "…", "payload": {…}, "by": "ann@example.com",
     "report": {"method": "PATCH", "path": "/v1/actions/runs/r_…"}}

A worker ends the run in Port with credentials of its own: `{"status": "SUCCESS", "summary": "…"}`. A message may come
twice, so it remembers `runId`. The modules `sqs`, `kafka` and `web` beside this one hold the handlers.
"""

from __future__ import annotations

import json
from typing import Annotated, Any
from urllib.parse import quote

from port_webhook_handlers.sdk import Field, Inputs, Run

LARGEST_MESSAGE = 256 * 1024


class Task(Inputs):
    """What the form asks."""

    task: Annotated[str, Field(title="Task", pattern=r"[A-Za-z0-9_.:-]+", max_length=100)]
    payload: Annotated[dict[str, Any] | None, Field(title="Payload")] = None


def message_of(task: Task, run: Run) -> str:
    """The message for a worker, as JSON.

    Raises:
        ValueError: it is larger than queues take.
    """
    message = json.dumps(
        {
            "runId": run.id,
            "action": run.action,
            "task": task.task,
            "payload": task.payload or {},
            "by": run.trigger.email,
            "report": {"method": "PATCH", "path": f"/v1/actions/runs/{quote(run.id)}"},
        }
    )
    if len(message) > LARGEST_MESSAGE:
        raise ValueError(
            f"inputs.payload: the message has {len(message)} bytes, {LARGEST_MESSAGE} are allowed"
        )
    return message
