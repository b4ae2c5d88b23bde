"""The secrets store of target `local`: an encrypted file in the stack's state folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi


class LocalSecretsStore(pulumi.CustomResource):
    """Everything secret that the listener on this machine reads, encrypted at rest and in Pulumi's state."""

    version: pulumi.Output[str]
    """Changes with the content; says nothing about it to those who have not got the key."""

    def __init__(
        self,
        resource_name: str,
        *,
        signing: Sequence[Mapping[str, pulumi.Input[Any]]],
        api: pulumi.Input[Mapping[str, pulumi.Input[str]]],
        decryption: Sequence[pulumi.Input[str]],
        secrets: Mapping[str, pulumi.Input[str]],
        overlap_seconds: float = 0,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the resource.
            signing: secrets that Port signs with: `value`, and `notAfter` (RFC 3339) where one is being retired.
            api: `clientId` and `clientSecret` for reports to Port.
            decryption: keys of encrypted inputs, tried in order.
            secrets: values for the handlers that declare their names.
            overlap_seconds: how long a signing secret that was replaced stays valid.
        """
        super().__init__(
            "port-webhook:local:SecretsStore",
            resource_name,
            {
                "signing": pulumi.Output.secret(list(signing)),
                "api": pulumi.Output.secret(api),
                "decryption": pulumi.Output.secret(list(decryption)),
                "secrets": pulumi.Output.secret(dict(secrets)),
                "overlapSeconds": overlap_seconds,
                "version": None,
                "owner": None,
            },
            opts,
        )
