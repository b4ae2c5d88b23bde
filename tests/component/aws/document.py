"""Writes docs/aws-resources.md: what stacks/Pulumi.aws-prod.yaml deploys, as it is registered with Pulumi.

`python -m tests.component.aws.document` writes the page, then builds the archive twice, apart from each other, and
prints what came out.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pulumi
import yaml
from tests.component.aws.mocks import AwsMocks

from port_webhook_handlers.bundle import build
from port_webhook_handlers.bundled.deploy import blueprints
from port_webhook_stack import WebhookStack
from port_webhook_stack.listener.aws_archive import LambdaArchive, build_archive
from port_webhook_stack.settings import Settings, parse

ROOT: Final = Path(__file__).resolve().parents[3]
PAGE: Final = ROOT / "docs" / "aws-resources.md"
STACK: Final = "aws-prod"
_HEAD: Final = """\
# Resources of target aws

What `stacks/Pulumi.aws-prod.yaml` deploys with the handler of `examples/aws/promote.py`, written by
`python -m tests.component.aws.document` from what the program registers with Pulumi; a test holds both together.
`…` stands for the prefix of all names, the account is that of the test.
"""


def settings_of(state: Path) -> Settings:
    """Settings of the stack file; credentials as from the environment."""
    config = yaml.safe_load((ROOT / "stacks" / f"Pulumi.{STACK}.yaml").read_text())["config"]
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    environment = {"PORT_CLIENT_ID": "id", "PORT_CLIENT_SECRET": "secret"}
    return dataclasses.replace(parse(STACK, values, frozenset(), environment, ROOT), state_dir=state)


def registered(state: Path) -> AwsMocks:
    """Everything that the stack registers."""
    mocks = AwsMocks()
    pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack=STACK, preview=False)
    settings = settings_of(state)

    @pulumi.runtime.test
    def program() -> pulumi.Output[str]:
        return WebhookStack("webhook", settings, blueprints=[blueprints.SERVICE, blueprints.DEPLOYMENT]).url

    program()
    return mocks


def page(state: Path) -> str:
    """The whole page."""
    mocks = registered(state)
    kinds = {args.typ for args in mocks.registered.values() if args.typ.startswith("aws:")}
    assert kinds - _ELSEWHERE == {kind for _, kind, _ in _TABLE}
    rows = [
        f"| {title} | `{_short(name)}` | {'; '.join(text for text in described if text)} |"
        for title, kind, describe in _TABLE
        for name, described in sorted(
            (str(inputs.get("name") or args.name), describe(inputs))
            for args in mocks.registered.values()
            if args.typ == kind
            for inputs in (_whole(args.inputs),)
        )
    ]
    parts = [_HEAD, "\n| resource | name | settings |\n|---|---|---|\n" + "\n".join(rows) + "\n"]
    parts.append("\n## Policies\n")
    for role, policy in sorted(mocks.policies().items()):
        statements = ",\n  ".join(json.dumps(item) for item in policy["Statement"])
        text = f'{{"Version": "{policy["Version"]}", "Statement": [\n  {statements}]}}'
        parts.append(f"\n`{_short(role)}`\n\n```json\n{text}\n```\n")
    return "".join(parts)


def _whole(value: Any) -> Any:
    """Without the fraction that the engine's protocol gives to whole numbers."""
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _short(name: str) -> str:
    return name.replace("port-webhook-prod", "…")


def _function(given: Mapping[str, Any]) -> list[str]:
    reserved = given.get("reservedConcurrentExecutions")
    return [
        f"`{given['handler']}`",
        f"{given['runtime']} on {given['architectures'][0]}",
        f"{given['timeout']} s",
        f"{given['memorySize']} MiB",
        f"at most {reserved} at once" if reserved else "",
    ]


def _queue(given: Mapping[str, Any]) -> list[str]:
    redrive = json.loads(given["redrivePolicy"]) if given.get("redrivePolicy") else None
    return [
        "FIFO" if given.get("fifoQueue") else "standard",
        f"kept {given['messageRetentionSeconds'] // 86_400} days",
        f"hidden {given['visibilityTimeoutSeconds']} s",
        "encrypted with a key of " + ("the customer" if given.get("kmsMasterKeyId") else "SQS"),
        f"after {redrive['maxReceiveCount']} deliveries to "
        f"`{_short(redrive['deadLetterTargetArn'].rpartition(':')[2])}`"
        if redrive
        else "",
    ]


def _source(given: Mapping[str, Any]) -> list[str]:
    concurrency = (given.get("scalingConfig") or {}).get("maximumConcurrency")
    return [
        f"from `{_short(given['eventSourceArn'].rpartition(':')[2])}` to `{_short(given['functionName'])}`",
        f"{given['batchSize']} at once",
        f"at most {concurrency} invocations" if concurrency else "",
        "partial batch failures" if "ReportBatchItemFailures" in given["functionResponseTypes"] else "",
    ]


def _table(given: Mapping[str, Any]) -> list[str]:
    return [
        given["billingMode"],
        f"time to live by `{given['ttl']['attributeName']}`",
        "point-in-time recovery" if given["pointInTimeRecovery"]["enabled"] else "",
        "deletion protection" if given["deletionProtectionEnabled"] else "",
        f"index `{given['globalSecondaryIndexes'][0]['name']}`",
    ]


def _alarm(given: Mapping[str, Any]) -> list[str]:
    dimensions = ", ".join(f"{key} `{_short(value)}`" for key, value in (given["dimensions"] or {}).items())
    return [
        f"{given['namespace']} {_short(given['metricName'])}" + (f" of {dimensions}" if dimensions else ""),
        f"{given['statistic']} above {given['threshold']:g} in {given['period']} s",
    ]


def _stage(given: Mapping[str, Any]) -> list[str]:
    limits = given["defaultRouteSettings"]
    return [
        f"{limits['throttlingRateLimit']} requests a second, {limits['throttlingBurstLimit']} at once",
        f"access log `{_short(given['accessLogSettings']['destinationArn'].rpartition(':')[2])}`",
    ]


_TABLE: Final[tuple[tuple[str, str, Callable[[Mapping[str, Any]], list[str]]], ...]] = (
    (
        "HTTP API",
        "aws:apigatewayv2/api:Api",
        lambda given: [given["protocolType"]],
    ),
    ("its route", "aws:apigatewayv2/route:Route", lambda given: [f"`{given['routeKey']}`"]),
    (
        "its integration",
        "aws:apigatewayv2/integration:Integration",
        lambda given: [
            f"format {given['payloadFormatVersion']}",
            f"{given['timeoutMilliseconds'] // 1000} s",
        ],
    ),
    ("its stage", "aws:apigatewayv2/stage:Stage", _stage),
    (
        "permission",
        "aws:lambda/permission:Permission",
        lambda given: [f"{given['action']} for {given['principal']} on `{_short(given['function'])}`"],
    ),
    ("function", "aws:lambda/function:Function", _function),
    ("event source", "aws:lambda/eventSourceMapping:EventSourceMapping", _source),
    ("queue", "aws:sqs/queue:Queue", _queue),
    (
        "redrive rule",
        "aws:sqs/redriveAllowPolicy:RedriveAllowPolicy",
        lambda given: [
            f"`{_short(given['queueUrl'].rpartition('/')[2])}` takes from "
            + ", ".join(
                f"`{_short(arn.rpartition(':')[2])}`"
                for arn in json.loads(given["redriveAllowPolicy"])["sourceQueueArns"]
            )
            + " only"
        ],
    ),
    (
        "role",
        "aws:iam/role:Role",
        lambda given: [
            f"for {json.loads(given['assumeRolePolicy'])['Statement'][0]['Principal']['Service']}"
        ],
    ),
    ("table", "aws:dynamodb/table:Table", _table),
    (
        "secret",
        "aws:secretsmanager/secret:Secret",
        lambda given: [given["description"], f"restorable for {given['recoveryWindowInDays']} days"],
    ),
    (
        "log group",
        "aws:cloudwatch/logGroup:LogGroup",
        lambda given: [f"kept {given['retentionInDays']} days"],
    ),
    (
        "metric filter",
        "aws:cloudwatch/logMetricFilter:LogMetricFilter",
        lambda given: [
            f"`{given['pattern'].replace('|', chr(92) + '|')}`",
            f"adds `{given['metricTransformation']['value']}`",
        ],
    ),
    ("alarm", "aws:cloudwatch/metricAlarm:MetricAlarm", _alarm),
)


# Policies stand below the table; the version of a secret is its value.
_ELSEWHERE: Final = {"aws:iam/rolePolicy:RolePolicy", "aws:secretsmanager/secretVersion:SecretVersion"}


def _archive(folder: Path) -> LambdaArchive:
    """The archive of the stack's functions, made in a folder of its own."""
    settings = settings_of(folder)
    assert settings.aws is not None
    bundle = build([ROOT / handler for handler in settings.handlers], folder / "bundles")
    return build_archive(
        bundle,
        folder / "archives",
        architecture=settings.aws.architecture,
        python=settings.aws.python,
        requirements=[ROOT / "requirements" / "handlers.txt"],
        handler_settings=settings.handler_settings,
        delegated=[],
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as state:
        PAGE.write_text(page(Path(state)), encoding="utf-8")
    sys.stdout.write(f"{PAGE.relative_to(ROOT)} is written\n")
    for number in ("first", "second"):
        with tempfile.TemporaryDirectory() as folder:
            made = _archive(Path(folder))
            sys.stdout.write(
                f"{number} build: {made.size} bytes, {made.library_bytes} of them libraries, "
                f"sha256 {made.source_code_hash}\n"
            )


if __name__ == "__main__":
    main()
