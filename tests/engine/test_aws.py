"""Target aws on the real engine: a stand-in for the provider plugin makes everything in moto, and functions run.

One account holds both stacks of this module; the tests run in order.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml
from tests.aws.account import Account
from tests.aws.cloud import moto
from tests.aws.stack import signed
from tests.engine.operations import Operations
from tests.engine.project import ROOT, Project, Result, fresh
from tests.fixtures_localport import LocalPort, eventually

from port_webhook_localport import control

pytestmark = [pytest.mark.engine, pytest.mark.aws, pytest.mark.slow]

REGION = "eu-west-1"
TOKEN = "planted-token-value"
SEALED = "sealed-input-value"
HANDLERS = '''\
"""Handlers of the test."""

from typing import Annotated

from port_webhook_handlers.sdk import Field, Inputs, Run, Success, action


class Sealed(Inputs):
    word: Annotated[str, Field(encrypted=True)]


@action("seal", title="Seal", secrets=["TOKEN"])
def seal(inputs: Sealed, run: Run) -> Success:
    run.log("sealing")
    return Success(summary=f"{len(inputs.word)} and {len(run.secret('TOKEN'))}")


@action("ask", title="Ask", mode="sync", operation="CREATE", secrets=["TOKEN"])
def ask(run: Run) -> Success:
    return Success(response={"length": len(run.secret("TOKEN"))})
'''


class Cloud:
    """A project whose stacks aws-dev and aws-prod go to an account on this machine."""

    def __init__(self, project: Project, account: Account, port: LocalPort, plugin: Path) -> None:
        self.project = project
        self.account = account
        self.port = port
        (project.folder / "hooks.py").write_text(HANDLERS)
        (project.folder.parent / "backend").mkdir()
        project.environment |= {
            "PATH": f"{plugin}{os.pathsep}{project.environment['PATH']}",
            "PULUMI_BACKEND_URL": (project.folder.parent / "backend").as_uri(),
            "PULUMI_HOME": str(project.folder.parent / "pulumi-home"),
            "PULUMI_CONFIG_PASSPHRASE": "a passphrase of the test",
            # The engine writes its state after every resource otherwise, which is most of the time.
            "PULUMI_EXPERIMENTAL": "true",
            "PULUMI_SKIP_CHECKPOINTS": "true",
            "PORT_BASE_URL": port.url,
            "PORT_CLIENT_ID": port.client_id,
            "PORT_CLIENT_SECRET": port.client_secret,
            "HANDLER_TOKEN": TOKEN,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
        }
        services = (
            "apigatewayv2",
            "cloudwatch",
            "dynamodb",
            "iam",
            "lambda",
            "logs",
            "secretsmanager",
            "sqs",
        )
        for stack in ("aws-dev", "aws-prod"):
            path = project.folder / "stacks" / f"Pulumi.{stack}.yaml"
            config = yaml.safe_load(path.read_text())["config"]
            target = config["port-webhook-stack:aws"]
            target |= {
                "endpoints": dict.fromkeys(services, account.url),
                "skipValidation": True,
                "protect": False,
                "python": f"{sys.version_info.major}.{sys.version_info.minor}",
                "architecture": "arm64" if platform.machine() == "aarch64" else "x86_64",
            }
            project.configure({"port-webhook:region": None, "port-webhook-stack:aws": target}, stack)
        project.configure(
            {
                "port-webhook-stack:handlers": [*config["port-webhook-stack:handlers"], "hooks.py"],
                "port-webhook-stack:secrets": {"TOKEN": {"fromEnv": "HANDLER_TOKEN"}},
            },
            "aws-dev",
        )
        self._operations = Operations(project.folder, project.environment)

    def operate(self, operation: str, stack: str = "aws-dev") -> dict[str, int]:
        """Counts of resources by what happened to them."""
        answer = self._operations(operation, stack)
        assert not answer["error"], answer["error"]
        counts: dict[str, int] = answer["changes"]
        return counts

    def count(self) -> int:
        """Resources of stack aws-dev, as the engine counts them: without the provider that it adds itself."""
        return len(json.loads(self.state())["checkpoint"]["latest"]["resources"]) - 1

    def close(self) -> None:
        self._operations.close()

    def cli(self, *arguments: str, stack: str = "aws-dev", check: bool = True) -> Result:
        return self.project.cli(*arguments, "-s", stack, check=check)

    def state(self, stack: str = "aws-dev") -> str:
        """The stack's state as the backend keeps it."""
        found = (self.project.folder.parent / "backend").glob(f"**/stacks/**/{stack}.json")
        return next(found).read_text()

    def ids(self) -> dict[str, str]:
        """Ids of everything in AWS."""
        resources = json.loads(self.state())["checkpoint"]["latest"]["resources"]
        return {item["urn"]: item["id"] for item in resources if item["type"].startswith("aws:")}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPort]:
    home = tmp_path_factory.mktemp("port")
    port = LocalPort(control.ensure_running(home), home)
    yield port
    port.close()
    control.stop(home)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, port: LocalPort) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("aws")
    plugin = folder / "plugin" / "pulumi-resource-aws"
    plugin.parent.mkdir()
    plugin.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m tests.aws.provider "$@"\n')
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    (folder / "functions").mkdir()
    with moto() as moto_url:
        account = Account(moto_url, REGION, folder / "functions")
        for project in fresh(folder):
            cloud = Cloud(project, account, port, plugin.parent)
            yield cloud
            cloud.close()
        account.close()


def test_up_of_the_development_stack(cloud: Cloud) -> None:
    assert cloud.operate("up") == {"create": cloud.count()}
    # Nothing that counts as secret is readable in the state or in the functions' environment.
    state = cloud.state()
    for secret in (cloud.port.client_secret, TOKEN):
        assert secret not in state
        assert secret not in json.dumps(cloud.account.environment("port-webhook-aws-dev-receiver"))
    # The probes of the verification went through the deployed path.
    assert "webhook-verification" in state
    service = {"identifier": "cart", "title": "Cart", "properties": {"language": "Python"}}
    cloud.port.api("POST", "/blueprints/service/entities", service)


def test_a_run_through_the_example(cloud: Cloud) -> None:
    shown = cloud.cli(
        "run", "deploy_microservice-dev", "--entity", "cart", "-i", "version=1.4.2", "--follow"
    ).stdout
    assert "deploy_microservice-dev → SUCCESS" in shown
    assert "cart 1.4.2 is live" in shown
    value = cloud.account.aws("ssm", "get_parameter", Name="/port-webhook/live-versions")["Parameter"]
    assert json.loads(value["Value"]) == {"cart": "1.4.2"}
    deployed = cloud.port.api("GET", "/blueprints/deployment/entities/cart-1.4.2")["entity"]
    assert deployed["relations"]["service"] == "cart"


def test_encrypted_inputs_and_secrets_of_handlers(cloud: Cloud) -> None:
    shown = cloud.cli("run", "seal-dev", "-i", f"word={SEALED}", "--follow").stdout
    assert f"{len(SEALED)} and {len(TOKEN)}" in shown
    assert SEALED not in shown
    asked = cloud.port.finished(cloud.port.execute("ask-dev"), 30)
    assert (asked["status"], asked["response"]) == ("SUCCESS", {"length": len(TOKEN)})


def test_new_code_is_deployed_in_place(cloud: Cloud) -> None:
    before = cloud.ids()
    hooks = cloud.project.folder / "hooks.py"
    hooks.write_text(hooks.read_text().replace("sealing", "sealing it"))
    counts = cloud.operate("up")
    # Six functions, and the proof before definitions point at them.
    assert counts == {"same": cloud.count() - 7, "update": 7}
    assert cloud.ids() == before
    health = requests.get(
        f"{cloud.account.url}/function-url/port-webhook-aws-dev-receiver/health", timeout=30
    )
    assert health.json()["digest"] in cloud.state()


def test_the_production_stack_comes_and_goes(cloud: Cloud) -> None:
    calls = len(cloud.account.calls)
    count = cloud.operate("preview", "aws-prod")["create"]
    assert len(cloud.account.calls) == calls
    assert cloud.operate("up", "aws-prod") == {"create": count}
    assert cloud.operate("up", "aws-prod") == {"same": count}
    run = cloud.port.execute("deploy_microservice", {"version": "1.4.3"}, entity="cart")
    assert cloud.port.finished(run, 30)["status"] == "SUCCESS"
    assert cloud.operate("destroy", "aws-prod")["delete"] == count
    for service, operation, found, name in (
        ("sqs", "list_queues", "QueueUrls", None),
        ("dynamodb", "list_tables", "TableNames", None),
        ("iam", "list_roles", "Roles", "RoleName"),
        ("lambda", "list_functions", "Functions", "FunctionName"),
        ("logs", "describe_log_groups", "logGroups", "logGroupName"),
        ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
    ):
        left = [item[name] if name else item for item in cloud.account.aws(service, operation)[found]]
        assert left, "the other stack is still there"
        assert not [item for item in left if "port-webhook-prod" in item], service
    assert cloud.account.denied == []


def test_a_rotation_needs_no_deployment_of_code(cloud: Cloud) -> None:
    receiver = "port-webhook-aws-dev-receiver"
    pid = cloud.account.pid(receiver)
    control.rotate_secret(cloud.port.home, "stage")
    control.rotate_secret(cloud.port.home, "activate", 3600)
    renewed = control.status(cloud.port.home)
    assert renewed is not None
    former, cloud.port.endpoint = cloud.port.client_secret, renewed
    cloud.project.environment["NEW_SECRET"] = renewed.client_secret
    shown = cloud.cli("rotate-secret", "--from-env", "NEW_SECRET", "--overlap", "2h").text
    assert "the former one is valid until" in shown
    assert renewed.client_secret not in shown + cloud.state()
    cloud.project.environment["PORT_CLIENT_SECRET"] = renewed.client_secret
    run = cloud.port.execute("seal-dev", {"word": "x"})
    assert cloud.port.finished(run, 30)["status"] == "SUCCESS"
    assert cloud.account.pid(receiver) == pid
    url = cloud.account.url + f"/function-url/{receiver}/webhooks/seal"
    body = json.dumps({"port_context": {"action": "seal", "runId": "r_former"}, "inputs": {}}).encode()
    assert requests.post(url, data=body, headers=signed(former, body), timeout=30).status_code == 202
    (label,) = [
        stage
        for version in cloud.account.aws(
            "secretsmanager", "list_secret_version_ids", SecretId="port-webhook-aws-dev-signing"
        )["Versions"]
        for stage in version.get("VersionStages", [])
        if stage.startswith("until-")
    ]
    assert 7000 < float(label.removeprefix("until-")) - time.time() < 7300
    assert "the former secret is refused" in cloud.cli("rotate-secret", "--retire").text


def test_a_run_that_nobody_could_start_is_redriven(cloud: Cloud) -> None:
    work, dead = (
        cloud.account.aws("sqs", "get_queue_url", QueueName=f"port-webhook-aws-dev-runs-release{end}.fifo")[
            "QueueUrl"
        ]
        for end in ("", "-dead")
    )
    cloud.account.paused = True
    run = cloud.port.execute("deploy_microservice-dev", {"version": "1.5.0"}, entity="cart")
    eventually(lambda: cloud.port.deliveries(run=run))
    # As SQS does with a message that was delivered too often.
    (message,) = cloud.account.aws("sqs", "receive_message", QueueUrl=work, WaitTimeSeconds=1)["Messages"]
    cloud.account.aws(
        "sqs",
        "send_message",
        QueueUrl=dead,
        MessageBody=message["Body"],
        MessageGroupId="1",
        MessageDeduplicationId="1",
    )
    cloud.account.aws("sqs", "delete_message", QueueUrl=work, ReceiptHandle=message["ReceiptHandle"])
    cloud.account.paused = False
    assert cloud.port.finished(run, 30)["status"] == "FAILURE"
    shown = cloud.cli("dead-letters", "list").stdout
    assert f"{run}  deploy_microservice" in shown
    assert "1 dead letters" in shown
    shown = cloud.cli("dead-letters", "redrive", run).stdout
    again = shown.partition("→ ")[2].split()[0]
    assert cloud.port.finished(again, 30)["summary"] == "cart 1.5.0 is live"


def test_status_and_logs(cloud: Cloud) -> None:
    alarm = "port-webhook-aws-dev-reporter-errors"
    cloud.account.aws(
        "cloudwatch", "set_alarm_state", AlarmName=alarm, StateValue="ALARM", StateReason="test"
    )
    shown = cloud.cli("status").stdout
    assert [line for line in shown.splitlines() if line.startswith("ALARM")] == [
        "ALARM        reporter-errors  The function reporter fails."
    ]
    assert f"listener     {cloud.account.url}/function-url/port-webhook-aws-dev-receiver  ({REGION})" in shown
    for line in ("worker-release  Active", "reports.fifo  0 waiting, 0 in work", "dead letters 0"):
        assert line in shown
    assert "cart 1.5.0 is live" in shown
    shown = cloud.cli("logs", "--lines", "1000").stdout
    assert 'worker-release: {"time":' in shown
    assert '"event":"run reported"' in shown
    for secret in (cloud.port.client_secret, TOKEN, SEALED):
        assert secret not in shown


def test_alarms_watch_what_functions_write(cloud: Cloud) -> None:
    receiver = f"{cloud.account.url}/function-url/port-webhook-aws-dev-receiver"
    body = b"{}"
    before = len(cloud.account.metrics().get("port-webhook-aws-dev-signature-failures", []))
    for headers in ({}, signed("forged", body), signed(cloud.port.client_secret, body, at=1_000_000_000)):
        answer = requests.post(f"{receiver}/webhooks/seal", data=body, headers=headers, timeout=30)
        assert answer.status_code == 401
    metrics = cloud.account.metrics()
    assert len(metrics["port-webhook-aws-dev-signature-failures"]) == before + 3
    assert metrics["port-webhook-aws-dev-dead-letters-buried"] == [1.0]
    assert all(0 <= age < 60 for age in metrics["port-webhook-aws-dev-oldest-run"])
    assert "port-webhook-aws-dev-not-accepted" not in metrics
    # Every metric of this project's that an alarm looks at is made by some filter, and none is made for nothing.
    alarms = cloud.account.aws("cloudwatch", "describe_alarms")["MetricAlarms"]
    filters = cloud.account.aws("logs", "describe_metric_filters")["metricFilters"]
    assert {alarm["MetricName"] for alarm in alarms if alarm["Namespace"] == "PortWebhook"} == {
        item["metricTransformations"][0]["metricName"] for item in filters
    }


def test_no_function_did_what_its_policy_does_not_allow(cloud: Cloud) -> None:
    callers = {caller for caller, _ in cloud.account.calls}
    functions = ("receiver", "worker-default", "worker-release", "sync-default", "reporter", "dead-letters")
    assert {f"port-webhook-aws-dev-{name}" for name in functions} <= callers
    assert cloud.account.denied == []
