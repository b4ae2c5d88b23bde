"""Target aws with Pulumi's mocks: what is registered, and rules that hold for all of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pulumi
import pytest
from tests.component.aws.mocks import ACCOUNT, CLIENT_SECRET, HANDLERS, REGION, AwsMocks, settings_of

from port_webhook_handlers.agent.environment import from_environment
from port_webhook_handlers.bundle import Bundle, build
from port_webhook_handlers.runtime.aws.agent import configured
from port_webhook_stack import SettingsError, StackError, WebhookStack
from port_webhook_stack.agent.aws import AwsAgent
from port_webhook_stack.aws.settings import parse
from port_webhook_stack.secrets_store.aws import AwsSecretsStore

IMAGE = "ghcr.io/example/agent@sha256:" + "0" * 64
AGENT = {"image": IMAGE, "subnets": ["subnet-1"], "vpc": "vpc-1"}
SECRET_MARK = "1b47061264138c4ac30d75fd1eb44270"

Run = Callable[..., AwsMocks]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="module")
def finished() -> dict[str, AwsMocks]:
    """What runs have registered; tests only read it."""
    return {}


@pytest.fixture
def run(project: Path, monkeypatch: pytest.MonkeyPatch, finished: dict[str, AwsMocks]) -> Run:
    """Runs the facade to its end, unless that was done with the same settings, and returns what it registered."""

    def built(handlers: Sequence[str | Path], out: Path, settings: Any = None) -> Bundle:
        # Discovery starts an interpreter; the same source need not be discovered for every test.
        return _built(Path(handlers[0]).read_text(), Path(handlers[0]), out)

    monkeypatch.setattr("port_webhook_stack.webhook_stack.build", built)

    def go(
        aws: Mapping[str, object] | None = None, preview: bool = False, again: bool = False, **further: Any
    ) -> AwsMocks:
        key = json.dumps([aws, preview, further], sort_keys=True)
        if key in finished and not again:
            return finished[key]
        mocks = AwsMocks()
        pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="test", preview=preview)
        settings = settings_of(project, aws, **further)

        @pulumi.runtime.test
        def program() -> pulumi.Output[str]:
            return WebhookStack("w", settings).url

        program()
        finished[key] = mocks
        return mocks

    return go


@functools.cache
def _built(source: str, path: Path, out: Path) -> Bundle:
    return build([path], out)


def test_each_function_has_its_own_role_queue_and_log_group(run: Run) -> None:
    mocks = run()
    functions = mocks.of("aws:lambda/function:Function")
    assert sorted(str(inputs["name"]) for inputs in functions.values()) == [
        "port-webhook-test-dead-letters",
        "port-webhook-test-receiver",
        "port-webhook-test-reporter",
        "port-webhook-test-sync-release",
        "port-webhook-test-worker-default",
        "port-webhook-test-worker-release",
    ]
    roles = [inputs["role"] for inputs in functions.values()]
    assert len(set(roles)) == len(roles)
    groups = [inputs["loggingConfig"]["logGroup"] for inputs in functions.values()]
    assert len(set(groups)) == len(groups)
    assert {inputs["runtime"] for inputs in functions.values()} == {"python3.13"}
    worker = functions["w-listener-worker-default"]
    assert worker["timeout"] == 330
    queue = mocks.of("aws:sqs/queue:Queue")["w-listener-runs-default"]
    assert queue["visibilityTimeoutSeconds"] == 6 * 330
    source = mocks.of("aws:lambda/eventSourceMapping:EventSourceMapping")["w-listener-worker-default-source"]
    assert (source["batchSize"], source["scalingConfig"]) == (1, {"maximumConcurrency": 4})
    assert source["functionResponseTypes"] == ["ReportBatchItemFailures"]


def test_policies_are_exact(run: Run) -> None:
    policies = run().policies()
    table = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/port-webhook-test-ledger"
    reports = f"arn:aws:sqs:{REGION}:{ACCOUNT}:port-webhook-test-reports.fifo"
    worker = policies["port-webhook-test-worker-release"]["Statement"]
    assert [statement for statement in worker if statement["Sid"] != "Logs"] == [
        {
            "Sid": "Take",
            "Effect": "Allow",
            "Action": [
                "sqs:ChangeMessageVisibility",
                "sqs:DeleteMessage",
                "sqs:GetQueueAttributes",
                "sqs:ReceiveMessage",
            ],
            "Resource": [f"arn:aws:sqs:{REGION}:{ACCOUNT}:port-webhook-test-runs-release.fifo"],
        },
        {
            "Sid": "Claim",
            "Effect": "Allow",
            "Action": ["dynamodb:GetItem", "dynamodb:UpdateItem"],
            "Resource": [table],
        },
        {"Sid": "Report", "Effect": "Allow", "Action": ["sqs:SendMessage"], "Resource": [reports]},
        {
            "Sid": "Secrets",
            "Effect": "Allow",
            "Action": ["secretsmanager:GetSecretValue"],
            "Resource": [
                f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:port-webhook-test-handlers-release"
            ],
        },
        {
            "Sid": "Handlers0",
            "Effect": "Allow",
            "Action": ["ssm:PutParameter"],
            "Resource": [f"arn:aws:ssm:{REGION}:{ACCOUNT}:parameter/live"],
        },
    ]


def test_only_the_verifying_function_may_read_the_signing_secret(run: Run) -> None:
    readers = {
        role: [
            resource.rpartition(":")[2]
            for statement in policy["Statement"]
            if "secretsmanager:GetSecretValue" in statement["Action"]
            for resource in statement["Resource"]
        ]
        for role, policy in run().policies().items()
    }
    assert readers == {
        "port-webhook-test-receiver": ["port-webhook-test-signing"],
        "port-webhook-test-reporter": ["port-webhook-test-api"],
        "port-webhook-test-worker-default": [],
        "port-webhook-test-worker-release": ["port-webhook-test-handlers-release"],
        "port-webhook-test-sync-release": ["port-webhook-test-handlers-release"],
        "port-webhook-test-dead-letters": [],
    }


VARIANTS: list[Mapping[str, object]] = [
    {},
    {"ingress": "function-url"},
    {"kmsKey": f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1", "alarmTopic": f"arn:aws:sns:{REGION}:{ACCOUNT}:t"},
    {"agent": AGENT, "tags": {"team": "platform"}, "namePrefix": "acme"},
]


@pytest.mark.parametrize("aws", VARIANTS)
def test_rules_that_hold_for_everything(run: Run, aws: Mapping[str, object]) -> None:
    mocks = run(aws)
    for role, policy in mocks.policies().items():
        own = f"log-group:/aws/{'ecs' if 'agent' in role else 'lambda'}/{role.removesuffix('-start')}:log-stream:*"
        for statement in policy["Statement"]:
            assert not [action for action in statement["Action"] if "*" in action or ":" not in action], role
            for resource in statement["Resource"]:
                assert resource.startswith("arn:aws:"), role
                assert "*" not in resource or resource.endswith(own), (role, resource)
    queues = mocks.of("aws:sqs/queue:Queue")
    for name, queue in queues.items():
        assert queue.get("sqsManagedSseEnabled") or queue.get("kmsMasterKeyId"), name
        assert queue["messageRetentionSeconds"] == 14 * 86_400
        if not name.endswith("-dead"):
            target = json.loads(queue["redrivePolicy"])["deadLetterTargetArn"].rpartition(":")[2]
            assert target in {other["name"] for other in queues.values()}, name
            allowed = mocks.registered[f"{name}-dead-from"].inputs["redriveAllowPolicy"]
            assert json.loads(allowed)["redrivePermission"] == "byQueue"
    for name, group in mocks.of("aws:cloudwatch/logGroup:LogGroup").items():
        assert group["retentionInDays"] == 30, name
        assert group.get("kmsKeyId") == aws.get("kmsKey"), name
    table = mocks.of("aws:dynamodb/table:Table")["w-listener-ledger"]
    assert table["deletionProtectionEnabled"] is True
    assert table["pointInTimeRecovery"] == {"enabled": True}
    assert table["ttl"] == {"attributeName": "expires", "enabled": True}
    topic = aws.get("alarmTopic")
    for alarm in mocks.of("aws:cloudwatch/metricAlarm:MetricAlarm").values():
        assert alarm["alarmActions"] == ([topic] if topic else [])
    for name, args in mocks.registered.items():
        if args.typ.startswith("aws:") and "tags" in TAGGABLE.get(args.typ, ""):
            assert args.inputs["tags"].get("port-webhook:stack"), name
            assert all(args.inputs["tags"].get(k) == v for k, v in dict(aws.get("tags", {})).items()), name  # type: ignore[call-overload]


def _taggable() -> dict[str, str]:
    import inspect

    import pulumi_aws as sdk

    found = {}
    for kind, module, name in (
        ("aws:lambda/function:Function", sdk.lambda_, "Function"),
        ("aws:lambda/eventSourceMapping:EventSourceMapping", sdk.lambda_, "EventSourceMapping"),
        ("aws:sqs/queue:Queue", sdk.sqs, "Queue"),
        ("aws:dynamodb/table:Table", sdk.dynamodb, "Table"),
        ("aws:iam/role:Role", sdk.iam, "Role"),
        ("aws:cloudwatch/logGroup:LogGroup", sdk.cloudwatch, "LogGroup"),
        ("aws:cloudwatch/metricAlarm:MetricAlarm", sdk.cloudwatch, "MetricAlarm"),
        ("aws:secretsmanager/secret:Secret", sdk.secretsmanager, "Secret"),
        ("aws:apigatewayv2/api:Api", sdk.apigatewayv2, "Api"),
        ("aws:apigatewayv2/stage:Stage", sdk.apigatewayv2, "Stage"),
        ("aws:ecs/cluster:Cluster", sdk.ecs, "Cluster"),
        ("aws:ecs/service:Service", sdk.ecs, "Service"),
        ("aws:ecs/taskDefinition:TaskDefinition", sdk.ecs, "TaskDefinition"),
        ("aws:ec2/securityGroup:SecurityGroup", sdk.ec2, "SecurityGroup"),
    ):
        found[kind] = " ".join(inspect.signature(getattr(module, name)._internal_init).parameters)
    return found


TAGGABLE = _taggable()


def test_secrets_stay_secret(run: Run) -> None:
    mocks = run({"agent": AGENT})
    for name, args in mocks.registered.items():
        shown = json.dumps(args.inputs, default=str)
        for value in (CLIENT_SECRET, "planted-token"):
            if value in shown:
                key = next(k for k, v in args.inputs.items() if value in json.dumps(v, default=str))
                assert SECRET_MARK in json.dumps(args.inputs[key]), name
    for name, inputs in mocks.of("aws:lambda/function:Function").items():
        variable = inputs["environment"]["variables"]["PORT_WEBHOOK"]
        assert CLIENT_SECRET not in variable, name
        assert "planted" not in variable, name
    assert len(mocks.of("aws:secretsmanager/secretVersion:SecretVersion")) == 4


def test_a_group_gets_only_the_secrets_it_declares(run: Run) -> None:
    values = {
        name: json.loads(inputs["secretString"]["value"])
        for name, inputs in run().of("aws:secretsmanager/secretVersion:SecretVersion").items()
    }
    assert values == {
        "w-secrets-signing-value": {"signing": [{"value": CLIENT_SECRET, "not_after": None}]},
        "w-secrets-api-value": {"api": {"client_id": "org", "client_secret": CLIENT_SECRET}},
        "w-secrets-handlers-release-value": {"secrets": {"TOKEN": "planted-token"}, "decryption": []},
    }


def test_functions_know_where_everything_is(run: Run) -> None:
    functions = run().of("aws:lambda/function:Function")
    receiver = json.loads(functions["w-listener-receiver"]["environment"]["variables"]["PORT_WEBHOOK"])
    assert receiver["queues"] == {
        name: f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/port-webhook-test-runs-{name}.fifo"
        for name in ("default", "release")
    }
    assert receiver["functions"] == {"release": "port-webhook-test-sync-release"}
    assert receiver["digest"].startswith("sha256:")
    worker = json.loads(functions["w-listener-worker-release"]["environment"]["variables"]["PORT_WEBHOOK"])
    assert worker["credentials"] is True
    other = json.loads(functions["w-listener-worker-default"]["environment"]["variables"]["PORT_WEBHOOK"])
    assert "credentials" not in other
    reporter = json.loads(functions["w-listener-reporter"]["environment"]["variables"]["PORT_WEBHOOK"])
    assert reporter["port_base_url"] == "https://api.getport.io"


def test_only_code_changes_when_code_changes(run: Run) -> None:
    before = run()
    after = run(source=HANDLERS.replace('title="Deploy"', 'title="Deploy it"') + "\nNOTE = 1\n")
    assert before.registered.keys() == after.registered.keys()
    changed: dict[str, set[str]] = {}
    for name, args in before.registered.items():
        other = after.registered[name].inputs
        keys = {key for key in {*args.inputs, *other} if args.inputs.get(key) != other.get(key)}
        if keys:
            changed[name] = keys
    # All of these are updates in place in the provider.
    functions = before.of("aws:lambda/function:Function")
    assert changed == {
        **{name: {"code", "sourceCodeHash", "environment"} for name in functions},
        "w-verification": {"digest"},
        "w-action-deploy": {"title"},
    }


def test_nothing_changes_when_nothing_changes(run: Run) -> None:
    first, second = run(), run(again=True)
    assert {n: a.inputs for n, a in first.registered.items()} == {
        n: a.inputs for n, a in second.registered.items()
    }


def test_a_preview_registers_the_same(run: Run) -> None:
    assert run(preview=True).registered.keys() == run().registered.keys()


def test_an_http_api_throttles_and_logs(run: Run) -> None:
    mocks = run({"throttling": {"rate": 7, "burst": 9}})
    stage = mocks.of("aws:apigatewayv2/stage:Stage")["w-listener-api-stage"]
    assert stage["defaultRouteSettings"]["throttlingRateLimit"] == 7
    assert stage["defaultRouteSettings"]["throttlingBurstLimit"] == 9
    assert stage["accessLogSettings"]["destinationArn"].endswith("/aws/apigateway/port-webhook-test-api")
    integration = mocks.of("aws:apigatewayv2/integration:Integration")["w-listener-api-integration"]
    assert integration["payloadFormatVersion"] == "2.0"
    assert "port-webhook-test-receiver" in integration["integrationUri"]
    routes = mocks.of("aws:apigatewayv2/route:Route")
    # Every route leads to the function that verifies.
    assert {route["target"] for route in routes.values()} == {"integrations/w-listener-api-integration-id"}
    action = mocks.of("port-webhook:index:Action")["w-action-deploy"]
    url = action["invocationMethod"]["url"]
    assert url == "https://abc.execute-api.eu-west-1.amazonaws.com/webhooks/deploy"


def test_a_function_url_has_both_permissions_before_it(run: Run) -> None:
    mocks = run({"ingress": "function-url"})
    permissions = mocks.of("aws:lambda/permission:Permission")
    assert {(item["action"], item["principal"]) for item in permissions.values()} == {
        ("lambda:InvokeFunctionUrl", "*"),
        ("lambda:InvokeFunction", "*"),
    }
    assert permissions["w-listener-url-permission"]["functionUrlAuthType"] == "NONE"
    assert permissions["w-listener-url-invoke-permission"]["invokedViaFunctionUrl"] is True
    place = mocks.order.index("w-listener-url")
    assert all(mocks.order.index(name) < place for name in permissions)
    assert not mocks.of("aws:apigatewayv2/api:Api")


def test_a_customer_key_is_used_everywhere(run: Run) -> None:
    key = f"arn:aws:kms:{REGION}:{ACCOUNT}:key/1"
    mocks = run({"kmsKey": key})
    assert {item["kmsKeyId"] for item in mocks.of("aws:secretsmanager/secret:Secret").values()} == {key}
    assert {item["kmsMasterKeyId"] for item in mocks.of("aws:sqs/queue:Queue").values()} == {key}
    assert {item["kmsKeyArn"] for item in mocks.of("aws:lambda/function:Function").values()} == {key}
    assert (
        mocks.of("aws:dynamodb/table:Table")["w-listener-ledger"]["serverSideEncryption"]["kmsKeyArn"] == key
    )
    for policy in mocks.policies().values():
        assert {
            "Sid": "Key",
            "Effect": "Allow",
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
            "Resource": [key],
        } in (policy["Statement"])


def test_a_group_reaches_into_a_private_network(run: Run) -> None:
    network = {"subnets": ["subnet-1", "subnet-2"], "securityGroups": ["sg-1"], "memory": 1024}
    mocks = run({"groups": {"release": network}})
    functions = mocks.of("aws:lambda/function:Function")
    for part in ("worker", "sync"):
        function = functions[f"w-listener-{part}-release"]
        assert function["vpcConfig"] == {"subnetIds": ["subnet-1", "subnet-2"], "securityGroupIds": ["sg-1"]}
        assert function["memorySize"] == 1024
        statements = mocks.policies()[function["name"]]["Statement"]
        made, seen, denied = (item for item in statements if item["Sid"].startswith("Network"))
        assert made["Resource"] == [f"arn:aws:ec2:{REGION}:{ACCOUNT}:*/*"]
        assert {*made["Action"], *seen["Action"]} == set(denied["Action"])
        # Lambda attaches the function with its role; the handler must not use that.
        arn = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:{function['name']}"
        assert denied["Effect"] == "Deny"
        assert denied["Condition"] == {"ArnEquals": {"lambda:SourceFunctionArn": [arn]}}
    others = [inputs for name, inputs in functions.items() if not name.endswith("-release")]
    assert len(others) == 4
    assert not [inputs["name"] for inputs in others if inputs.get("vpcConfig")]
    assert not [name for name, p in mocks.policies().items() if "release" not in name and "ec2:" in str(p)]


def test_a_synchronous_handler_is_never_run_by_the_receiver_in_its_place(run: Run) -> None:
    network = {"subnets": ["subnet-1"], "securityGroups": ["sg-1"]}
    functions = run({"groups": {"default": network}}).of("aws:lambda/function:Function")
    assert functions["w-listener-sync-default"]["vpcConfig"]["subnetIds"] == ["subnet-1"]
    assert "vpcConfig" not in functions["w-listener-receiver"]


def test_alarms_watch_every_function_and_queue(run: Run) -> None:
    mocks = run({"alarmTopic": f"arn:aws:sns:{REGION}:{ACCOUNT}:t"})
    watched = {
        (alarm["metricName"], next(iter(alarm["dimensions"].values()), ""))
        for alarm in mocks.of("aws:cloudwatch/metricAlarm:MetricAlarm").values()
    }
    for function in mocks.of("aws:lambda/function:Function").values():
        assert ("Errors", function["name"]) in watched
        assert ("Throttles", function["name"]) in watched
    for name, queue in mocks.of("aws:sqs/queue:Queue").items():
        assert ("ApproximateAgeOfOldestMessage", queue["name"]) in watched
        if name.endswith("-dead"):
            assert ("ApproximateNumberOfMessagesVisible", queue["name"]) in watched
    for name in ("signature-failures", "not-accepted", "dead-letters-buried", "oldest-run"):
        assert (f"port-webhook-test-{name}", "") in watched
    # How old a run is, is written by every worker and by the outbox.
    ages = [
        inputs["logGroupName"].removeprefix("/aws/lambda/port-webhook-test-")
        for inputs in mocks.of("aws:cloudwatch/logMetricFilter:LogMetricFilter").values()
        if inputs["metricTransformation"]["value"] == "$.age"
    ]
    assert sorted(ages) == ["reporter", "worker-default", "worker-release"]


def test_the_agent_connects_outwards_only_and_follows_its_secret(run: Run) -> None:
    mocks = run({"agent": AGENT})
    group = mocks.of("aws:ec2/securityGroup:SecurityGroup")["w-agent-network"]
    assert group["ingress"] == []
    assert [rule["fromPort"] for rule in group["egress"]] == [443, 9196]
    task = mocks.of("aws:ecs/taskDefinition:TaskDefinition")["w-agent-task"]
    container = json.loads(task["containerDefinitions"])[0]
    assert container["image"] == IMAGE
    secret = f"arn:aws:secretsmanager:{REGION}:{ACCOUNT}:secret:port-webhook-test-agent"
    assert container["secrets"] == [
        {"name": name, "valueFrom": f"{secret}:{name}::11111111-2222"}
        for name in ("PORT_CLIENT_ID", "PORT_CLIENT_SECRET")
    ]
    assert container["healthCheck"]["command"][0] == "CMD"
    assert mocks.policies()["port-webhook-test-agent-start"]["Statement"][1]["Resource"] == [secret]
    service = mocks.of("aws:ecs/service:Service")["w-agent-service"]
    assert service["networkConfiguration"]["subnets"] == ["subnet-1"]
    assert service["launchType"] == "FARGATE"


def variables_of(container: Mapping[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container["environment"]}


@pytest.mark.parametrize("public", [None, "https://hooks.example.com:8443"])
def test_an_agent_of_ours_may_call_what_definitions_name(run: Run, public: str | None) -> None:
    listener = {"publicUrl": public} if public else {}
    mocks = run({"agent": {**AGENT, "kind": "own"}}, listener=listener)
    container = json.loads(
        mocks.of("aws:ecs/taskDefinition:TaskDefinition")["w-agent-task"]["containerDefinitions"]
    )[0]
    assert container["entryPoint"] == ["python", "-m", "port_webhook_handlers.agent"]
    url = mocks.of("port-webhook:index:Action")["w-action-deploy"]["invocationMethod"]["url"]
    assert from_environment(variables_of(container)).allowed_hosts == (urlsplit(url).netloc,)


def test_pull_mode_has_no_entry(run: Run) -> None:
    mocks = run({"ingress": "none", "agent": {**AGENT, "kind": "own"}}, verify="off")
    for kind in (
        "aws:apigatewayv2/api:Api",
        "aws:lambda/functionUrl:FunctionUrl",
        "aws:lambda/permission:Permission",
    ):
        assert not mocks.of(kind)
    container = json.loads(
        mocks.of("aws:ecs/taskDefinition:TaskDefinition")["w-agent-task"]["containerDefinitions"]
    )[0]
    assert container["entryPoint"] == ["python", "-m", "port_webhook_handlers.runtime.aws.agent"]
    # What the process itself makes of the container's variables.
    config, function, region = configured(variables_of(container))
    assert (config.source, config.name) == ("polling", "port-webhook-test")
    assert (function, region) == ("port-webhook-test-receiver", REGION)
    method = mocks.of("port-webhook:index:Action")["w-action-deploy"]["invocationMethod"]
    assert method["agent"] is True
    assert mocks.policies()["port-webhook-test-agent"]["Statement"] == [
        {
            "Sid": "Deliver",
            "Effect": "Allow",
            "Action": ["lambda:InvokeFunction"],
            "Resource": [f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:port-webhook-test-receiver"],
        }
    ]


def test_another_implementation_of_aws(run: Run) -> None:
    endpoints = dict.fromkeys(("sqs", "lambda"), "http://127.0.0.1:5000")
    provider = run({"endpoints": endpoints, "skipValidation": True}).of("pulumi:providers:aws")["w-aws"]
    assert json.loads(provider["endpoints"]) == [endpoints]
    assert provider["skipCredentialsValidation"] == "true"


def test_handlers_that_only_answer_need_no_worker(run: Run) -> None:
    source = HANDLERS.replace("max_concurrency=4", 'mode="sync"').replace(
        "timeout_seconds=300", "timeout_seconds=5"
    )
    source = source.replace('privilege_group="release", secrets=["TOKEN"], aws', 'mode="sync", aws')
    functions = run(source=source).of("aws:lambda/function:Function")
    assert sorted(name.removeprefix("w-listener-") for name in functions) == [
        "dead-letters",
        "receiver",
        "reporter",
        "sync-default",
        "sync-release",
    ]


def test_components_are_usable_alone(tmp_path: Path) -> None:
    mocks = AwsMocks()
    pulumi.runtime.set_mocks(mocks, project="another-project", stack="test", preview=False)
    settings = parse({"region": REGION, "agent": AGENT, "namePrefix": "own"}, "test", {}, tmp_path)
    assert settings.agent is not None
    agent = settings.agent

    @pulumi.runtime.test
    def program() -> pulumi.Output[str]:
        keys: dict[str, pulumi.Input[str]] = {
            "clientId": "id",
            "clientSecret": pulumi.Output.secret(CLIENT_SECRET),
        }
        store = AwsSecretsStore(
            "store", settings, signing=[{"value": CLIENT_SECRET}], api=keys, decryption=[], secrets={}
        )
        AwsAgent("agent", settings, agent, credentials=keys, port_base_url="https://api.getport.io")
        return store.version

    program()
    assert sorted(
        str(inputs["name"]) for inputs in mocks.of("aws:secretsmanager/secret:Secret").values()
    ) == [
        "own-agent",
        "own-api",
        "own-signing",
    ]
    assert "agent-service" in mocks.registered


def test_definitions_come_after_the_proof(run: Run) -> None:
    order = run().order
    assert order.index("w-listener-worker-release-source") < order.index("w-action-deploy")
    assert order.index("w-verification") < order.index("w-action-deploy")


MANY = "from port_webhook_handlers.sdk import Run, Success, action\n" + "".join(
    f"""
@action("do_{n}", title="Do", privilege_group="group-of-handlers-{n:02}")
def do_{n}(run: Run) -> Success:
    return Success()

@action("ask_{n}", title="Ask", privilege_group="group-of-handlers-{n:02}", mode="sync")
def ask_{n}(run: Run) -> Success:
    return Success()
"""
    for n in range(20)
)


@pytest.mark.parametrize(
    ("aws", "further", "error", "part"),
    [
        ({"region": None}, {}, SettingsError, "port-webhook-stack:aws.region: is missing"),
        ({"region": "europe"}, {}, SettingsError, "aws.region"),
        ({"agent": {**AGENT, "subnets": []}}, {}, SettingsError, "aws.agent.subnets: is missing"),
        ({"agent": {**AGENT, "image": "ghcr.io/x/agent:latest"}}, {}, SettingsError, "by digest"),
        ({"agent": {**AGENT, "memory": 8192}}, {}, SettingsError, "aws.agent.memory"),
        ({"namePrefix": "p" * 50}, {}, SettingsError, "aws.namePrefix: makes the name"),
        ({"namePrefx": "p"}, {}, SettingsError, "did you mean namePrefix"),
        ({"ingress": "none"}, {}, SettingsError, "nothing could reach the listener"),
        ({"ingress": "none", "agent": AGENT}, {}, SettingsError, "aws.agent.kind: is official"),
        (
            {"ingress": "none", "agent": {**AGENT, "kind": "own"}},
            {},
            SettingsError,
            "port-webhook-stack:verify",
        ),
        (
            {"ingress": "none", "agent": {**AGENT, "kind": "own"}},
            {"verify": "off", "listener": {"sourceAddresses": ["port"]}},
            SettingsError,
            "port-webhook-stack:listener.sourceAddresses: is set",
        ),
        (
            {"groups": {"release": {"subnets": ["subnet-1"]}}},
            {},
            SettingsError,
            "release.securityGroups: is missing",
        ),
        (
            {"groups": {"release": {"securityGroups": ["sg-1"]}}},
            {},
            SettingsError,
            "release.subnets: is missing",
        ),
        (
            {"groups": {"default": {"subnets": ["x"], "securityGroups": ["sg-1"]}}},
            {},
            SettingsError,
            "no subnet",
        ),
        ({"groups": {"relaese": {"memory": 256}}}, {}, SettingsError, "They have: default, release"),
        ({"groups": {"release": {"subnet": []}}}, {}, SettingsError, "did you mean subnets"),
        ({"logRetentionDays": 31}, {}, SettingsError, "aws.logRetentionDays"),
        ({"secretRecoveryDays": 3}, {}, SettingsError, "aws.secretRecoveryDays"),
        (
            {"endpoints": {"sqqs": "http://x"}},
            {},
            SettingsError,
            "aws.endpoints.sqqs: is no service of the provider; did you mean sqs?",
        ),
        ({"python": "3.9"}, {}, SettingsError, "aws.python"),
        ({}, {"listener": {"syncDeadlineSeconds": 29}}, SettingsError, "listener.syncDeadlineSeconds"),
        ({}, {"source": HANDLERS.replace("300", "871")}, StackError, "timeout_seconds of deploy is 871"),
        (
            {},
            {"source": HANDLERS.replace("ssm:Put", "smm:Put")},
            StackError,
            "did you mean ssm:PutParameter",
        ),
        (
            {},
            {"source": HANDLERS.replace("PutParameter", "PutParametr")},
            StackError,
            "aws_permissions of publish: unknown permission ssm:PutParametr: AWS has no such action of ssm; "
            "did you mean ssm:PutParameter?",
        ),
        ({}, {"source": HANDLERS.replace('"ssm:PutParameter"', '"ssm:*"')}, StackError, "without wildcards"),
        (
            {"namePrefix": "acme-production-of-platform"},
            {"source": HANDLERS.replace('"release"', '"very-long-name-of-a-group-of-it"')},
            SettingsError,
            "which has 66 characters; AWS takes 64. Use a prefix that is 2 shorter, or a shorter privilege group",
        ),
        (
            {},
            {"source": HANDLERS.replace('mode="sync")', 'mode="sync", timeout_seconds=29)')},
            StackError,
            "28 at most",
        ),
        (
            {"namePrefix": "platform-production"},
            {"source": MANY},
            SettingsError,
            "with 20 privilege groups; Lambda takes 4096. Use a shorter prefix",
        ),
        ({}, {"secret": False}, SettingsError, "secrets.TOKEN"),
        ({"requirements": ["none.txt"]}, {}, SettingsError, "aws.requirements[0]"),
    ],
)
def test_mistakes_are_named_at_preview(
    run: Run, aws: Mapping[str, object], further: dict[str, Any], error: type[Exception], part: str
) -> None:
    mocks = AwsMocks()
    with pytest.raises(error) as caught:
        mocks = run(aws, preview=True, **further)
    assert part in str(caught.value)
    assert mocks.registered == {}


def test_only_queues_and_functions_that_there_are_count_for_the_environment(run: Run) -> None:
    # Groups as in `MANY`, without synchronous handlers.
    source = MANY.replace(', mode="sync"', "")
    functions = run({"namePrefix": "platform-production"}, source=source).of("aws:lambda/function:Function")
    (variable,) = functions["w-listener-receiver"]["environment"]["variables"].items()
    assert len("".join(variable)) < 4096


def test_a_receiver_that_asks_port_gets_what_it_needs_for_that(run: Run) -> None:
    source = HANDLERS.replace('"Ask",', '"Ask", payload=payloads.RUN_ID_HEADER,').replace(
        "Success, action", "Success, action, payloads"
    )
    mocks = run(source=source, listener={"sourceAddresses": ["port", "10.0.0.0/8"], "trustedProxyHops": 1})
    variables = mocks.of("aws:lambda/function:Function")["w-listener-receiver"]["environment"]["variables"]
    receiver = json.loads(variables["PORT_WEBHOOK"])
    assert set(receiver["secrets"]) == {"signing", "api"}
    assert receiver["port_base_url"] == "https://api.getport.io"
    assert receiver["source_addresses"] == ["3.251.12.205", "34.252.219.131", "54.75.236.107", "10.0.0.0/8"]
    assert receiver["trusted_proxy_hops"] == 1
    (verify,) = [
        item
        for item in mocks.policies()["port-webhook-test-receiver"]["Statement"]
        if item["Sid"] == "Verify"
    ]
    assert [arn.rpartition(":")[2] for arn in verify["Resource"]] == [
        "port-webhook-test-api",
        "port-webhook-test-signing",
    ]
