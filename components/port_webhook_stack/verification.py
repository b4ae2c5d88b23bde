"""Signed probes through the deployed path, as a resource: `up` fails if the listener is not what it should be."""

from __future__ import annotations

import pulumi


class Verification(pulumi.CustomResource):
    """Proof that a listener verifies what it receives.

    It runs on create, and again when digest, URL, version of the secrets or scheme changes; never at preview or
    refresh. Everything that points at the listener should depend on it.
    """

    checks: pulumi.Output[list[str]]
    """Names of the probes that were answered as they must be."""

    def __init__(
        self,
        resource_name: str,
        *,
        url: pulumi.Input[str],
        digest: pulumi.Input[str],
        secrets_version: pulumi.Input[str],
        signing_secret: pulumi.Input[str],
        scheme: pulumi.Input[str] = "raw",
        settle_seconds: pulumi.Input[int] = 0,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the resource.
            url: base URL of the listener.
            digest: digest of the bundle that must answer.
            secrets_version: version of the secrets store that the listener reads.
            signing_secret: one of the secrets with which Port signs.
            scheme: signature scheme of the probes.
            settle_seconds: how long the way to the listener may still be that of before (names, certificates,
                replicas that leave); until then a failure is tried again.
        """
        super().__init__(
            "port-webhook:index:Verification",
            resource_name,
            {
                "url": url,
                "digest": digest,
                "secretsVersion": secrets_version,
                "signingSecret": pulumi.Output.secret(signing_secret),
                "scheme": scheme,
                "settleSeconds": settle_seconds,
                "checks": None,
            },
            opts,
        )
