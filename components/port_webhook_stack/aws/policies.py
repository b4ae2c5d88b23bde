"""Policies of the functions as plain data: for each one exactly what it does, on exactly the resources it does it to.

No action and no resource is a wildcard, with two exceptions: names of log streams are made by Lambda, so a function
may write to every stream of its own log group; and network interfaces of a function in a VPC are made by Lambda with
the function's role, for which AWS wants all of them. The code of the function is denied what Lambda is allowed there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

Policy = dict[str, Any]
Statement = dict[str, Any]

_VERSION: Final = "2012-10-17"
_CONSUME: Final = (
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
    "sqs:ChangeMessageVisibility",
)
_INTERFACES: Final = (
    "CreateNetworkInterface",
    "DeleteNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
)


def trust(service: str, conditions: Mapping[str, Any] | None = None) -> Policy:
    """Lets a service of AWS take a role."""
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": service},
        "Action": "sts:AssumeRole",
        **({"Condition": dict(conditions)} if conditions else {}),
    }
    return {"Version": _VERSION, "Statement": [statement]}


def policy(statements: Sequence[Statement | None]) -> Policy:
    """A policy of the statements that there are."""
    return {"Version": _VERSION, "Statement": [item for item in statements if item is not None]}


def allow(sid: str, actions: Sequence[str], resources: Sequence[str]) -> Statement | None:
    """A statement; None if it concerns no resource."""
    found = [resource for resource in resources if resource]
    if not found:
        return None
    return {"Sid": sid, "Effect": "Allow", "Action": sorted(actions), "Resource": sorted(set(found))}


def logs(group: str) -> Statement | None:
    """Writing to a log group of one's own."""
    return allow("Logs", ["logs:CreateLogStream", "logs:PutLogEvents"], [f"{group}:log-stream:*"])


def receiver(
    *,
    log_group: str,
    queues: Sequence[str],
    table: str,
    secrets: Sequence[str],
    functions: Sequence[str],
    key: str | None,
) -> Policy:
    """What the receiver does.

    Args:
        log_group, queues, table, secrets, functions, key: ARNs; of the queues those of runs and of reports, of the
            secrets that for signing and, where Port is asked about runs, that for its API.
    """
    return policy(
        [
            logs(log_group),
            allow("Accept", ["sqs:SendMessage"], queues),
            allow("Claim", ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"], [table]),
            allow("Verify", ["secretsmanager:GetSecretValue"], secrets),
            allow("Delegate", ["lambda:InvokeFunction"], functions),
            _key(key),
        ]
    )


def worker(
    *,
    log_group: str,
    queue: str,
    reports: str,
    table: str,
    secret: str,
    handlers: Sequence[Mapping[str, Sequence[str]]],
    vpc: str,
    key: str | None,
) -> Policy:
    """What a worker does, and what its handlers declared."""
    return policy(
        [
            logs(log_group),
            allow("Take", _CONSUME, [queue]),
            allow("Claim", ["dynamodb:GetItem", "dynamodb:UpdateItem"], [table]),
            allow("Report", ["sqs:SendMessage"], [reports]),
            allow("Secrets", ["secretsmanager:GetSecretValue"], [secret]),
            _key(key),
            *network(vpc),
            *_declared(handlers),
        ]
    )


def synchronous(
    *,
    log_group: str,
    reports: str,
    secret: str,
    handlers: Sequence[Mapping[str, Sequence[str]]],
    vpc: str,
    key: str | None,
) -> Policy:
    """What the function of synchronous handlers does, and what its handlers declared."""
    return policy(
        [
            logs(log_group),
            allow("Report", ["sqs:SendMessage"], [reports]),
            allow("Secrets", ["secretsmanager:GetSecretValue"], [secret]),
            _key(key),
            *network(vpc),
            *_declared(handlers),
        ]
    )


def reporter(*, log_group: str, reports: str, table: str, api_secret: str, key: str | None) -> Policy:
    """What the outbox does."""
    return policy(
        [
            logs(log_group),
            allow("Take", _CONSUME, [reports]),
            allow("Close", ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"], [table]),
            allow("Secrets", ["secretsmanager:GetSecretValue"], [api_secret]),
            _key(key),
        ]
    )


def dead_letters(
    *, log_group: str, queues: Sequence[str], reports: str, table: str, key: str | None
) -> Policy:
    """What ends runs that nobody could run."""
    return policy(
        [
            logs(log_group),
            allow("Take", _CONSUME, queues),
            allow("Bury", ["dynamodb:GetItem", "dynamodb:PutItem", "dynamodb:UpdateItem"], [table]),
            allow("Report", ["sqs:SendMessage"], [reports]),
            _key(key),
        ]
    )


def agent_execution(*, log_group: str, secret: str, key: str | None) -> Policy:
    """What ECS does to start the agent's tasks."""
    return policy(
        [
            logs(log_group),
            allow("Secrets", ["secretsmanager:GetSecretValue"], [secret]),
            _key(key, ["kms:Decrypt"]),
        ]
    )


def agent_task(*, receiver: str) -> Policy:
    """What the agent does: nothing in AWS, but in pull mode it hands invocations to the receiver."""
    return policy([allow("Deliver", ["lambda:InvokeFunction"], [receiver])])


def filled(
    statements: Sequence[Mapping[str, Sequence[str]]], *, partition: str, region: str, account: str
) -> list[dict[str, list[str]]]:
    """Declared statements with the place of the stack in their ARNs."""
    return [
        {
            "actions": list(statement["actions"]),
            "resources": [
                resource.format(partition=partition, region=region, account=account)
                for resource in statement["resources"]
            ],
        }
        for statement in statements
    ]


def network(function: str) -> list[Statement | None]:
    """What Lambda does with a function's role to attach it to a VPC, and the function itself may not.

    AWS describes these statements in its documentation, "Giving Lambda functions access to resources in an Amazon VPC".

    Args:
        function: ARN of the function; "": it is in no VPC.
    """
    if not function:
        return []
    _, partition, _, region, account, *_ = function.split(":")
    change = [f"ec2:{verb}" for verb in _INTERFACES]
    view = ["ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets"]
    denied = allow("NetworkNotByCode", [*change, *view], ["*"])
    return [
        allow("Network", change, [f"arn:{partition}:ec2:{region}:{account}:*/*"]),
        # AWS has no resources for these.
        allow("NetworkView", view, ["*"]),
        None
        if denied is None
        else {
            **denied,
            "Effect": "Deny",
            "Condition": {"ArnEquals": {"lambda:SourceFunctionArn": [function]}},
        },
    ]


def _declared(handlers: Sequence[Mapping[str, Sequence[str]]]) -> list[Statement | None]:
    return [
        allow(f"Handlers{number}", statement["actions"], statement["resources"])
        for number, statement in enumerate(handlers)
    ]


def _key(
    key: str | None, actions: Sequence[str] = ("kms:Decrypt", "kms:GenerateDataKey")
) -> Statement | None:
    return allow("Key", actions, [key] if key else [])
