"""Deployments to ECS and Lambda, against a moto server; what moto does not play (rollouts) is scripted before it."""

from __future__ import annotations

import http.client
import io
import json
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.aws.cloud import moto
from tests.unit.bundled.services import entity, failure

from port_webhook_handlers.bundled.deploy import deploy_microservice, rollout
from port_webhook_handlers.bundled.running import what_runs_where
from port_webhook_handlers.bundled.scale_restart import restart_service, scale_service
from port_webhook_handlers.sdk import Success
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.testing import Invocation, invoke

REGION = "eu-west-1"
ECS = {"cluster": "shop", "service": "cart", "image": "registry.example.com/cart:{version}"}
LAMBDA = {"function": "cart", "s3_bucket": "builds", "s3_key": "cart-{version}.zip"}

Change = Callable[[str, dict[str, Any]], None]


class Aws:
    """moto, and a front before it that changes answers.

    Attributes:
        change: called with the operation and the JSON of each answer, which it may alter.
        calls: operations in order.
    """

    def __init__(self, target: str, folder: Path) -> None:
        self.change: Change = lambda operation, answer: None
        self.calls: list[str] = []
        self._target = target.removeprefix("http://")
        self.credentials = folder / "credentials"
        self.credentials.write_text("[default]\naws_access_key_id = id\naws_secret_access_key = key\n")
        aws = self

        class Front(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                aws.pass_on(self)

            do_GET = do_POST = do_PUT = handle_any  # noqa: N815 - names of the standard library

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}).start()

    def pass_on(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        connection = http.client.HTTPConnection(self._target, timeout=20)
        try:
            connection.request(request.command, request.path, body, dict(request.headers.items()))
            response = connection.getresponse()
            answer, status = response.read(), response.status
            headers = dict(response.headers.items())
        finally:
            connection.close()
        operation = (request.headers.get("X-Amz-Target") or "").rpartition(".")[2]
        operation = operation or f"{request.command} {request.path.rpartition('/functions/')[2]}"
        self.calls.append(operation)
        if answer[:1] == b"{":
            parsed = json.loads(answer)
            self.change(operation, parsed)
            status = parsed.pop("_status", status)
            headers |= parsed.pop("_headers", {})
            answer = json.dumps(parsed).encode()
        request.send_response(status)
        for name, value in headers.items():
            if name.lower() in ("content-type", "x-amz-function-error", "x-amzn-errortype"):
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer)

    def client(self, service: str) -> Any:
        import boto3

        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=f"http://{self._target}",
            aws_access_key_id="id",
            aws_secret_access_key="key",
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {"region": REGION, "credentials_file": str(self.credentials), "endpoint": self.url}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with moto() as url:
        aws = Aws(url, tmp_path_factory.mktemp("aws"))
        body = json.dumps({"lambda": {"use_docker": False}}).encode()
        urllib.request.urlopen(f"{url}/moto-api/config", body, timeout=10).close()
        yield aws
        aws.close()


@pytest.fixture
def aws(account: Aws, monkeypatch: pytest.MonkeyPatch) -> Aws:
    account.change = lambda operation, answer: None
    account.calls.clear()
    # A rollout takes no time here.
    monkeypatch.setattr(rollout, "_POLL_SECONDS", 0.02)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return account


def run(aws: Aws, handler: Any, target: str, spec: dict[str, Any], **options: Any) -> Invocation:
    settings = {"target": target, "services": {"cart": spec}, "aws": aws.settings}
    subject = None if handler is what_runs_where else entity()
    return invoke(handler, entity=subject, settings=settings | options.pop("settings", {}), **options)


def deploy(aws: Aws, target: str, spec: dict[str, Any], version: str, **options: Any) -> Invocation:
    return run(aws, deploy_microservice, target, spec, inputs={"version": version}, **options)


def seen(aws: Aws, target: str, spec: dict[str, Any], **options: Any) -> Any:
    response = run(aws, what_runs_where, target, spec, **options).result.response
    assert response is not None
    return response["services"]


# --- ECS --------------------------------------------------------------------------------------------------


@pytest.fixture
def service(aws: Aws) -> Iterator[Any]:
    """A service of two tasks, and its client."""
    client = aws.client("ecs")
    client.create_cluster(clusterName="shop")
    first = client.register_task_definition(
        family="cart",
        containerDefinitions=[
            {"name": "web", "image": "registry.example.com/cart:1.0.0", "memory": 64, "essential": True}
        ],
        cpu="256",
        tags=[{"key": "team", "value": "shop"}],
    )["taskDefinition"]["taskDefinitionArn"]
    client.create_service(cluster="shop", serviceName="cart", taskDefinition=first, desiredCount=2)
    client.update_service(cluster="shop", service="cart", desiredCount=2)
    yield client
    client.delete_service(cluster="shop", service="cart", force=True)
    client.close()


def image_of(client: Any) -> str:
    found = client.describe_services(cluster="shop", services=["cart"])["services"][0]["taskDefinition"]
    definition = client.describe_task_definition(taskDefinition=found)["taskDefinition"]
    return str(definition["containerDefinitions"][0]["image"])


def rolls_out(former: str, steps: int) -> Change:
    """Answers of DescribeServices as ECS gives them while another task definition than the former rolls out."""
    left = steps

    def change(operation: str, answer: dict[str, Any]) -> None:
        nonlocal left
        if operation != "DescribeServices" or answer["services"][0]["taskDefinition"] == former:
            return
        found = answer["services"][0]
        found["deployments"][0] |= {"taskDefinition": found["taskDefinition"], "rolloutState": "COMPLETED"}
        if left:
            left -= 1
            found["runningCount"] = 1
            found["deployments"][0]["rolloutState"] = "IN_PROGRESS"

    return change


def test_ecs_from_one_version_to_the_next(aws: Aws, service: Any) -> None:
    before = seen(aws, "ecs", ECS)["cart"]
    assert (before["version"], before["replicas"], before["healthy"]) == ("1.0.0", 2, 2)
    former = service.describe_services(cluster="shop", services=["cart"])["services"][0]["taskDefinition"]
    aws.change = rolls_out(former, 2)
    outcome = deploy(aws, "ecs", ECS | {"url": "https://cart.example.com/{version}"}, "1.1.0")
    assert isinstance(outcome.result, Success), outcome
    assert outcome.result.summary == "cart 1.1.0 runs at https://cart.example.com/1.1.0"
    assert outcome.logs[-1] == "1 of 2 tasks run"
    live, replaced = (item["body"] for item in outcome.entities)
    after = seen(aws, "ecs", ECS)["cart"]
    assert (after["version"], f"cart-{after['revision']}") == ("1.1.0", live["identifier"])
    assert replaced["identifier"] == f"cart-{before['revision']}"
    assert replaced["properties"] == {"version": "1.0.0", "status": "Replaced"}
    assert image_of(service) == "registry.example.com/cart:1.1.0"
    made = service.describe_services(cluster="shop", services=["cart"])["services"][0]["taskDefinition"]
    copied = service.describe_task_definition(taskDefinition=made, include=["TAGS"])
    assert (copied["taskDefinition"]["cpu"], copied["tags"]) == ("256", [{"key": "team", "value": "shop"}])

    outcome = run(aws, scale_service, "ecs", ECS, inputs={"replicas": 3})
    assert outcome.result.summary == "cart runs 3 copies of 1.1.0"
    assert service.describe_services(cluster="shop", services=["cart"])["services"][0]["desiredCount"] == 3
    assert run(aws, restart_service, "ecs", ECS).result.summary == "cart runs 3 copies of 1.1.0"


def test_ecs_goes_back_where_tasks_fail(aws: Aws, service: Any) -> None:
    former = service.describe_services(cluster="shop", services=["cart"])["services"][0]["taskDefinition"]

    def fails(operation: str, answer: dict[str, Any]) -> None:
        if operation == "DescribeServices":
            found = answer["services"][0]
            bad = found["taskDefinition"] != former
            found["events"] = [{"message": "(service cart) was unable to place a task."}]
            found["deployments"] = [
                {
                    "id": "d",
                    "status": "PRIMARY",
                    "taskDefinition": found["taskDefinition"],
                    "rolloutState": "FAILED" if bad else "COMPLETED",
                    "rolloutStateReason": "tasks failed to start." if bad else "",
                }
            ]

    aws.change = fails
    outcome = deploy(aws, "ecs", ECS, "6.6.6")
    name = former.rpartition("/")[2]
    assert failure(outcome) == (
        "version 6.6.6 of cart failed: tasks failed to start. ((service cart) was unable to place a task.). "
        f"Back to {name}"
    )
    assert outcome.entities == []
    assert image_of(service) == "registry.example.com/cart:1.0.0"


def test_ecs_waits_no_longer_than_it_may(aws: Aws, service: Any) -> None:
    former = service.describe_services(cluster="shop", services=["cart"])["services"][0]["taskDefinition"]

    def hangs(operation: str, answer: dict[str, Any]) -> None:
        if operation == "DescribeServices" and answer["services"][0]["taskDefinition"] != former:
            answer["services"][0]["runningCount"] = 0
            answer["services"][0]["deployments"][0] |= {
                "taskDefinition": answer["services"][0]["taskDefinition"],
                "rolloutState": "IN_PROGRESS",
            }

    aws.change = hangs
    assert "it was not done within" in failure(deploy(aws, "ecs", ECS, "7.7.7", seconds=17))
    assert image_of(service) == "registry.example.com/cart:1.0.0"


def test_ecs_that_went_back_by_itself_is_left_alone(aws: Aws, service: Any) -> None:
    former = service.describe_services(cluster="shop", services=["cart"])["services"][0]["taskDefinition"]

    def breaks(operation: str, answer: dict[str, Any]) -> None:
        # The circuit breaker: the service wants the former definition again.
        if operation == "DescribeServices" and answer["services"][0]["taskDefinition"] != former:
            failed = answer["services"][0]["taskDefinition"]
            answer["services"][0] |= {
                "taskDefinition": former,
                "events": [{"message": "(service cart) rolling back"}],
                "deployments": [
                    {"id": "2", "status": "PRIMARY", "taskDefinition": former, "rolloutState": "IN_PROGRESS"},
                    {"id": "1", "status": "ACTIVE", "taskDefinition": failed, "rolloutState": "FAILED"},
                ],
            }

    aws.change = breaks
    text = failure(deploy(aws, "ecs", ECS, "8.8.8"))
    assert text.startswith("version 8.8.8 of cart failed: ECS itself went back to cart:")
    assert "rolling back" in text
    assert aws.calls.count("UpdateService") == 1


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"cluster": "shop", "service": "basket"}, "service shop/basket of cart does not exist in ECS"),
        ({"cluster": "nowhere"}, "ClusterNotFoundException"),
        ({"container": "worker"}, "services.cart.container: the task definition has no container worker"),
        ({"image": "cart:latest"}, "services.cart.image: must hold {version}"),
        ({"cluster": "arn:aws:ecs:x"}, "services.cart.cluster: must be a name of ECS"),
        ({"task_definition": "a/b"}, "services.cart.task_definition: must be a family"),
        ({"task_definition": "nothing"}, "AWS refused DescribeTaskDefinition"),
        ({"imag": "x"}, "services.cart.imag: unknown key"),
    ],
)
def test_ecs_that_cannot_be_used(spec: dict[str, Any], part: str, aws: Aws, service: Any) -> None:
    assert part in failure(deploy(aws, "ecs", ECS | spec, "1.1.0"))
    assert "UpdateService" not in aws.calls


# --- Lambda -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def function(account: Aws) -> Iterator[Any]:
    """A function with the alias live at version 1, and its client."""
    iam, s3, client = (account.client(name) for name in ("iam", "s3", "lambda"))
    role = iam.create_role(RoleName="r", AssumeRolePolicyDocument="{}", Path="/x/")["Role"]["Arn"]
    s3.create_bucket(Bucket="builds", CreateBucketConfiguration={"LocationConstraint": REGION})
    for version in ("1.0.0", "1.1.0", "1.2.0", "2.0.0"):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as package:
            package.writestr("main.py", f"VERSION = {version!r}")
        s3.put_object(Bucket="builds", Key=f"cart-{version}.zip", Body=archive.getvalue())
    client.create_function(
        FunctionName="cart",
        Runtime="python3.13",
        Role=role,
        Handler="main.run",
        Code={"S3Bucket": "builds", "S3Key": "cart-1.0.0.zip"},
    )
    client.publish_version(FunctionName="cart", Description="1.0.0")
    client.create_alias(FunctionName="cart", Name="live", FunctionVersion="1")
    yield client
    for each in (iam, s3, client):
        each.close()


def live(function: Any) -> str:
    return str(function.get_alias(FunctionName="cart", Name="live")["FunctionVersion"])


def test_lambda_from_one_version_to_the_next_and_back(aws: Aws, function: Any) -> None:
    first = live(function)
    outcome = deploy(aws, "lambda", LAMBDA, "1.1.0")
    assert isinstance(outcome.result, Success), outcome
    second = live(function)
    assert second != first
    assert outcome.logs == [
        "cart: code of 1.1.0",
        f"version {second} of cart is 1.1.0",
        f"alias live: {first} → {second}",
    ]
    assert [item["body"]["identifier"] for item in outcome.entities] == [f"cart-{second}", f"cart-{first}"]
    assert outcome.entities[1]["body"]["properties"] == {"version": "1.0.0", "status": "Replaced"}
    assert seen(aws, "lambda", LAMBDA)["cart"] == {
        "version": "1.1.0",
        "revision": second,
        "replicas": None,
        "healthy": None,
        "url": None,
    }
    # What was published once is found again: going back to a version uploads nothing.
    published = {"function": "cart", "published": True}
    assert isinstance(deploy(aws, "lambda", published, "1.0.0").result, Success)
    assert live(function) == first
    assert "was published with the description 3.0.0" in failure(deploy(aws, "lambda", published, "3.0.0"))


@pytest.mark.parametrize("answer", ["FunctionError", "statusCode"])
def test_lambda_goes_back_where_the_check_fails(answer: str, aws: Aws, function: Any) -> None:
    def fails(operation: str, body: dict[str, Any]) -> None:
        if "/invocations" in operation:
            body |= {"errorMessage": "no such table", "statusCode": 500}
            if answer == "FunctionError":
                del body["statusCode"]
                body["_headers"] = {"X-Amz-Function-Error": "Unhandled"}

    before = live(function)
    spec = LAMBDA | {"check": {"path": "/health"}}
    aws.change = fails
    outcome = deploy(aws, "lambda", spec, "1.2.0")
    assert failure(outcome).startswith("the check of cart failed: {")
    assert "no such table" in failure(outcome)
    assert failure(outcome).endswith(f"Alias live is back at version {before}")
    assert live(function) == before
    assert outcome.entities == []
    aws.change = lambda operation, body: None
    assert isinstance(
        deploy(aws, "lambda", spec, "2.0.0" if answer == "statusCode" else "1.1.0").result, Success
    )


def test_lambda_whose_code_cannot_be_used_stays_as_it_is(aws: Aws, function: Any) -> None:
    def refused(operation: str, body: dict[str, Any]) -> None:
        if operation == "GET cart/configuration":
            body |= {"LastUpdateStatus": "Failed", "LastUpdateStatusReason": "The image is too large."}

    before = live(function)
    aws.change = refused
    text = failure(deploy(aws, "lambda", LAMBDA, "1.2.0"))
    assert text == "Lambda cannot use the code of cart: The image is too large."
    assert live(function) == before


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"function": "basket"}, "alias live of function basket does not exist"),
        ({"alias": "next"}, "alias next of function cart does not exist"),
        ({"s3_bucket": "nowhere"}, "AWS refused UpdateFunctionCode"),
        ({"s3_key": "cart.zip"}, "services.cart.s3_key: must hold {version}"),
        ({"image": "cart:{version}"}, "give one of s3_bucket with s3_key, image, and published"),
        ({"function": "arn:aws:lambda:x"}, "services.cart.function: must be a name of Lambda"),
    ],
)
def test_lambda_that_cannot_be_used(spec: dict[str, Any], part: str, aws: Aws, function: Any) -> None:
    before = live(function)
    assert part in failure(deploy(aws, "lambda", LAMBDA | spec, "1.1.0"))
    assert live(function) == before


def test_lambda_has_no_copies(aws: Aws) -> None:
    assert "cannot be scaled" in failure(run(aws, scale_service, "lambda", LAMBDA, inputs={"replicas": 2}))
    assert "cannot be restarted" in failure(run(aws, restart_service, "lambda", LAMBDA))
    assert seen(aws, "lambda", {"function": "basket", "published": True})["cart"] is None


# --- Both -------------------------------------------------------------------------------------------------


def test_aws_that_cannot_be_reached(aws: Aws, tmp_path: Path) -> None:
    nobody = {"aws": {"region": REGION, "credentials_file": str(tmp_path / "none"), "endpoint": aws.url}}
    assert "AWS cannot be used" in failure(deploy(aws, "ecs", ECS, "1.1.0", settings=nobody))
    wrong = {"aws": aws.settings | {"zone": "a"}}
    assert failure(deploy(aws, "ecs", ECS, "1.1.0", settings=wrong)).startswith("aws.zone: unknown key")
    assert failure(deploy(aws, "ecs", ECS, "1.1.0", settings={"aws": {}})).startswith(
        "aws.region: is missing"
    )


def test_a_role_is_taken_with_a_token(aws: Aws, service: Any, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("ey.header.signature\n")
    role = {"role_arn": "arn:aws:iam::123456789012:role/deploy", "token_file": str(token)}
    access = {"region": REGION, "endpoint": aws.url, **role}
    assert seen(aws, "ecs", ECS, settings={"aws": access})["cart"]["version"] == "1.0.0"
    # The role's calls are those that count; the token is in none of the reports.
    outcome = deploy(aws, "ecs", ECS | {"service": "basket"}, "1.1.0", settings={"aws": access})
    assert "does not exist in ECS" in failure(outcome)
    assert "signature" not in json.dumps(outcome.messages)
    token.write_bytes(b"\xff\xfe")
    assert "holds no token" in failure(deploy(aws, "ecs", ECS, "1.1.0", settings={"aws": access}))
    token.unlink()
    assert failure(deploy(aws, "ecs", ECS, "1.1.0", settings={"aws": access})).startswith("aws.token_file: ")


def test_each_service_has_its_target(aws: Aws, service: Any, function: Any) -> None:
    services = {"cart": ECS, "mail": LAMBDA | {"target": "lambda"}}
    answer = seen(aws, "ecs", ECS, settings={"services": services})
    assert answer["cart"]["replicas"] == 2
    assert answer["mail"]["replicas"] is None


def test_permissions_are_those_of_the_settings() -> None:
    settings = {
        "target": "ecs",
        "aws": {"region": "eu-west-1"},
        "services": {
            "cart": ECS | {"roles": ["arn:{partition}:iam::{account}:role/cart"]},
            "mail": LAMBDA | {"target": "lambda", "check": {"a": 1}},
            "shop": {"target": "kubernetes", "namespace": "shop", "image": "shop:{version}"},
            "bill": {
                "target": "lambda",
                "image": "123456789012.dkr.ecr.eu-west-1.amazonaws.com/a/bill:{version}",
            },
        },
    }

    def granted(handler: Any) -> list[tuple[list[str], list[str]]]:
        declared = handler_of(handler).permissions_in("aws", settings)
        return [(statement["actions"], statement["resources"]) for statement in declared]

    cart = "arn:{partition}:ecs:eu-west-1:{account}:service/shop/cart"
    mail, bill = (
        f"arn:{{partition}}:lambda:eu-west-1:{{account}}:function:{name}" for name in ("cart", "bill")
    )
    code = ["lambda:GetAlias", "lambda:UpdateAlias", "lambda:PublishVersion", "lambda:UpdateFunctionCode"]
    assert granted(deploy_microservice) == [
        (code, [bill]),
        (["lambda:GetFunctionConfiguration"], [bill, f"{bill}:*"]),
        (
            ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
            ["arn:{partition}:ecr:eu-west-1:123456789012:repository/a/bill"],
        ),
        (["ecs:DescribeServices", "ecs:UpdateService"], [cart]),
        (["ecs:DescribeTaskDefinition", "ecs:RegisterTaskDefinition"], ["*"]),
        (["iam:PassRole"], ["arn:{partition}:iam::{account}:role/cart"]),
        (code, [mail]),
        (["lambda:GetFunctionConfiguration"], [mail, f"{mail}:*"]),
        (["lambda:InvokeFunction"], [f"{mail}:live"]),
        (["s3:GetObject"], ["arn:{partition}:s3:::builds/cart-*.zip"]),
    ]
    for handler in (scale_service, restart_service):
        assert granted(handler) == [
            (["ecs:DescribeServices", "ecs:UpdateService"], [cart]),
            (["ecs:DescribeTaskDefinition"], ["*"]),
        ]
    assert (["ecs:DescribeServices"], [cart]) in granted(what_runs_where)
    assert not any("Update" in action for actions, _ in granted(what_runs_where) for action in actions)
    rules = handler_of(deploy_microservice).permissions_in("kubernetes", settings)
    assert rules == [
        {
            "namespace": "shop",
            "group": "apps",
            "resources": ["deployments"],
            "names": ["shop"],
            "verbs": ["get", "patch"],
        }
    ]
    scaled = handler_of(scale_service).permissions_in("kubernetes", settings)
    assert [(rule["resources"], rule["verbs"]) for rule in scaled] == [
        (["deployments"], ["get"]),
        (["deployments/scale"], ["patch"]),
    ]
    away = settings | {"cluster": {"server": "https://other", "credentials": "/x"}}
    assert handler_of(deploy_microservice).permissions_in("kubernetes", away) == []
