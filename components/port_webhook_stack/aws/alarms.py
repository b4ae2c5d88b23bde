"""Alarms: what somebody has to look at before Port's users notice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pulumi
import pulumi_aws as aws

from port_webhook_stack.aws.functions import LambdaFunction
from port_webhook_stack.aws.naming import Naming

_METRICS: Final = "PortWebhook"
_OLDEST_SECONDS: Final = 15 * 60
_SIGNATURE_FAILURES: Final = 10


def make_alarms(
    naming: Naming,
    *,
    functions: Mapping[str, LambdaFunction],
    queues: Mapping[str, aws.sqs.Queue],
    dead_queues: Mapping[str, aws.sqs.Queue],
) -> None:
    """Makes alarms, with the SNS topic of the settings as their action if there is one.

    Args:
        naming: names and tags.
        functions: by part of their names; `receiver` and `dead-letters` among them.
        queues: those of runs and of reports; an old message there is a run that has not ended in Port.
        dead_queues: their dead-letter queues.
    """
    for part, made in functions.items():
        name = made.function.name
        for metric, what in (("Errors", "fails"), ("Throttles", "is throttled")):
            _alarm(
                naming,
                f"{part}-{metric.lower()}",
                f"The function {part} {what}.",
                ("AWS/Lambda", metric, "Sum", {"FunctionName": name}),
                threshold=0,
            )
    for part, queue in queues.items():
        _alarm(
            naming,
            f"{part}-age",
            f"The oldest message on the queue {part} waits for more than {_OLDEST_SECONDS // 60} minutes: "
            "an accepted run has not ended in Port.",
            ("AWS/SQS", "ApproximateAgeOfOldestMessage", "Maximum", {"QueueName": queue.name}),
            threshold=_OLDEST_SECONDS,
        )
    for part, queue in dead_queues.items():
        for metric, title, threshold in (
            ("ApproximateNumberOfMessagesVisible", "depth", 0),
            ("ApproximateAgeOfOldestMessage", "age", _OLDEST_SECONDS),
        ):
            _alarm(
                naming,
                f"{part}-{title}",
                f"The dead-letter queue {part} holds messages ({title}).",
                ("AWS/SQS", metric, "Maximum", {"QueueName": queue.name}),
                threshold=threshold,
            )
    _counted(
        naming,
        "signature-failures",
        functions["receiver"],
        '{ $.event = "refused" && ($.reason = "bad_signature" || $.reason = "missing_signature" '
        '|| $.reason = "stale_timestamp") }',
        "Requests with a wrong, missing or old signature: a secret was rotated in Port, a clock is wrong, or "
        "somebody is trying.",
        _SIGNATURE_FAILURES,
    )
    _counted(
        naming,
        "dead-letters-buried",
        functions["dead-letters"],
        '{ $.event = "dead letter" }',
        "A run could not be run and was reported as FAILURE.",
        0,
    )


def _counted(
    naming: Naming, part: str, function: LambdaFunction, pattern: str, description: str, threshold: int
) -> None:
    metric = naming.aws(part)
    aws.cloudwatch.LogMetricFilter(
        naming.resource(f"{part}-filter"),
        name=metric,
        log_group_name=function.log_group.name,
        pattern=pattern,
        metric_transformation=aws.cloudwatch.LogMetricFilterMetricTransformationArgs(
            name=metric, namespace=_METRICS, value="1", default_value="0"
        ),
        opts=naming.opts(),
    )
    _alarm(naming, part, description, (_METRICS, metric, "Sum", {}), threshold=threshold)


def _alarm(
    naming: Naming,
    part: str,
    description: str,
    metric: tuple[str, str, str, Mapping[str, pulumi.Input[str]]],
    *,
    threshold: int,
) -> None:
    namespace, name, statistic, dimensions = metric
    topic = naming.settings.alarm_topic
    aws.cloudwatch.MetricAlarm(
        naming.resource(f"{part}-alarm"),
        name=naming.aws(part),
        alarm_description=description,
        namespace=namespace,
        metric_name=name,
        statistic=statistic,
        dimensions=dict(dimensions),
        period=300,
        evaluation_periods=1,
        comparison_operator="GreaterThanThreshold",
        threshold=threshold,
        treat_missing_data="notBreaching",
        alarm_actions=[topic] if topic else [],
        ok_actions=[topic] if topic else [],
        tags=naming.tags,
        opts=naming.opts(),
    )
