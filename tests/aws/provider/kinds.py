"""What each resource type of AWS needs, what it becomes, and which change makes a new one.

Resources that moto knows are really made there. Required inputs and what replaces a resource follow the schema of
pulumi-aws 7, as far as this project's components use it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Values = dict[str, Any]


class Cloud:
    """Clients of boto3 with the provider's endpoints and region."""

    def __init__(self, region: str, endpoints: Mapping[str, str]) -> None:
        self.region = region
        self.account = "123456789012"
        self._endpoints = endpoints
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        import boto3

        if service not in self._clients:
            self._clients[service] = boto3.client(
                service,
                region_name=self.region,
                # Without an endpoint nothing must reach the real AWS.
                endpoint_url=self._endpoints.get(service, "http://127.0.0.1:9"),
            )
        return self._clients[service]

    def arn(self, service: str, name: str) -> str:
        return f"arn:aws:{service}:{self.region}:{self.account}:{name}"


@dataclass(frozen=True)
class Kind:
    """A resource type.

    Attributes:
        required: inputs without which it cannot be made.
        computed: outputs that are known only once it exists.
        replaces: inputs whose change makes a new one.
        make: makes it; returns its outputs, `id` among them.
        change: brings it from old to new inputs; returns changed outputs.
        remove: removes it, by its outputs.
        longest: of its name.
    """

    required: tuple[str, ...] = ()
    computed: tuple[str, ...] = ("arn",)
    replaces: tuple[str, ...] = ("name",)
    make: Callable[[Cloud, Values], Values] = field(default=lambda cloud, given: {})
    change: Callable[[Cloud, Values, Values], Values] = field(default=lambda cloud, old, new: {})
    remove: Callable[[Cloud, Values], None] = field(default=lambda cloud, old: None)
    longest: int = 255


def _tags(given: Values) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in (given.get("tags") or {}).items()]


def _upper(value: Any) -> Any:
    """`retentionInDays` → `RetentionInDays`, at every depth; absent values are left out."""
    if isinstance(value, dict):
        return {key[0].upper() + key[1:]: _upper(item) for key, item in value.items() if item is not None}
    return [_upper(item) for item in value] if isinstance(value, list) else value


def _anew(make: Callable[[Cloud, Values], Values]) -> Callable[[Cloud, Values, Values], Values]:
    """For what is written over."""

    def change(cloud: Cloud, old: Values, new: Values) -> Values:
        make(cloud, new)
        return {}

    return change


# Logs, roles


def _log_group(cloud: Cloud, given: Values) -> Values:
    key = {"kmsKeyId": given["kmsKeyId"]} if given.get("kmsKeyId") else {}
    cloud.client("logs").create_log_group(logGroupName=given["name"], tags=given.get("tags") or {}, **key)
    _retention(cloud, {}, given)
    return {"id": given["name"], "arn": cloud.arn("logs", f"log-group:{given['name']}")}


def _retention(cloud: Cloud, old: Values, given: Values) -> Values:
    days = given["retentionInDays"]
    cloud.client("logs").put_retention_policy(logGroupName=given["name"], retentionInDays=days)
    return {}


def _role(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("iam").create_role(
        RoleName=given["name"], AssumeRolePolicyDocument=given["assumeRolePolicy"], Tags=_tags(given)
    )["Role"]
    return {"id": given["name"], "arn": made["Arn"]}


def _role_policy(cloud: Cloud, given: Values) -> Values:
    json.loads(given["policy"])
    cloud.client("iam").put_role_policy(
        RoleName=given["role"], PolicyName=given["name"], PolicyDocument=given["policy"]
    )
    return {"id": f"{given['role']}:{given['name']}"}


def _no_role_policy(cloud: Cloud, old: Values) -> None:
    cloud.client("iam").delete_role_policy(RoleName=old["role"], PolicyName=old["name"])


# Queues, table, secrets

_QUEUE = {
    "messageRetentionSeconds": "MessageRetentionPeriod",
    "maxMessageSize": "MaximumMessageSize",
    "visibilityTimeoutSeconds": "VisibilityTimeout",
    "redrivePolicy": "RedrivePolicy",
    "kmsMasterKeyId": "KmsMasterKeyId",
    "sqsManagedSseEnabled": "SqsManagedSseEnabled",
    "fifoQueue": "FifoQueue",
    "deduplicationScope": "DeduplicationScope",
    "fifoThroughputLimit": "FifoThroughputLimit",
}


def _attributes(given: Values) -> dict[str, str]:
    found = {theirs: given[ours] for ours, theirs in _QUEUE.items() if given.get(ours) is not None}
    return {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in found.items()
    }


def _queue(cloud: Cloud, given: Values) -> Values:
    url = cloud.client("sqs").create_queue(
        QueueName=given["name"], Attributes=_attributes(given), tags=given.get("tags") or {}
    )["QueueUrl"]
    return {"id": url, "url": url, "arn": cloud.arn("sqs", given["name"])}


def _queue_changed(cloud: Cloud, old: Values, given: Values) -> Values:
    cloud.client("sqs").set_queue_attributes(QueueUrl=old["url"], Attributes=_attributes(given))
    return {}


def _redrive_allow(cloud: Cloud, given: Values) -> Values:
    text = given["redriveAllowPolicy"]
    json.loads(text)
    cloud.client("sqs").set_queue_attributes(
        QueueUrl=given["queueUrl"], Attributes={"RedriveAllowPolicy": text}
    )
    return {"id": given["queueUrl"]}


def _table(cloud: Cloud, given: Values) -> Values:
    indexes = [
        {
            "IndexName": index["name"],
            "KeySchema": [
                {"AttributeName": key["attributeName"], "KeyType": key["keyType"]}
                for key in index["keySchemas"]
            ],
            "Projection": {"ProjectionType": index["projectionType"]},
        }
        for index in given.get("globalSecondaryIndexes") or []
    ]
    cloud.client("dynamodb").create_table(
        TableName=given["name"],
        BillingMode=given["billingMode"],
        KeySchema=[{"AttributeName": given["hashKey"], "KeyType": "HASH"}],
        AttributeDefinitions=[
            {"AttributeName": item["name"], "AttributeType": item["type"]} for item in given["attributes"]
        ],
        GlobalSecondaryIndexes=indexes,
        DeletionProtectionEnabled=bool(given.get("deletionProtectionEnabled")),
        Tags=_tags(given),
    )
    return {"id": given["name"], "arn": cloud.arn("dynamodb", f"table/{given['name']}")}


def _table_changed(cloud: Cloud, old: Values, given: Values) -> Values:
    cloud.client("dynamodb").update_table(
        TableName=given["name"], DeletionProtectionEnabled=bool(given.get("deletionProtectionEnabled"))
    )
    return {}


def _secret(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("secretsmanager").create_secret(Name=given["name"], Tags=_tags(given))
    return {"id": made["ARN"], "arn": made["ARN"]}


def _no_secret(cloud: Cloud, old: Values) -> None:
    days = old.get("recoveryWindowInDays", 30)
    how = {"RecoveryWindowInDays": days} if days else {"ForceDeleteWithoutRecovery": True}
    cloud.client("secretsmanager").delete_secret(SecretId=old["arn"], **how)


def _secret_version(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("secretsmanager").put_secret_value(
        SecretId=given["secretId"], SecretString=given["secretString"]
    )
    version = made["VersionId"]
    return {"id": f"{given['secretId']}|{version}", "arn": given["secretId"], "versionId": version}


# Functions


def _code(given: Values) -> bytes:
    data = Path(given["code"]["path"]).read_bytes()
    found = base64.b64encode(hashlib.sha256(data).digest()).decode()
    if given.get("sourceCodeHash") not in (None, found):
        raise ValueError("sourceCodeHash is not the hash of code")
    return data


def _configuration(given: Values) -> Values:
    logging = given.get("loggingConfig") or {}
    vpc = given.get("vpcConfig")
    return {
        "Runtime": given["runtime"],
        "Role": given["role"],
        "Handler": given["handler"],
        "Timeout": given["timeout"],
        "MemorySize": given["memorySize"],
        "Environment": {"Variables": given["environment"]["variables"]},
        "LoggingConfig": _upper(logging),
        **({"KMSKeyArn": given["kmsKeyArn"]} if given.get("kmsKeyArn") else {}),
        **({"VpcConfig": _upper({k: vpc[k] for k in ("subnetIds", "securityGroupIds")})} if vpc else {}),
    }


def _function(cloud: Cloud, given: Values) -> Values:
    code = _code(given)
    cloud.client("lambda").create_function(
        FunctionName=given["name"],
        Code={"ZipFile": code},
        Architectures=given["architectures"],
        Tags=given.get("tags") or {},
        **_configuration(given),
    )
    if given.get("reservedConcurrentExecutions") is not None:
        cloud.client("lambda").put_function_concurrency(
            FunctionName=given["name"], ReservedConcurrentExecutions=given["reservedConcurrentExecutions"]
        )
    arn = cloud.arn("lambda", f"function:{given['name']}")
    invoke = f"arn:aws:apigateway:{cloud.region}:lambda:path/2015-03-31/functions/{arn}/invocations"
    return {"id": given["name"], "arn": arn, "invokeArn": invoke}


def _function_changed(cloud: Cloud, old: Values, given: Values) -> Values:
    client = cloud.client("lambda")
    if old.get("sourceCodeHash") != given.get("sourceCodeHash"):
        client.update_function_code(FunctionName=given["name"], ZipFile=_code(given))
    if _configuration(old) != _configuration(given):
        client.update_function_configuration(FunctionName=given["name"], **_configuration(given))
    return {}


def _permission(cloud: Cloud, given: Values) -> Values:
    name = f"pulumi-{hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]}"
    optional = {
        "SourceArn": given.get("sourceArn"),
        "FunctionUrlAuthType": given.get("functionUrlAuthType"),
        "InvokedViaFunctionUrl": given.get("invokedViaFunctionUrl"),
    }
    cloud.client("lambda").add_permission(
        FunctionName=given["function"],
        StatementId=name,
        Action=given["action"],
        Principal=given["principal"],
        **{key: value for key, value in optional.items() if value is not None},
    )
    return {"id": name, "statementId": name}


def _no_permission(cloud: Cloud, old: Values) -> None:
    cloud.client("lambda").remove_permission(FunctionName=old["function"], StatementId=old["statementId"])


def _function_url(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("lambda").create_function_url_config(
        FunctionName=given["functionName"], AuthType=given["authorizationType"]
    )
    return {"id": given["functionName"], "functionUrl": made["FunctionUrl"], "functionArn": ""}


def _no_function_url(cloud: Cloud, old: Values) -> None:
    cloud.client("lambda").delete_function_url_config(FunctionName=old["functionName"])


def _source(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("lambda").create_event_source_mapping(
        EventSourceArn=given["eventSourceArn"],
        FunctionName=given["functionName"],
        BatchSize=given["batchSize"],
        FunctionResponseTypes=given["functionResponseTypes"],
    )
    return {"id": made["UUID"], "uuid": made["UUID"]}


def _no_source(cloud: Cloud, old: Values) -> None:
    cloud.client("lambda").delete_event_source_mapping(UUID=old["uuid"])


# The HTTP API


def _api(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("apigatewayv2").create_api(
        Name=given["name"], ProtocolType=given["protocolType"], Tags=given.get("tags") or {}
    )
    name = made["ApiId"]
    return {"id": name, "apiEndpoint": made["ApiEndpoint"], "executionArn": cloud.arn("execute-api", name)}


def _integration(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("apigatewayv2").create_integration(
        ApiId=given["apiId"],
        IntegrationType=given["integrationType"],
        IntegrationUri=given["integrationUri"],
        PayloadFormatVersion=given["payloadFormatVersion"],
        TimeoutInMillis=given["timeoutMilliseconds"],
    )
    return {"id": made["IntegrationId"]}


def _route(cloud: Cloud, given: Values) -> Values:
    made = cloud.client("apigatewayv2").create_route(
        ApiId=given["apiId"], RouteKey=given["routeKey"], Target=given["target"]
    )
    return {"id": made["RouteId"]}


# Alarms


def _alarm(cloud: Cloud, given: Values) -> Values:
    cloud.client("cloudwatch").put_metric_alarm(
        AlarmName=given["name"],
        AlarmDescription=given.get("alarmDescription", ""),
        Namespace=given["namespace"],
        MetricName=given["metricName"],
        Statistic=given["statistic"],
        Dimensions=[
            {"Name": name, "Value": value} for name, value in (given.get("dimensions") or {}).items()
        ],
        Period=given["period"],
        EvaluationPeriods=given["evaluationPeriods"],
        ComparisonOperator=given["comparisonOperator"],
        Threshold=given["threshold"],
        TreatMissingData=given["treatMissingData"],
        AlarmActions=given.get("alarmActions") or [],
        OKActions=given.get("okActions") or [],
    )
    return {"id": given["name"], "arn": cloud.arn("cloudwatch", f"alarm:{given['name']}")}


def _metric_filter(cloud: Cloud, given: Values) -> Values:
    transformation = given["metricTransformation"]
    sent = {
        "metricName": transformation["name"],
        "metricNamespace": transformation["namespace"],
        "metricValue": transformation["value"],
    }
    cloud.client("logs").put_metric_filter(
        filterName=given["name"],
        logGroupName=given["logGroupName"],
        filterPattern=given["pattern"],
        metricTransformations=[sent],
    )
    return {"id": given["name"]}


def _no_metric_filter(cloud: Cloud, old: Values) -> None:
    cloud.client("logs").delete_metric_filter(logGroupName=old["logGroupName"], filterName=old["name"])


def _plain(service: str, prefix: str = "") -> Callable[[Cloud, Values], Values]:
    """Something that is only named, not made."""

    def make(cloud: Cloud, given: Values) -> Values:
        name = str(given.get("name") or given.get("family") or "1")
        return {"id": name, "arn": cloud.arn(service, f"{prefix}{name}")}

    return make


KINDS: dict[str, Kind] = {
    "aws:cloudwatch/logGroup:LogGroup": Kind(
        make=_log_group,
        change=_retention,
        remove=lambda cloud, old: cloud.client("logs").delete_log_group(logGroupName=old["name"]),
        longest=512,
    ),
    "aws:cloudwatch/logMetricFilter:LogMetricFilter": Kind(
        ("logGroupName", "metricTransformation", "pattern"),
        (),
        ("name", "logGroupName"),
        _metric_filter,
        _anew(_metric_filter),
        _no_metric_filter,
    ),
    "aws:cloudwatch/metricAlarm:MetricAlarm": Kind(
        ("comparisonOperator", "evaluationPeriods"),
        make=_alarm,
        change=_anew(_alarm),
        remove=lambda cloud, old: cloud.client("cloudwatch").delete_alarms(AlarmNames=[old["name"]]),
    ),
    "aws:iam/role:Role": Kind(
        ("assumeRolePolicy",),
        make=_role,
        remove=lambda cloud, old: cloud.client("iam").delete_role(RoleName=old["name"]),
        longest=64,
    ),
    "aws:iam/rolePolicy:RolePolicy": Kind(
        ("role", "policy"),
        (),
        ("name", "role"),
        _role_policy,
        _anew(_role_policy),
        _no_role_policy,
        128,
    ),
    "aws:sqs/queue:Queue": Kind(
        (),
        ("arn", "url"),
        ("name", "fifoQueue"),
        _queue,
        _queue_changed,
        lambda cloud, old: cloud.client("sqs").delete_queue(QueueUrl=old["url"]),
        80,
    ),
    "aws:sqs/redriveAllowPolicy:RedriveAllowPolicy": Kind(
        ("queueUrl", "redriveAllowPolicy"),
        (),
        ("queueUrl",),
        _redrive_allow,
        _anew(_redrive_allow),
    ),
    "aws:dynamodb/table:Table": Kind(
        (),
        ("arn",),
        ("name", "hashKey", "rangeKey"),
        _table,
        _table_changed,
        lambda cloud, old: cloud.client("dynamodb").delete_table(TableName=old["name"]),
    ),
    "aws:secretsmanager/secret:Secret": Kind(make=_secret, remove=_no_secret, longest=512),
    "aws:secretsmanager/secretVersion:SecretVersion": Kind(
        ("secretId",), ("arn", "versionId"), ("secretId", "secretString"), _secret_version
    ),
    "aws:lambda/function:Function": Kind(
        ("role",),
        ("arn", "invokeArn"),
        ("name",),
        _function,
        _function_changed,
        lambda cloud, old: cloud.client("lambda").delete_function(FunctionName=old["name"]),
        64,
    ),
    "aws:lambda/permission:Permission": Kind(
        ("action", "function", "principal"),
        ("statementId",),
        ("action", "function", "principal", "sourceArn", "functionUrlAuthType", "invokedViaFunctionUrl"),
        _permission,
        remove=_no_permission,
    ),
    "aws:lambda/functionUrl:FunctionUrl": Kind(
        ("authorizationType", "functionName"),
        ("functionUrl", "functionArn"),
        ("functionName",),
        _function_url,
        remove=_no_function_url,
    ),
    "aws:lambda/eventSourceMapping:EventSourceMapping": Kind(
        ("functionName",), ("uuid",), ("eventSourceArn",), _source, remove=_no_source
    ),
    "aws:apigatewayv2/api:Api": Kind(
        ("protocolType",),
        ("apiEndpoint", "executionArn"),
        ("protocolType",),
        _api,
        remove=lambda cloud, old: cloud.client("apigatewayv2").delete_api(ApiId=old["id"]),
        longest=128,
    ),
    "aws:apigatewayv2/integration:Integration": Kind(
        ("apiId", "integrationType"), (), ("apiId", "integrationType"), _integration
    ),
    "aws:apigatewayv2/route:Route": Kind(("apiId", "routeKey"), (), ("apiId",), _route),
    "aws:apigatewayv2/stage:Stage": Kind(
        ("apiId",), ("arn",), ("apiId", "name"), _plain("apigateway", "stage/")
    ),
    "aws:ec2/securityGroup:SecurityGroup": Kind(
        (), ("arn",), ("name", "vpcId"), _plain("ec2", "security-group/sg-")
    ),
    "aws:ecs/cluster:Cluster": Kind((), ("arn",), ("name",), _plain("ecs", "cluster/")),
    "aws:ecs/taskDefinition:TaskDefinition": Kind(
        ("containerDefinitions", "family"),
        ("arn", "revision"),
        ("containerDefinitions", "cpu", "family", "memory", "executionRoleArn", "taskRoleArn"),
        _plain("ecs", "task-definition/"),
    ),
    "aws:ecs/service:Service": Kind((), (), ("name", "cluster", "launchType"), _plain("ecs", "service/")),
}

ANY = Kind(make=_plain("unknown"))
"""Whatever else there is of AWS."""
