"""Puts runs on a queue of Amazon SQS, with the credentials of the function or process itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from port_webhook_handlers.bundled.aws import AwsAccess, AwsRefusedError
from port_webhook_handlers.bundled.enqueue import Task, message_of
from port_webhook_handlers.bundled.options import own
from port_webhook_handlers.sdk import Failure, HandedOver, Result, RetryableError, Run, SettingError, action

_KEYS = ("queue_url", "region", "group", "credentials_file", "role_arn", "token_file", "endpoint")
_QUEUE: Final = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/(\d{12})/([\w.-]+)")


def _permissions(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """To send to the queue of the settings."""
    found = _QUEUE.fullmatch(str(settings.get("queue_url")))
    if found is None:
        # Another implementation of SQS, or no queue yet: the run says what is missing.
        return []
    region, account, name = found.groups()
    return [
        {"actions": ["sqs:SendMessage"], "resources": [f"arn:{{partition}}:sqs:{region}:{account}:{name}"]}
    ]


@action(
    "enqueue_on_sqs",
    title="Hand over by SQS",
    description="Puts the run on a queue; a worker goes on with it and reports.",
    icon="AWS",
    operation="CREATE",
    privilege_group="enqueue",
    aws_permissions=_permissions,
    timeout_seconds=60,
    on_interrupt="retry",
)
def enqueue_on_sqs(inputs: Task, run: Run) -> Result:
    """Sends one message; on a FIFO queue a repeated one is dropped by its deduplication id."""
    try:
        options = own(run, _KEYS)
        url = options.text("queue_url")
        group = options.text("group", run.action)
        fifo: dict[str, Any] = (
            {"MessageGroupId": group, "MessageDeduplicationId": run.idempotency_key}
            if url.endswith(".fifo")
            else {}
        )
        options.text("region")
        access = AwsAccess.of(options)
        body = message_of(inputs, run)
        with access.client("sqs") as client:
            sent = client.send_message(QueueUrl=url, MessageBody=body, **fifo)
    except AwsRefusedError as error:
        if error.passing:
            raise RetryableError(f"SQS cannot take the message now: {error}") from None
        return Failure(f"SQS did not take the message: {error}")
    except (SettingError, ValueError) as error:
        return Failure(str(error))
    return HandedOver(f"Waiting for a worker: message {sent['MessageId']} on {url.rpartition('/')[2]}.")
