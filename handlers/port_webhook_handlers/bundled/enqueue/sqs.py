"""Puts runs on a queue of Amazon SQS, with the credentials of the function or process itself.

It needs `sqs:SendMessage` on the queue; copied into a file of one's own, the decorator declares it with
`aws_permissions`.
"""

from __future__ import annotations

from typing import Any

from port_webhook_handlers.bundled.enqueue import Task, message_of
from port_webhook_handlers.bundled.options import Options
from port_webhook_handlers.sdk import Failure, HandedOver, Result, RetryableError, Run, SettingError, action

_KEYS = ("queue_url", "region", "group", "credentials_file", "endpoint")


@action(
    "enqueue_on_sqs",
    title="Hand over by SQS",
    description="Puts the run on a queue; a worker goes on with it and reports.",
    icon="AWS",
    operation="CREATE",
    timeout_seconds=60,
    on_interrupt="retry",
)
def enqueue_on_sqs(inputs: Task, run: Run) -> Result:
    """Sends one message; on a FIFO queue a repeated one is dropped by its deduplication id."""
    try:
        options = Options({key: run.settings[key] for key in _KEYS if key in run.settings}, "enqueue_on_sqs")
        url = options.text("queue_url")
        group = options.text("group", run.action)
        fifo: dict[str, Any] = (
            {"MessageGroupId": group, "MessageDeduplicationId": run.idempotency_key}
            if url.endswith(".fifo")
            else {}
        )
        client = _client(options)
        body = message_of(inputs, run)
    except (SettingError, ValueError) as error:
        return Failure(str(error))
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        sent = client.send_message(QueueUrl=url, MessageBody=body, **fifo)
    except ClientError as error:
        said = error.response.get("Error", {})
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500:
            raise RetryableError(f"SQS cannot take the message now: {said.get('Code')}") from None
        return Failure(f"SQS refused the message: {said.get('Code')}: {said.get('Message')}")
    except BotoCoreError as error:
        return Failure(f"SQS cannot be used: {error}")
    finally:
        client.close()
    return HandedOver(f"Waiting for a worker: message {sent['MessageId']} on {url.rpartition('/')[2]}.")


def _client(options: Options) -> Any:
    try:
        import boto3
        from botocore.config import Config
        from botocore.session import Session
    except ImportError:
        raise SettingError("the package boto3 is not installed where the listener runs; install it") from None
    session = Session()
    if file := options.text("credentials_file", ""):
        session.set_config_variable("credentials_file", file)
    config = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 3, "mode": "standard"})
    return boto3.Session(botocore_session=session).client(
        "sqs",
        region_name=options.text("region"),
        endpoint_url=options.text("endpoint", "") or None,
        config=config,
    )
