"""A resource type for tests: its object is made, but not as asked for, until a file says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from port_webhook_stack.port.handler import (
    CheckResult,
    Context,
    CreateResult,
    Diff,
    PartialFailure,
    Properties,
    ReadResult,
)
from port_webhook_stack.port.normalise import changes

TOKEN = "port-webhook:test:Half"


class Half:
    schema: ClassVar[dict[str, Any]] = {
        "inputProperties": {"folder": {"type": "string"}, "secret": {"type": "string"}}
    }
    secrets = frozenset({"secret"})

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        return CheckResult(news)

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        return Diff(changes({key: olds[key] for key in news if key in olds}, news))

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        state = {**inputs, "phase": "created"}
        if not preview and not (Path(inputs["folder"]) / "ready").exists():
            raise PartialFailure("half-1", state, [f"it is not ready yet ({inputs['secret']})"])
        return CreateResult("half-1", state)

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        return ReadResult(id, state, inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        return {**news, "phase": "updated"}

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        (Path(state["folder"]) / "deleted").touch()
