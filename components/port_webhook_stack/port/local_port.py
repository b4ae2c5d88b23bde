"""The local Port as a resource: it starts with the provider, and this resource ends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from port_webhook_stack.port.handler import (
    CheckResult,
    Context,
    CreateResult,
    Diff,
    Failure,
    Kind,
    Properties,
    ReadResult,
)
from port_webhook_stack.port.objects import STRING, schema_of

FOLDER = "localport"
"""Its folder inside the stack's state folder."""


class LocalPort:
    """`port-webhook:local:LocalPort`. Its address is not recorded, because it can move."""

    schema: Mapping[str, Any] = schema_of(
        "The local Port of a stack with region local. Everything that lives in it must depend on this resource.",
        {},
        [],
        {
            "clientId": STRING,
            "clientSecret": {**STRING, "secret": True},
        },
    )
    secrets = frozenset({"clientSecret"})

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        if ctx.config.region != "local":
            return CheckResult(news, [Failure("", "needs port-webhook:region to be local")])
        return CheckResult(news)

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        names = [name for name, value in _outputs(ctx).items() if olds.get(name) != value]
        return Diff(dict.fromkeys(names, Kind.UPDATE))

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        # The provider's configuration has started it.
        ctx.memory.add(("localport", ctx.config.client_id))
        return CreateResult(ctx.config.client_id, _outputs(ctx))

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        if ctx.config.port_is_gone:
            return None
        return ReadResult(id, _outputs(ctx), {})

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        if not preview:
            ctx.memory.add(("localport", ctx.config.client_id))
        return _outputs(ctx)

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        if ctx.config.port_is_gone or ("localport", ctx.config.client_id) in ctx.memory:
            return
        from port_webhook_localport import control

        control.remove(ctx.state_dir / FOLDER)


def _outputs(ctx: Context) -> Properties:
    return {"clientId": ctx.config.client_id, "clientSecret": ctx.config.client_secret}
