"""Names, tags and options that every resource of the target shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pulumi

from port_webhook_stack.aws.settings import AwsSettings


@dataclass(frozen=True, slots=True)
class Naming:
    """Names of one component's children.

    Attributes:
        name: prefix of Pulumi's names.
        settings: of the target.
        parent: the component.
    """

    name: str
    settings: AwsSettings
    parent: pulumi.Resource

    def resource(self, part: str) -> str:
        """Pulumi's name of a resource."""
        return f"{self.name}-{part}"

    def aws(self, part: str) -> str:
        """AWS's name of a resource; stable, so that an update never makes a second one."""
        return f"{self.settings.name_prefix}-{part}"

    @property
    def tags(self) -> Mapping[str, str]:
        """Tags of every resource."""
        return {"port-webhook:stack": self.settings.name_prefix, **self.settings.tags}

    def opts(
        self,
        depends_on: Sequence[pulumi.Resource] = (),
        *,
        delete_before_replace: bool | None = None,
        protect: bool | None = None,
    ) -> pulumi.ResourceOptions:
        """Options of a child."""
        return pulumi.ResourceOptions(
            parent=self.parent,
            depends_on=list(depends_on),
            delete_before_replace=delete_before_replace,
            protect=protect,
        )
