"""Queues: FIFO, encrypted, each with a dead-letter queue that it alone may fill."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_aws as aws

from port_webhook_stack.aws.naming import Naming

RETENTION_SECONDS: Final = 14 * 86_400
"""The longest that SQS keeps a message."""

_MESSAGE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class QueuePair:
    """A queue and its dead-letter queue."""

    queue: aws.sqs.Queue
    dead: aws.sqs.Queue


def make_queues(
    naming: Naming,
    part: str,
    *,
    visibility_seconds: int,
    dead_visibility_seconds: int,
    receives: int,
) -> QueuePair:
    """Makes a queue and its dead-letter queue.

    Args:
        naming: names and tags.
        part: of the names.
        visibility_seconds, dead_visibility_seconds: how long a delivered message is hidden.
        receives: deliveries before a message is a dead letter.
    """
    dead = _queue(naming, f"{part}-dead", dead_visibility_seconds, None)
    redrive = dead.arn.apply(
        lambda arn: json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": receives}, sort_keys=True)
    )
    queue = _queue(naming, part, visibility_seconds, redrive)
    aws.sqs.RedriveAllowPolicy(
        naming.resource(f"{part}-dead-from"),
        queue_url=dead.url,
        redrive_allow_policy=queue.arn.apply(
            lambda arn: json.dumps({"redrivePermission": "byQueue", "sourceQueueArns": [arn]}, sort_keys=True)
        ),
        opts=naming.opts(),
    )
    return QueuePair(queue, dead)


def _queue(
    naming: Naming, part: str, visibility_seconds: int, redrive: pulumi.Output[str] | None
) -> aws.sqs.Queue:
    key = naming.settings.kms_key
    return aws.sqs.Queue(
        naming.resource(part),
        name=naming.aws(f"{part}.fifo"),
        fifo_queue=True,
        deduplication_scope="messageGroup",
        fifo_throughput_limit="perMessageGroupId",
        message_retention_seconds=RETENTION_SECONDS,
        max_message_size=_MESSAGE_BYTES,
        visibility_timeout_seconds=visibility_seconds,
        redrive_policy=redrive,
        kms_master_key_id=key,
        sqs_managed_sse_enabled=None if key else True,
        tags=naming.tags,
        opts=naming.opts(),
    )


def consume(
    naming: Naming,
    part: str,
    queue: aws.sqs.Queue,
    function: aws.lambda_.Function,
    *,
    batch: int,
    concurrency: int | None,
) -> aws.lambda_.EventSourceMapping:
    """Has Lambda hand messages of a queue to a function, which says for each one whether it is done.

    Args:
        naming: names and tags.
        part: of the name.
        queue, function: from and to.
        batch: most messages at once.
        concurrency: most invocations at once, from 2; None: no limit.
    """
    return aws.lambda_.EventSourceMapping(
        naming.resource(f"{part}-source"),
        event_source_arn=queue.arn,
        function_name=function.name,
        batch_size=batch,
        function_response_types=["ReportBatchItemFailures"],
        scaling_config=None
        if concurrency is None
        else aws.lambda_.EventSourceMappingScalingConfigArgs(maximum_concurrency=concurrency),
        tags=naming.tags,
        opts=naming.opts(),
    )
