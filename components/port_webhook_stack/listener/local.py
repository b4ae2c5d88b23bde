"""The listener of target `local`: a supervised process on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pulumi


class LocalListener(pulumi.CustomResource):
    """A listener process that outlives `pulumi up`; a plain `up` heals it when it has died."""

    url: pulumi.Output[str]
    """Base URL on this machine, without a trailing slash."""

    port: pulumi.Output[int]
    """Port that it is bound to; once picked, it is kept."""

    def __init__(
        self,
        resource_name: str,
        *,
        digest: pulumi.Input[str],
        secrets_version: pulumi.Input[str],
        port: pulumi.Input[int] = 0,
        public_url: pulumi.Input[str] | None = None,
        limits: Mapping[str, float] | None = None,
        source_addresses: Sequence[str] = (),
        trusted_proxy_hops: int = 0,
        handler_settings: Mapping[str, Any] | None = None,
        agent: Mapping[str, Any] | None = None,
        opts: pulumi.ResourceOptions | None = None,
    ) -> None:
        """
        Args:
            resource_name: Pulumi's name of the resource.
            digest: digest of the bundle, which must lie in the stack's `bundles` folder.
            secrets_version: version of the secrets store; the listener reads a new one by itself.
            port: port to bind; 0: one is picked and kept.
            public_url: address of a tunnel or proxy that forwards here.
            limits: bounds by name, see `port_webhook_handlers.runtime.config.Limits`.
            source_addresses: addresses and networks that requests may come from; empty: from everywhere.
            trusted_proxy_hops: which address of X-Forwarded-For is the sender's, from the right; 0: the peer is.
            handler_settings: settings by handler; those under `*` are given to every handler.
            agent: it takes runs from Port itself; see `ListenerConfig.agent`.
        """
        super().__init__(
            "port-webhook:local:Listener",
            resource_name,
            {
                "digest": digest,
                "secretsVersion": secrets_version,
                "requestedPort": port,
                "publicUrl": public_url,
                "limits": dict(limits or {}),
                "sourceAddresses": list(source_addresses) or None,
                "trustedProxyHops": trusted_proxy_hops or None,
                "handlerSettings": dict(handler_settings or {}),
                "agent": None if agent is None else dict(agent),
                "url": None,
                "port": None,
                "running": None,
                "owner": None,
            },
            opts,
        )
