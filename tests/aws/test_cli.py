"""`port-webhook` on a deployed stack: dead letters, logs, rotation; boto3 talks to moto."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import boto3
import pytest
import yaml
from tests.aws.cloud import moto
from tests.aws.stack import REGION
from tests.fixtures_localport import LocalPort, local_port

__all__ = ["local_port"]

pytestmark = pytest.mark.aws


class Account:
    """What a stack `prod` has left in its account."""

    def __init__(self, url: str, project: Path, port: LocalPort) -> None:
        self._options = {
            "region_name": REGION,
            "endpoint_url": url,
            "aws_access_key_id": "test",
            "aws_secret_access_key": "test",
        }
        self._project = project
        services = ("dynamodb", "sqs", "logs", "secretsmanager")
        (project / "stacks").mkdir()
        (project / "Pulumi.yaml").write_text("name: port-webhook-stack\nruntime: python\n")
        config = {
            "port-webhook:baseUrl": port.url,
            "port-webhook-stack:target": "aws",
            "port-webhook-stack:aws": {
                "region": REGION,
                "namePrefix": "acme",
                "endpoints": dict.fromkeys(services, url),
            },
        }
        (project / "stacks" / "Pulumi.prod.yaml").write_text(yaml.safe_dump({"config": config}))
        self.environment = {
            "PATH": os.environ["PATH"],
            "PORT_CLIENT_ID": port.client_id,
            "PORT_CLIENT_SECRET": port.client_secret,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "COLUMNS": "200",
        }

    def aws(self, service: str, operation: str, **arguments: Any) -> Any:
        client = boto3.client(service, **self._options)
        try:
            return getattr(client, operation)(**arguments)
        finally:
            client.close()

    @property
    def endpoints(self) -> dict[str, str]:
        return dict.fromkeys(("secretsmanager",), self._options["endpoint_url"])

    def credentials(self) -> contextlib.AbstractContextManager[object]:
        """Lets this process call AWS as the commands do."""
        keys = {name: value for name, value in self.environment.items() if name.startswith("AWS_")}
        return mock.patch.dict(os.environ, keys)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        done = subprocess.run(
            [str(Path(sys.executable).with_name("port-webhook")), *arguments, "-s", "prod"],
            cwd=self._project,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def bury(self, run_id: str, route: str, **inputs: Any) -> None:
        body = {"port_context": {"action": route, "runId": run_id}, "inputs": inputs, "entity": None}
        self.aws(
            "dynamodb",
            "put_item",
            TableName="acme-ledger",
            Item={
                "run_id": {"S": run_id},
                "route": {"S": route},
                "dead": {"S": "1"},
                "updated_at": {"N": str(time.time())},
                "reason": {"S": "The run could not be started."},
                "payload": {"B": json.dumps(body).encode()},
            },
        )


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture
def account(moto_url: str, tmp_path: Path, local_port: LocalPort) -> Iterator[Account]:
    account = Account(moto_url, tmp_path, local_port)
    account.aws(
        "dynamodb",
        "create_table",
        TableName="acme-ledger",
        KeySchema=[{"AttributeName": "run_id", "KeyType": "HASH"}],
        AttributeDefinitions=[
            {"AttributeName": name, "AttributeType": kind}
            for name, kind in (("run_id", "S"), ("dead", "S"), ("updated_at", "N"))
        ],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "dead-letters",
                "KeySchema": [
                    {"AttributeName": "dead", "KeyType": "HASH"},
                    {"AttributeName": "updated_at", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
        BillingMode="PAY_PER_REQUEST",
    )
    yield account
    account.aws("dynamodb", "delete_table", TableName="acme-ledger")


def define(port: LocalPort, identifier: str, form: dict[str, Any], mapping: dict[str, Any]) -> None:
    """An action that Port executes by itself."""
    trigger = {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": form}}
    method = {"type": "UPSERT_ENTITY", "blueprintIdentifier": "thing", "mapping": mapping}
    port.api("POST", "/actions", {"identifier": identifier, "trigger": trigger, "invocationMethod": method})


def test_dead_letters_run_again_with_what_a_form_takes(account: Account, local_port: LocalPort) -> None:
    things = {"identifier": "thing", "title": "Thing", "schema": {"properties": {}}}
    local_port.api("POST", "/blueprints", things)
    for name in ("one", "two"):
        local_port.api("POST", "/blueprints/thing/entities", {"identifier": name, "title": name.title()})
    entity = {"type": "string", "format": "entity", "blueprint": "thing"}
    form = {"thing": entity, "things": {"type": "array", "items": entity}}
    mapping = {"identifier": '{{ .inputs.thing.identifier + "-" + .inputs.things[1].identifier }}'}
    define(local_port, "copy", form, mapping)
    define(local_port, "seal", {"word": {"type": "string", "encryption": "aes256-gcm"}}, {"identifier": "x"})
    one, two = (
        local_port.api("GET", f"/blueprints/thing/entities/{name}")["entity"] for name in ("one", "two")
    )
    account.bury("r_entities", "copy", thing=one, things=[one, two])
    account.bury("r_sealed", "seal", word="c2VhbGVk")
    account.bury("r_gone", "gone", text="x")
    code, text = account.run("dead-letters", "redrive", "--all")
    assert code == 1
    assert local_port.api("GET", "/blueprints/thing/entities/one-two")["entity"]["identifier"] == "one-two"
    assert "r_sealed: the input word is encrypted" in text
    assert "r_gone: Port answered 404" in text
    text = account.run("dead-letters")[1]
    assert "r_gone  gone\n  The run could not be started." in text
    assert "2 dead letters" in text
    assert local_port.client_secret not in text


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("redrive", "r_1", "--all"), "redrive takes RUN, once or more, or --all, or --reports"),
        (("redrive", "r_unknown"), "r_unknown is no dead letter of stack prod"),
    ],
)
def test_mistakes(account: Account, arguments: tuple[str, ...], part: str) -> None:
    code, text = account.run("dead-letters", *arguments)
    assert code != 0
    assert part in text


def test_reports_that_were_given_up_go_back_to_their_queue(account: Account) -> None:
    urls = [
        account.aws("sqs", "create_queue", QueueName=name, Attributes={"FifoQueue": "true"})["QueueUrl"]
        for name in ("acme-reports-dead.fifo", "acme-reports.fifo")
    ]
    account.aws(
        "sqs",
        "send_message",
        QueueUrl=urls[0],
        MessageBody="m",
        MessageGroupId="r_1",
        MessageDeduplicationId="d",
    )
    code, text = account.run("dead-letters", "redrive", "--reports")
    assert code == 0, text
    assert "1 messages are on the queue of reports again" in text
    found = account.aws("sqs", "receive_message", QueueUrl=urls[1], AttributeNames=["All"])["Messages"]
    assert [(item["Body"], item["Attributes"]["MessageGroupId"]) for item in found] == [("m", "r_1")]


def test_logs_are_those_of_this_stack_alone(account: Account) -> None:
    assert "there is no log group" in account.run("logs")[1]
    for name in ("acme-receiver", "acme-eu-receiver"):
        group = f"/aws/lambda/{name}"
        account.aws("logs", "create_log_group", logGroupName=group)
        account.aws("logs", "create_log_stream", logGroupName=group, logStreamName="s")
        line = {"timestamp": int(time.time() * 1000), "message": f"line of {name}"}
        account.aws("logs", "put_log_events", logGroupName=group, logStreamName="s", logEvents=[line])
    assert account.run("logs")[1].splitlines() == ["receiver: line of acme-receiver"]


def test_a_former_secret_has_one_end(account: Account) -> None:
    from port_webhook_stack.cli.account import Account as Place
    from port_webhook_stack.cli.account import keep_former, retire

    place = Place(REGION, "acme", endpoints=account.endpoints)
    for name in ("acme-signing", "acme-handlers-default", "acme-eu-signing"):
        account.aws("secretsmanager", "create_secret", Name=name, SecretString="1")

    def labels(name: str = "acme-signing") -> list[list[str]]:
        found = account.aws("secretsmanager", "list_secret_version_ids", SecretId=name)["Versions"]
        return sorted(sorted(version["VersionStages"]) for version in found if version["VersionStages"])

    with account.credentials():
        assert not keep_former(place, 1000)
        for number in (2, 3):
            account.aws(
                "secretsmanager", "put_secret_value", SecretId="acme-signing", SecretString=str(number)
            )
            assert keep_former(place, 1000 * number)
            assert labels() == [["AWSCURRENT"], ["AWSPREVIOUS", f"until-{1000 * number}"]]
        assert keep_former(place, 3500)
        assert labels() == [["AWSCURRENT"], ["AWSPREVIOUS", "until-3500"]]
        assert retire(place)
        assert not retire(place)
    assert ["AWSCURRENT"] in labels()
    assert not [stages for stages in labels() if "AWSPREVIOUS" in stages]
