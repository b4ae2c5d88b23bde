"""How requests reach the receiver: an HTTP API, or a Function URL. Both lead to the function that verifies."""

from __future__ import annotations

import json
from typing import Final

import pulumi
import pulumi_aws as aws

from port_webhook_stack.aws.naming import Naming

_INTEGRATION_MILLISECONDS: Final = 30_000
_ACCESS_LOG: Final = json.dumps(
    {
        "time": "$context.requestTime",
        "request": "$context.requestId",
        "source": "$context.identity.sourceIp",
        "method": "$context.httpMethod",
        "path": "$context.path",
        "status": "$context.status",
        "bytes": "$context.responseLength",
        "milliseconds": "$context.responseLatency",
        "error": "$context.integrationErrorMessage",
    }
)


def http_api(naming: Naming, receiver: aws.lambda_.Function) -> pulumi.Output[str]:
    """Makes an HTTP API with throttling and access logs; its URL without a trailing slash."""
    settings = naming.settings
    api = aws.apigatewayv2.Api(
        naming.resource("api"),
        name=naming.aws("api"),
        protocol_type="HTTP",
        tags=naming.tags,
        opts=naming.opts(),
    )
    integration = aws.apigatewayv2.Integration(
        naming.resource("api-integration"),
        api_id=api.id,
        integration_type="AWS_PROXY",
        integration_uri=receiver.invoke_arn,
        payload_format_version="2.0",
        timeout_milliseconds=_INTEGRATION_MILLISECONDS,
        opts=naming.opts(),
    )
    routes = [
        aws.apigatewayv2.Route(
            naming.resource(f"api-{part}"),
            api_id=api.id,
            route_key=key,
            target=integration.id.apply(lambda name: f"integrations/{name}"),
            opts=naming.opts(),
        )
        # The signature is what authorises a request, and the receiver checks it.
        for part, key in (("webhooks", "ANY /webhooks/{route+}"), ("health", "GET /health"))
    ]
    logs = aws.cloudwatch.LogGroup(
        naming.resource("api-logs"),
        name=f"/aws/apigateway/{naming.aws('api')}",
        retention_in_days=settings.log_retention_days,
        kms_key_id=settings.kms_key,
        tags=naming.tags,
        opts=naming.opts(),
    )
    aws.apigatewayv2.Stage(
        naming.resource("api-stage"),
        api_id=api.id,
        name="$default",
        auto_deploy=True,
        default_route_settings=aws.apigatewayv2.StageDefaultRouteSettingsArgs(
            throttling_rate_limit=settings.throttling.rate,
            throttling_burst_limit=settings.throttling.burst,
            detailed_metrics_enabled=True,
        ),
        access_log_settings=aws.apigatewayv2.StageAccessLogSettingsArgs(
            destination_arn=logs.arn, format=_ACCESS_LOG
        ),
        tags=naming.tags,
        opts=naming.opts(routes),
    )
    aws.lambda_.Permission(
        naming.resource("api-permission"),
        action="lambda:InvokeFunction",
        function=receiver.name,
        principal="apigateway.amazonaws.com",
        # Any stage, method and path of this one API.
        source_arn=api.execution_arn.apply(lambda arn: f"{arn}/*/*"),
        opts=naming.opts(),
    )
    return api.api_endpoint.apply(lambda url: url.rstrip("/"))


def function_url(naming: Naming, receiver: aws.lambda_.Function) -> pulumi.Output[str]:
    """Makes a public Function URL; the URL without a trailing slash.

    Since October 2025 AWS wants two permissions for it, and answers 403 to everything if one is missing.
    """
    permissions = [
        aws.lambda_.Permission(
            naming.resource("url-permission"),
            action="lambda:InvokeFunctionUrl",
            function=receiver.name,
            principal="*",
            function_url_auth_type="NONE",
            opts=naming.opts(),
        ),
        aws.lambda_.Permission(
            naming.resource("url-invoke-permission"),
            action="lambda:InvokeFunction",
            function=receiver.name,
            principal="*",
            invoked_via_function_url=True,
            opts=naming.opts(),
        ),
    ]
    url = aws.lambda_.FunctionUrl(
        naming.resource("url"),
        function_name=receiver.name,
        authorization_type="NONE",
        opts=naming.opts(permissions),
    )
    return url.function_url.apply(lambda found: found.rstrip("/"))
