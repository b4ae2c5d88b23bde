"""What the facade needs to know of a deployed listener, whatever its target."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi


@dataclass(frozen=True, slots=True)
class Deployed:
    """A listener.

    Attributes:
        url: base URL at which Port reaches it, without a trailing slash.
        secrets_version: changes with the secrets that it reads.
        listener: what definitions in Port depend on.
        before: what else was deployed first, and an agent needs.
        settle_seconds: how long the way to it may take to become that of this deployment.
    """

    url: pulumi.Output[str]
    secrets_version: pulumi.Output[str]
    listener: pulumi.Resource
    before: tuple[pulumi.Resource, ...] = ()
    settle_seconds: int = 0
