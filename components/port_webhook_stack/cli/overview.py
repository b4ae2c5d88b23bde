"""What `port-webhook status` shows of a stack with target aws."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from port_webhook_handlers.runtime.aws.deployment import VARIABLE
from port_webhook_stack.cli.account import Account, call, dead_letters, is_function, pages

_WAITING = "ApproximateNumberOfMessages"
_IN_WORK = "ApproximateNumberOfMessagesNotVisible"


def overview(account: Account) -> Iterator[tuple[str, str]]:
    """Pairs of a word and what is to be said, line by line.

    Raises:
        AccountError: AWS refused, or cannot be reached.
    """
    functions = _functions(account)
    receiver = functions.get("receiver")
    if receiver is None:
        yield "listener", f"not deployed: {account.region} has no function {account.prefix}-receiver"
        return
    yield "listener", f"{_url(account) or 'no address from outside'}  ({account.region})"
    deployment = json.loads(receiver.get("Environment", {}).get("Variables", {}).get(VARIABLE, "{}"))
    yield "bundle", str(deployment.get("digest", "unknown"))
    for name, function in sorted(functions.items()):
        state = function.get("State", "Active")
        reason = f": {function['StateReason']}" if function.get("StateReason") else ""
        yield "function", f"{name}  {state}{reason if state != 'Active' else ''}"
    for name, counts in _queues(account):
        yield "queue", f"{name}  {counts[_WAITING]} waiting, {counts[_IN_WORK]} in work"
    yield "dead letters", str(len(dead_letters(account)))
    for page in pages(
        lambda start: call(
            account,
            "cloudwatch",
            "describe_alarms",
            AlarmNamePrefix=f"{account.prefix}-",
            StateValue="ALARM",
            **start,
        )
    ):
        for alarm in page["MetricAlarms"]:
            if alarm["StateValue"] != "ALARM":
                continue
            yield (
                "ALARM",
                f"{alarm['AlarmName'].removeprefix(f'{account.prefix}-')}  {alarm.get('AlarmDescription', '')}",
            )


def _functions(account: Account) -> dict[str, Any]:
    prefix = f"{account.prefix}-"
    return {
        function["FunctionName"].removeprefix(prefix): function
        for page in pages(lambda start: call(account, "lambda", "list_functions", **start))
        for function in page["Functions"]
        if function["FunctionName"].startswith(prefix)
        and is_function(function["FunctionName"].removeprefix(prefix))
    }


def _url(account: Account) -> str | None:
    """Where Port reaches the receiver."""
    if account.ingress == "function-url":
        found = call(account, "lambda", "get_function_url_config", FunctionName=f"{account.prefix}-receiver")
        return str(found["FunctionUrl"]).rstrip("/")
    if account.ingress == "http-api":
        for page in pages(lambda start: call(account, "apigatewayv2", "get_apis", **start)):
            for api in page["Items"]:
                if api["Name"] == f"{account.prefix}-api":
                    return str(api["ApiEndpoint"])
    return None


def _queues(account: Account) -> Iterator[tuple[str, dict[str, str]]]:
    for page in pages(
        lambda start: call(account, "sqs", "list_queues", QueueNamePrefix=f"{account.prefix}-", **start)
    ):
        for url in sorted(page.get("QueueUrls", [])):
            name = url.rpartition("/")[2].removeprefix(f"{account.prefix}-")
            if not re.fullmatch(r"(reports(-dead)?|runs-.+)\.fifo", name):
                continue
            counts = call(
                account, "sqs", "get_queue_attributes", QueueUrl=url, AttributeNames=[_WAITING, _IN_WORK]
            )["Attributes"]
            yield name, counts
