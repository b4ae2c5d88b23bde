"""The secrets store of target aws: Secrets Manager, one secret for each function that reads one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pulumi
import pulumi_aws as aws

from port_webhook_stack.aws.naming import Naming
from port_webhook_stack.aws.plan import Group
from port_webhook_stack.aws.settings import AwsSettings


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """A secret in Secrets Manager, and its present version."""

    arn: pulumi.Output[str]
    version: aws.secretsmanager.SecretVersion


class AwsSecretsStore(pulumi.ComponentResource):
    """Who verifies gets the signing secrets, who reports gets the API credentials, who runs handlers gets theirs.

    Values are secret in Pulumi's state and in no environment.
    """

    signing: StoredSecret
    """The signing secrets; for the receiver."""

    api: StoredSecret
    """Credentials of Port's API; for the reporter."""

    groups: Mapping[str, StoredSecret]
    """By privilege group: the secrets that its handlers declare, and keys of encrypted inputs if they have some."""

    version: pulumi.Output[str]
    """Changes with any value."""

    def __init__(
        self,
        resource_name: str,
        settings: AwsSettings,
        *,
        signing: Sequence[Mapping[str, pulumi.Input[Any]]],
        api: Mapping[str, pulumi.Input[str]],
        decryption: Sequence[pulumi.Input[str]],
        secrets: Mapping[str, pulumi.Input[str]],
        groups: Sequence[Group] = (),
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the component.
            settings: of the target.
            signing: secrets that Port signs with: `value`, and `notAfter` (RFC 3339) where one is being retired.
            api: `clientId` and `clientSecret` for reports to Port.
            decryption: keys of encrypted inputs, tried in order.
            secrets: values for the handlers that declare their names.
            groups: privilege groups of handlers.
            opts: options of the component.
        """
        super().__init__("port-webhook:aws:SecretsStore", resource_name, {}, opts)
        self._naming = Naming(resource_name, settings, self)
        self.signing = self._secret(
            "signing",
            "Secrets that Port signs invocations with",
            pulumi.Output.from_input(list(signing)).apply(
                lambda items: {"signing": [_signing(item) for item in items]}
            ),
        )
        self.api = self._secret(
            "api",
            "Credentials of Port's API",
            pulumi.Output.from_input(dict(api)).apply(
                lambda found: {
                    "api": {"client_id": found["clientId"], "client_secret": found["clientSecret"]}
                }
            ),
        )
        self.groups = {
            group.name: self._secret(
                f"handlers-{group.name}",
                f"Secrets of the handlers of group {group.name}",
                pulumi.Output.all(
                    secrets={name: secrets[name] for name in group.secrets},
                    decryption=list(decryption) if group.decrypts else [],
                ),
            )
            for group in groups
            if group.has_secret
        }
        stored = [self.signing, self.api, *self.groups.values()]
        self.version = pulumi.Output.all(*(item.version.version_id for item in stored)).apply(
            lambda versions: "-".join(str(version)[:8] for version in versions)
        )
        self.register_outputs({"version": self.version})

    def _secret(self, part: str, description: str, content: pulumi.Output[Any]) -> StoredSecret:
        naming = self._naming
        text: pulumi.Output[Any] = content.apply(lambda found: json.dumps(found, sort_keys=True))
        secret = aws.secretsmanager.Secret(
            naming.resource(part),
            name=naming.aws(part),
            description=description,
            kms_key_id=naming.settings.kms_key,
            recovery_window_in_days=naming.settings.secret_recovery_days,
            tags=naming.tags,
            opts=naming.opts(),
        )
        version = aws.secretsmanager.SecretVersion(
            naming.resource(f"{part}-value"),
            secret_id=secret.id,
            secret_string=pulumi.Output.secret(text),
            # The version before stays: it is what requests on their way are still signed with.
            opts=pulumi.ResourceOptions.merge(naming.opts(), pulumi.ResourceOptions(retain_on_delete=True)),
        )
        return StoredSecret(secret.arn, version)


def _signing(item: Mapping[str, Any]) -> dict[str, Any]:
    not_after = item.get("notAfter")
    seconds = None if not_after is None else datetime.fromisoformat(not_after).timestamp()
    return {"value": item["value"], "not_after": seconds}
