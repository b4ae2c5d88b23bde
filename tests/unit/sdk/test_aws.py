"""Permissions in AWS, as handlers declare them."""

from __future__ import annotations

from typing import Any

import pytest

from port_webhook_handlers.sdk import Run, Success, action
from port_webhook_handlers.sdk.aws import problem_with, statements
from port_webhook_handlers.sdk.errors import HandlerDefinitionError

PARAMETER = "arn:{partition}:ssm:{region}:{account}:parameter/live"
GOOD = {"actions": ["ssm:PutParameter"], "resources": [PARAMETER]}


def test_exact_permissions_are_taken_as_they_are() -> None:
    assert problem_with([GOOD]) is None
    assert statements([{"actions": ("ssm:PutParameter",), "resources": (PARAMETER,)}]) == [GOOD]


FUNCTION = "arn:{partition}:lambda:{region}:{account}:function:cart"


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("ecs:DescribeTaskDefinition", "*"),
        ("lambda:GetFunctionConfiguration", f"{FUNCTION}:*"),
        ("s3:GetObject", "arn:{partition}:s3:::builds/cart-*.zip"),
    ],
)
def test_where_aws_has_no_exact_name_there_is_none(action: str, resource: str) -> None:
    assert problem_with([{"actions": [action], "resources": [resource]}]) is None
    # Not for any other action beside it.
    service = action.partition(":")[0]
    both = {"actions": [action, f"{service}:DeleteAll"], "resources": [resource]}
    assert "wildcard" in str(problem_with([both]))


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ({"actions": ["ssm:*"], "resources": [PARAMETER]}, "without wildcards"),
        ({"actions": ["*"], "resources": [PARAMETER]}, "without wildcards"),
        ({"actions": ["smm:PutParameter"], "resources": [PARAMETER]}, "did you mean ssm:PutParameter"),
        ({"actions": ["zzzzzz:Do"], "resources": [PARAMETER]}, "unknown permission zzzzzz:Do"),
        ({"actions": ["ssm:putParameter"], "resources": [PARAMETER]}, "service:Action"),
        ({"actions": ["ssm:PutParameter"], "resources": ["*"]}, "wildcard"),
        ({"actions": ["ssm:PutParameter"], "resources": [PARAMETER + "/*"]}, "wildcard"),
        ({"actions": ["ssm:PutParameter"], "resources": ["live"]}, "is no ARN"),
        ({"actions": ["ssm:PutParameter"], "resources": ["arn:{zone}:ssm:a:b:c"]}, "placeholder"),
        ({"actions": ["s3:GetObject"], "resources": [PARAMETER]}, "resource of ssm"),
        ({"actions": [], "resources": [PARAMETER]}, "at least one"),
        ({"actions": ["lambda:GetFunctionConfiguration"], "resources": [FUNCTION + "*"]}, "wildcard"),
        ({"actions": ["s3:GetObject"], "resources": ["arn:{partition}:s3:::*/cart"]}, "wildcard"),
        ({"actions": ["ecs:UpdateService"], "resources": ["*"]}, "wildcard"),
        ({"actions": ["ssm:PutParameter"]}, "keys actions and resources"),
    ],
)
def test_what_a_reviewer_could_not_sign_is_refused(statement: dict[str, Any], part: str) -> None:
    assert part in str(problem_with([statement]))


def test_the_decorator_names_the_place() -> None:
    with pytest.raises(HandlerDefinitionError, match=r"@action 'a': aws_permissions\[0\].actions: 'ssm:\*'"):

        @action("a", aws_permissions=[{"actions": ["ssm:*"], "resources": [PARAMETER]}])
        def handle(run: Run) -> Success:
            return Success()
