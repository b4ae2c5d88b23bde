"""Target aws of the facade: secrets, listener and agent in an account."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
import pulumi_aws as aws

from port_webhook_handlers.bundle import Bundle
from port_webhook_handlers.port.regions import API_BASE_URLS
from port_webhook_stack.agent.aws import AwsAgent
from port_webhook_stack.aws import plan as plans
from port_webhook_stack.aws.plan import Plan
from port_webhook_stack.aws.settings import KEY, AwsSettings
from port_webhook_stack.deployed import Deployed
from port_webhook_stack.errors import SettingsError
from port_webhook_stack.listener.aws import AwsListener
from port_webhook_stack.secrets_store.aws import AwsSecretsStore
from port_webhook_stack.settings import ROTATION_OVERLAP_SECONDS, Settings

_REQUIREMENTS = Path(__file__).resolve().parents[3] / "requirements"


def plan(settings: Settings, bundle: Bundle) -> Plan:
    """What is deployed, checked before anything is registered.

    Raises:
        StackError: settings, handlers and target do not fit together.
    """
    target = settings.aws
    if target is None:
        raise SettingsError(KEY, "is missing", "Set region at least; see stacks/Pulumi.aws-dev.yaml")
    base = API_BASE_URLS.get(settings.region or "", settings.base_url)
    if settings.is_local_port or base is None:
        raise SettingsError(
            "port-webhook:region",
            "is local, but functions in AWS cannot reach a Port on this machine",
            "Use eu or us with an organisation for trying things, or target local",
        )
    if target.ingress == "none" and target.agent is not None and target.agent.kind != "own":
        raise SettingsError(
            f"{KEY}.agent.kind",
            "is official, but Port's own agent delivers to addresses only",
            "Set it to own, or aws.ingress to http-api",
        )
    if target.ingress == "none" and settings.verify == "http":
        raise SettingsError(
            "port-webhook-stack:verify",
            "is http, but without an ingress there is no address to probe",
            "Set it to off, or aws.ingress to http-api",
        )
    if target.ingress == "none" and settings.listener.source_addresses:
        raise SettingsError(
            "port-webhook-stack:listener.sourceAddresses",
            "is set, but without an ingress the agent hands over every request, which then has no address",
            "Remove it, or set aws.ingress to http-api",
        )
    _endpoints(target)
    return plans.plan(
        bundle,
        target,
        archives=settings.state_dir / "lambda",
        requirements=_REQUIREMENTS,
        handler_settings=settings.handler_settings,
        port_base_url=base,
        sync_deadline_seconds=settings.listener.sync_deadline_seconds,
        tolerance_seconds=settings.listener.tolerance_seconds,
        source_addresses=settings.listener.source_addresses,
        trusted_proxy_hops=settings.listener.trusted_proxy_hops,
        # A list of signing secrets says itself how long each one counts.
        overlap_seconds=0 if settings.signing_secrets else ROTATION_OVERLAP_SECONDS,
    )


def deploy(
    name: str,
    settings: Settings,
    found: Plan,
    *,
    organisation: Mapping[str, pulumi.Input[str]],
    signing: Sequence[Mapping[str, pulumi.Input[Any]]],
    api: Mapping[str, pulumi.Input[str]],
    decryption: Sequence[pulumi.Input[str]],
    parent: pulumi.Resource,
) -> Deployed:
    """Registers everything in the account.

    Args:
        name: prefix of the resources' names.
        settings: of the stack.
        found: see `plan`.
        organisation: `clientId` and `clientSecret`.
        signing, api, decryption: see `AwsSecretsStore`.
        parent: the facade.
    """
    target = found.settings
    account = provider(f"{name}-aws", target, pulumi.ResourceOptions(parent=parent))
    opts = pulumi.ResourceOptions(parent=parent, providers={"aws": account})
    store = AwsSecretsStore(
        f"{name}-secrets",
        target,
        signing=signing,
        api=api,
        decryption=decryption,
        secrets=settings.secrets,
        groups=list(found.groups.values()),
        opts=opts,
    )
    listener = AwsListener(f"{name}-listener", found, store=store, opts=opts)
    address = settings.listener.public_url or (NO_INGRESS if listener.url is None else listener.url)
    url = pulumi.Output.from_input(address)
    last: pulumi.Resource = listener
    if target.agent is not None:
        last = AwsAgent(
            f"{name}-agent",
            target,
            target.agent,
            credentials=organisation,
            port_base_url=found.port_base_url,
            url=url,
            receiver=listener.receiver if target.ingress == "none" else None,
            opts=pulumi.ResourceOptions.merge(opts, pulumi.ResourceOptions(depends_on=[listener])),
        )
    return Deployed(url, store.version, last)


NO_INGRESS = "https://listener.invalid"
"""Base URL in definitions of a stack without an ingress: only the agent sees it, and it never resolves."""


def provider(name: str, settings: AwsSettings, opts: pulumi.ResourceOptions | None = None) -> aws.Provider:
    """The account and region of the stack; credentials come from AWS's usual places.

    `endpoints` and `skipValidation` point it at another implementation of AWS.
    """
    skip = settings.skip_validation
    endpoints = _endpoints(settings)
    return aws.Provider(
        name,
        region=settings.region,
        endpoints=[aws.ProviderEndpointArgs(**endpoints)] if endpoints else None,
        skip_credentials_validation=skip,
        skip_region_validation=skip,
        skip_requesting_account_id=skip,
        skip_metadata_api_check=skip,
        s3_use_path_style=skip,
        opts=opts,
    )


def _endpoints(settings: AwsSettings) -> dict[str, str]:
    """Arguments of the provider by service.

    Raises:
        SettingsError: a service is unknown.
    """
    parameters = set(inspect.signature(aws.ProviderEndpointArgs.__init__).parameters) - {"__self__"}
    # `lambda` is a word of Python, so the SDK calls it `lambda_`.
    known = {name.rstrip("_"): name for name in parameters}
    for service in settings.endpoints:
        if service not in known:
            close = difflib.get_close_matches(service, known, n=1)
            raise SettingsError(
                f"{KEY}.endpoints.{service}",
                "is no service of the provider" + (f"; did you mean {close[0]}?" if close else ""),
                "Use names like sqs and dynamodb",
            )
    return {known[service]: url for service, url in settings.endpoints.items()}
