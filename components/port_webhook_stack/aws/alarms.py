"""Alarms: what somebody has to look at before Port's users notice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import pulumi
import pulumi_aws as aws

from port_webhook_stack.aws.functions import LambdaFunction
from port_webhook_stack.aws.naming import Naming

_METRICS: Final = "PortWebhook"
_PERIOD_SECONDS: Final = 300
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
        functions: by part of their names; `receiver`, `reporter` and `dead-letters` among them.
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
    for watched in WATCHED:
        _watch(naming, watched, functions)


@dataclass(frozen=True, slots=True)
class Watched:
    """A metric that lines of functions' logs are turned into, and its alarm.

    Attributes:
        part: of the names.
        functions: whose logs count, by part of their names or how it begins.
        pattern: of the lines, in CloudWatch's language.
        description: what the alarm says.
        threshold: above it is the alarm.
        value: what a line adds: a number, or a field of it.
        statistic, period: how values are put together; seconds.
    """

    part: str
    functions: tuple[str, ...]
    pattern: str
    description: str
    threshold: int = 0
    value: str = "1"
    statistic: str = "Sum"
    period: int = _PERIOD_SECONDS


WATCHED: Final = (
    Watched(
        "signature-failures",
        ("receiver",),
        # Every deployment probes the reserved route with signatures that are wrong on purpose.
        '{ $.event = "refused" && ($.status = 401 || $.reason = "malformed_signature") '
        '&& $.path != "/webhooks/_verification" }',
        "Requests with a wrong, missing or old signature: a secret was rotated in Port, a clock is wrong, or "
        "somebody is trying.",
        _SIGNATURE_FAILURES,
    ),
    Watched(
        "not-accepted",
        ("receiver",),
        '{ $.event = "secrets not read" || $.event = "not stored" || $.event = "failure not reported" }',
        "The receiver could not read its secrets, or not store a run that Port has sent.",
    ),
    Watched(
        "dead-letters-buried",
        ("dead-letters",),
        '{ $.event = "dead letter" }',
        "A run could not be run and was reported as FAILURE.",
    ),
    # The queues' own age leaves out messages that were delivered three times, as all are that wait for Port.
    Watched(
        "oldest-run",
        ("worker-", "reporter"),
        "{ $.age = * }",
        f"An accepted run has not ended in Port for more than {_OLDEST_SECONDS // 60} minutes.",
        _OLDEST_SECONDS,
        value="$.age",
        statistic="Maximum",
        # Longer than the longest pause between two attempts to tell Port.
        period=3600,
    ),
)


def _watch(naming: Naming, watched: Watched, functions: Mapping[str, LambdaFunction]) -> None:
    metric = naming.aws(watched.part)
    for part, made in functions.items():
        if not part.startswith(watched.functions):
            continue
        filtered = watched.part if part in watched.functions else f"{watched.part}-{part}"
        aws.cloudwatch.LogMetricFilter(
            naming.resource(f"{filtered}-filter"),
            name=naming.aws(filtered),
            log_group_name=made.log_group.name,
            pattern=watched.pattern,
            metric_transformation=aws.cloudwatch.LogMetricFilterMetricTransformationArgs(
                name=metric, namespace=_METRICS, value=watched.value
            ),
            opts=naming.opts(),
        )
    _alarm(
        naming,
        watched.part,
        watched.description,
        (_METRICS, metric, watched.statistic, {}),
        threshold=watched.threshold,
        period=watched.period,
    )


def _alarm(
    naming: Naming,
    part: str,
    description: str,
    metric: tuple[str, str, str, Mapping[str, pulumi.Input[str]]],
    *,
    threshold: int,
    period: int = _PERIOD_SECONDS,
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
        period=period,
        evaluation_periods=1,
        comparison_operator="GreaterThanThreshold",
        threshold=threshold,
        treat_missing_data="notBreaching",
        alarm_actions=[topic] if topic else [],
        ok_actions=[topic] if topic else [],
        tags=naming.tags,
        opts=naming.opts(),
    )
