"""The bundled handlers on target aws: statements for exactly the services of their settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pulumi
import pytest
from tests.component.aws.mocks import ACCOUNT, REGION, AwsMocks, settings_of

from port_webhook_stack import StackError, WebhookStack

BUNDLED = "port_webhook_handlers.bundled"
SETTINGS: dict[str, Any] = {
    "*": {
        "target": "ecs",
        "services": {
            "cart": {"cluster": "shop", "image": "registry.example.com/cart:{version}"},
            "mail": {"target": "lambda", "s3_bucket": "builds", "s3_key": "mail/{version}.zip"},
        },
    },
    "enqueue_on_sqs": {
        "queue_url": f"https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/tasks",
        "region": REGION,
    },
}


def registered(project: Path, settings: dict[str, Any]) -> AwsMocks:
    mocks = AwsMocks()
    pulumi.runtime.set_mocks(mocks, project="port-webhook-stack", stack="test", preview=False)
    modules = [f"{BUNDLED}.{name}" for name in ("deploy", "scale_restart", "running", "enqueue.sqs")]
    found = settings_of(project, handlers=modules, handlerSettings=settings)

    @pulumi.runtime.test
    def program() -> pulumi.Output[str]:
        return WebhookStack("w", found).url

    program()
    return mocks


def test_roles_hold_what_the_settings_need(tmp_path: Path) -> None:
    mocks = registered(tmp_path, SETTINGS)
    granted = {
        role.removeprefix("port-webhook-test-"): {
            (action, resource)
            for statement in policy["Statement"]
            if statement["Sid"].startswith("Handlers")
            for action in statement["Action"]
            for resource in statement["Resource"]
        }
        for role, policy in mocks.policies().items()
    }
    cart = f"arn:aws:ecs:{REGION}:{ACCOUNT}:service/shop/cart"
    mail = f"arn:aws:lambda:{REGION}:{ACCOUNT}:function:mail"
    look = {
        ("ecs:DescribeServices", cart),
        ("ecs:DescribeTaskDefinition", "*"),
        ("lambda:GetAlias", mail),
        ("lambda:GetFunctionConfiguration", mail),
        ("lambda:GetFunctionConfiguration", f"{mail}:*"),
    }
    assert granted == {
        "receiver": set(),
        "reporter": set(),
        "dead-letters": set(),
        "sync-look": look,
        "worker-enqueue": {("sqs:SendMessage", f"arn:aws:sqs:{REGION}:{ACCOUNT}:tasks")},
        "worker-deploy": look
        | {
            ("ecs:RegisterTaskDefinition", "*"),
            ("ecs:UpdateService", cart),
            ("lambda:PublishVersion", mail),
            ("lambda:UpdateAlias", mail),
            ("lambda:UpdateFunctionCode", mail),
            ("s3:GetObject", "arn:aws:s3:::builds/mail/*.zip"),
        },
    }
    # Only functions with permissions hand their credentials on.
    environments = {
        name: inputs["environment"]["variables"]["PORT_WEBHOOK"]
        for name, inputs in mocks.of("aws:lambda/function:Function").items()
    }
    assert {name for name, text in environments.items() if '"credentials":true' in text.replace(" ", "")} == {
        "w-listener-sync-look",
        "w-listener-worker-deploy",
        "w-listener-worker-enqueue",
    }


def test_settings_that_cannot_be_granted_stop_the_preview(tmp_path: Path) -> None:
    wrong = {"*": {"target": "ecs", "services": {"cart": {"cluster": "shop", "image": "cart:latest"}}}}
    with pytest.raises(
        StackError, match=r"handlerSettings of .*: services.cart.image: must hold \{version\}"
    ):
        registered(tmp_path, wrong)
