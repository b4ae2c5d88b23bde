"""Pulumi's mocks for target aws: what was registered, with ARNs and URLs as AWS would make them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pulumi

from port_webhook_stack.settings import Settings, parse

ACCOUNT = "123456789012"
REGION = "eu-west-1"
CLIENT_SECRET = "planted-client-secret"

HANDLERS = """
from port_webhook_handlers.sdk import Field, Inputs, Run, Success, action

class Form(Inputs):
    text: str = ""

@action("deploy", title="Deploy", timeout_seconds=300, max_concurrency=4)
def deploy(inputs: Form, run: Run) -> Success:
    return Success()

@action("publish", title="Publish", privilege_group="release", secrets=["TOKEN"], aws_permissions=[
    {"actions": ["ssm:PutParameter"], "resources": ["arn:{partition}:ssm:{region}:{account}:parameter/live"]}])
def publish(inputs: Form, run: Run) -> Success:
    return Success()

@action("ask", title="Ask", mode="sync")
def ask(inputs: Form, run: Run) -> Success:
    return Success()

@action("vault", title="Vault", mode="sync", privilege_group="release", secrets=["TOKEN"])
def vault(inputs: Form, run: Run) -> Success:
    return Success()
"""


class AwsMocks(pulumi.runtime.Mocks):
    """Answers as the provider would, and keeps what was registered."""

    def __init__(self) -> None:
        self.registered: dict[str, pulumi.runtime.MockResourceArgs] = {}
        self.order: list[str] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str | None, dict[Any, Any]]:
        if isinstance(archive := args.inputs.get("code"), pulumi.FileArchive):
            args.inputs["code"] = archive.path
        self.registered[args.name] = args
        self.order.append(args.name)
        name = args.inputs.get("name", args.name)
        outputs = dict(args.inputs)
        service = args.typ.split("/")[0].removeprefix("aws:").split(":")[0].lower()
        if args.typ == "aws:cloudwatch/logGroup:LogGroup":
            service = "logs"
        outputs["arn"] = f"arn:aws:{service}:{REGION}:{ACCOUNT}:{_kind(args.typ)}{name}"
        match args.typ:
            case "aws:sqs/queue:Queue":
                outputs["url"] = f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/{name}"
            case "aws:lambda/function:Function":
                outputs["invokeArn"] = f"arn:aws:apigateway:{REGION}:lambda:path/functions/{name}"
            case "aws:lambda/functionUrl:FunctionUrl":
                outputs["functionUrl"] = "https://abc.lambda-url.eu-west-1.on.aws/"
            case "aws:apigatewayv2/api:Api":
                outputs["apiEndpoint"] = "https://abc.execute-api.eu-west-1.amazonaws.com"
                outputs["executionArn"] = f"arn:aws:execute-api:{REGION}:{ACCOUNT}:abc"
            case "aws:secretsmanager/secretVersion:SecretVersion":
                outputs["versionId"] = "11111111-2222"
            case "port-webhook:index:Verification":
                outputs["checks"] = ["signed"]
        return f"{args.name}-id", outputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[Any, Any]:
        return {}

    def of(self, kind: str) -> dict[str, Mapping[str, Any]]:
        """Inputs of the resources of a type by Pulumi's name."""
        return {name: args.inputs for name, args in self.registered.items() if args.typ == kind}

    def policies(self) -> dict[str, dict[str, Any]]:
        """The policies of roles by part of the function's name."""
        return {
            str(inputs["role"]): json.loads(inputs["policy"])
            for inputs in self.of("aws:iam/rolePolicy:RolePolicy").values()
        }


def _kind(typ: str) -> str:
    return {
        "aws:cloudwatch/logGroup:LogGroup": "log-group:",
        "aws:dynamodb/table:Table": "table/",
        "aws:lambda/function:Function": "function:",
        "aws:secretsmanager/secret:Secret": "secret:",
        "aws:iam/role:Role": "role/",
    }.get(typ, "")


def settings_of(
    project: Path, aws: Mapping[str, object] | None = None, secret: bool = True, **further: object
) -> Settings:
    """Settings of a stack `test` of target aws."""
    (project / "hooks.py").write_text(further.pop("source", HANDLERS))  # type: ignore[arg-type]
    values: dict[str, object] = {
        "target": "aws",
        "handlers": ["hooks.py"],
        "aws": {"region": REGION, "architecture": "x86_64", **(aws or {})},
        **({"secrets": {"TOKEN": "planted-token"}} if secret else {}),
        **further,
    }
    texts = {f"port-webhook-stack:{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}
    texts |= {
        "port-webhook:region": "eu",
        "port-webhook:clientId": "org",
        "port-webhook:clientSecret": CLIENT_SECRET,
    }
    return parse("test", texts, frozenset({"port-webhook-stack:secrets"}), {}, project)
