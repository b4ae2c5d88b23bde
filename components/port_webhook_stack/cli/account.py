"""Looking into the account of a stack with target aws, with boto3 and the user's own credentials."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from port_webhook_handlers.runtime.aws.secrets import UNTIL
from port_webhook_stack.cli.connection import stack_configuration
from port_webhook_stack.settings import MODULE

if TYPE_CHECKING:
    from collections.abc import Mapping

_POLL_SECONDS = 2.0
_LOG_SECONDS = 3600
_LATE_SECONDS = 120.0
_BATCH = 10


class AccountError(Exception):
    """The account cannot be looked into; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A run that nobody could run and that was reported as FAILURE.

    Attributes:
        run_id, route: of the run.
        at: RFC 3339.
        reason: what Port was told.
        body: the verified request.
    """

    run_id: str
    route: str
    at: str
    reason: str
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Account:
    """Where a stack runs, as its stack file says.

    Attributes:
        region: of AWS.
        prefix: of all names.
        ingress: how requests reach the receiver.
        endpoints: service to URL, for another implementation of AWS.
    """

    region: str | None
    prefix: str
    ingress: str = "http-api"
    endpoints: Mapping[str, str] = field(default_factory=dict)

    def client(self, service: str) -> Any:
        """A client of boto3.

        Raises:
            AccountError: boto3 is not installed, or no region is known.
        """
        try:
            import boto3
        except ImportError as error:
            raise AccountError(
                "boto3 is not installed; run .venv/bin/pip install --require-hashes -r requirements/dev.txt"
            ) from error
        if not self.region:
            raise AccountError(f"{MODULE}:aws.region is not set; set it, or export AWS_REGION")
        return boto3.client(service, region_name=self.region, endpoint_url=self.endpoints.get(service))


def is_function(part: str) -> bool:
    """Whether a name without the stack's prefix is one of its functions, and not of a stack with a longer prefix."""
    return re.fullmatch(r"receiver|reporter|dead-letters|(worker|sync)-.+", part) is not None


def account_of(project: Path, stack: str) -> Account | None:
    """The account of a stack; None if its target is another."""
    values = stack_configuration(project, stack)
    if values.get(f"{MODULE}:target") != "aws":
        return None
    own: Any = values.get(f"{MODULE}:aws") or {}
    region = own.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return Account(
        region,
        own.get("namePrefix") or f"port-webhook-{stack}",
        own.get("ingress") or "http-api",
        own.get("endpoints") or {},
    )


def dead_letters(account: Account) -> list[DeadLetter]:
    """The dead letters of a stack, the oldest first.

    Raises:
        AccountError: AWS refused.
    """
    query = {
        "TableName": f"{account.prefix}-ledger",
        "IndexName": "dead-letters",
        "KeyConditionExpression": "dead = :one",
        "ExpressionAttributeValues": {":one": {"S": "1"}},
    }
    found = []
    for page in pages(lambda start: call(account, "dynamodb", "query", **query, **start)):
        for item in page["Items"]:
            text = {name: value["S"] for name, value in item.items() if "S" in value}
            at = datetime.fromtimestamp(float(item["updated_at"]["N"]), UTC)
            found.append(
                DeadLetter(
                    text["run_id"],
                    text["route"],
                    at.isoformat(timespec="seconds"),
                    text.get("reason", ""),
                    json.loads(item["payload"]["B"]),
                )
            )
    return found


def forget(account: Account, letter: DeadLetter) -> None:
    """Takes a run off the list."""
    call(
        account,
        "dynamodb",
        "update_item",
        TableName=f"{account.prefix}-ledger",
        Key={"run_id": {"S": letter.run_id}},
        UpdateExpression="REMOVE dead, payload",
    )


def redrive_reports(account: Account) -> int:
    """Puts reports that were given up back on their queue; how many.

    Raises:
        AccountError: AWS refused.
    """
    source = call(account, "sqs", "get_queue_url", QueueName=f"{account.prefix}-reports-dead.fifo")[
        "QueueUrl"
    ]
    target = call(account, "sqs", "get_queue_url", QueueName=f"{account.prefix}-reports.fifo")["QueueUrl"]
    moved = 0
    while messages := call(
        account,
        "sqs",
        "receive_message",
        QueueUrl=source,
        MaxNumberOfMessages=_BATCH,
        MessageSystemAttributeNames=["MessageGroupId"],
    ).get("Messages"):
        for message in messages:
            call(
                account,
                "sqs",
                "send_message",
                QueueUrl=target,
                MessageBody=message["Body"],
                MessageGroupId=message["Attributes"]["MessageGroupId"],
                # Another one than before, or the queue would drop it as a repeat.
                MessageDeduplicationId=f"redrive-{message['MessageId']}",
            )
            call(account, "sqs", "delete_message", QueueUrl=source, ReceiptHandle=message["ReceiptHandle"])
            moved += 1
    return moved


def log_lines(account: Account, lines: int, follow: bool) -> Iterator[str]:
    """The newest lines of the functions' logs, the oldest first.

    Raises:
        AccountError: AWS refused.
    """
    prefix = f"/aws/lambda/{account.prefix}-"
    groups = [
        group["logGroupName"]
        for page in pages(
            lambda start: call(account, "logs", "describe_log_groups", logGroupNamePrefix=prefix, **start)
        )
        for group in page["logGroups"]
        if is_function(group["logGroupName"].removeprefix(prefix))
    ]
    if not groups:
        raise AccountError(f"there is no log group {prefix}…: deploy the stack first")
    seen: set[str] = set()
    since = time.time() - _LOG_SECONDS
    while True:
        events = sorted(
            (event["timestamp"], event["eventId"], group.removeprefix(prefix), event["message"].rstrip())
            for group in groups
            for event in _events(account, group, since)
            if event["eventId"] not in seen
        )
        if not events and not seen and not follow:
            yield "(no lines within the last hour)"
        for _, _, name, message in events if seen else events[-lines:]:
            yield f"{name}: {message}"
        seen |= {identifier for _, identifier, _, _ in events}
        if not follow:
            return
        # Lines of some functions arrive later than those of others.
        since = max(since, time.time() - _LATE_SECONDS)
        time.sleep(_POLL_SECONDS)


def _events(account: Account, group: str, since: float) -> Iterator[dict[str, Any]]:
    # CloudWatch answers with empty pages while it searches.
    for page in pages(
        lambda start: call(
            account, "logs", "filter_log_events", logGroupName=group, startTime=int(since * 1000), **start
        )
    ):
        yield from page["events"]


def keep_former(account: Account, until: float) -> bool:
    """Lets what a rotation replaced count until a time; whether there is a former signing secret.

    A label of the former version says so, which functions read together with it: nothing is deployed.

    Args:
        account: where.
        until: seconds since the epoch.

    Raises:
        AccountError: AWS refused.
    """
    label = f"{UNTIL}{int(until)}"
    versions = list(_versions(account))
    # A secret has few labels, and an older one must not count.
    for name, version in versions:
        for stage in version["VersionStages"]:
            if stage.startswith(UNTIL) and stage != label:
                _move_label(account, name, stage, RemoveFromVersionId=version["VersionId"])
    former = _former(versions)
    for name, version in former:
        if label not in version["VersionStages"]:
            _move_label(account, name, label, MoveToVersionId=version["VersionId"])
    return any(name == f"{account.prefix}-signing" for name, _ in former)


def retire(account: Account) -> bool:
    """Ends the overlap after a rotation; whether there was a former signing secret.

    Raises:
        AccountError: AWS refused.
    """
    former = _former(_versions(account))
    for name, version in former:
        _move_label(account, name, "AWSPREVIOUS", RemoveFromVersionId=version["VersionId"])
    return any(name == f"{account.prefix}-signing" for name, _ in former)


def _versions(account: Account) -> Iterator[tuple[str, dict[str, Any]]]:
    """Secrets that verify or decrypt, with each of their versions that has a label."""
    filters = [{"Key": "name", "Values": [f"{account.prefix}-{part}" for part in ("signing", "handlers-")]}]
    for page in pages(
        lambda start: call(account, "secretsmanager", "list_secrets", Filters=filters, **start)
    ):
        for secret in page["SecretList"]:
            name = secret["Name"]
            for version in call(account, "secretsmanager", "list_secret_version_ids", SecretId=name)[
                "Versions"
            ]:
                yield name, {"VersionStages": [], **version}


def _former(versions: Iterable[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, version) for name, version in versions if "AWSPREVIOUS" in version["VersionStages"]]


def _move_label(account: Account, secret: str, label: str, **where: str) -> None:
    call(
        account,
        "secretsmanager",
        "update_secret_version_stage",
        SecretId=secret,
        VersionStage=label,
        **where,
    )


def pages(call: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """All pages of a listing; `call` gets what the next one is asked for with."""
    start: dict[str, Any] = {}
    while True:
        page = call(start)
        yield page
        if page.get("LastEvaluatedKey"):
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
            continue
        # Services differ in the name of it, and some call it otherwise in the question than in the answer.
        name = next((name for name in ("nextToken", "NextToken", "NextMarker") if page.get(name)), None)
        if name is None:
            return
        start = {name.replace("NextMarker", "Marker"): page[name]}


def call(account: Account, service: str, operation: str, **arguments: Any) -> dict[str, Any]:
    """One call of boto3; `operation` is the name of its method.

    Raises:
        AccountError: AWS refused, or cannot be reached.
    """
    client = account.client(service)
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        answer: dict[str, Any] = getattr(client, operation)(**arguments)
    except (BotoCoreError, ClientError) as error:
        raise AccountError(f"AWS ({account.region}): {error}; check credentials and region") from error
    finally:
        client.close()
    return answer
