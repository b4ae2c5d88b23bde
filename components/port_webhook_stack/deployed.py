"""What the facade needs to know of a deployed listener, whatever its target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pulumi


@dataclass(frozen=True, slots=True)
class Deployed:
    """A listener.

    Attributes:
        url: base URL at which Port reaches it, without a trailing slash.
        secrets_version: changes with the secrets that it reads.
        listener: what definitions in Port depend on.
        before: what else was deployed first, and an agent needs.
        bases: base URLs of the routes, by name, that are not behind `url`.
        settle_seconds: how long the way to it may take to become that of this deployment.
    """

    url: pulumi.Output[str]
    secrets_version: pulumi.Output[str]
    listener: pulumi.Resource
    before: tuple[pulumi.Resource, ...] = ()
    bases: Mapping[str, str] = field(default_factory=dict)
    settle_seconds: int = 0
