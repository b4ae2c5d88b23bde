"""The provider's side of the local listener."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime import control
from port_webhook_handlers.runtime.config import ConfigError, Limits, ListenerConfig
from port_webhook_stack.port import ownership
from port_webhook_stack.port.handler import (
    UNKNOWN,
    CheckResult,
    Context,
    CreateResult,
    Diff,
    Failure,
    Kind,
    Properties,
    ProviderError,
    ReadResult,
    has_unknown,
)
from port_webhook_stack.secrets_store.local_handler import secret_file

_INPUTS = (
    "digest",
    "secretsVersion",
    "requestedPort",
    "publicUrl",
    "limits",
    "sourceAddresses",
    "trustedProxyHops",
    "handlerSettings",
    "agent",
)


def bundles_folder(state_dir: Path) -> Path:
    """Where the bundles of a stack lie, each in a folder named after its digest."""
    return state_dir / "bundles"


def bundle_folder(state_dir: Path, digest: str) -> Path:
    """Folder of one bundle."""
    return bundles_folder(state_dir) / digest.removeprefix("sha256:")[:16]


def listener_home(state_dir: Path) -> Path:
    """Where the listener of a stack keeps its files."""
    return state_dir / "listener"


class LocalListenerHandler:
    """Starts, updates in place and stops the supervised process. `diff` asks it whether it is still there."""

    schema: Mapping[str, Any] = {
        "description": "The listener as a supervised process on this machine.",
        "inputProperties": {
            "digest": {"type": "string", "description": "Digest of the bundle that it serves."},
            "secretsVersion": {"type": "string", "description": "Version of the secrets store."},
            "requestedPort": {"type": "integer", "description": "Port to bind; 0: picked once, then kept."},
            "publicUrl": {"type": "string", "description": "Address that forwards to this listener."},
            "limits": {
                "type": "object",
                "additionalProperties": {"type": "number"},
                "description": "Bounds, by name.",
            },
            "sourceAddresses": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Addresses and networks that requests may come from; without them from everywhere.",
            },
            "trustedProxyHops": {
                "type": "integer",
                "description": "Which address of X-Forwarded-For is the sender's, from the right; 0: the peer is.",
            },
            "handlerSettings": {
                "type": "object",
                "additionalProperties": {"$ref": "pulumi.json#/Any"},
                "description": "Settings by handler; * is for all.",
            },
            "agent": {
                "type": "object",
                "additionalProperties": {"$ref": "pulumi.json#/Any"},
                "description": "Configuration of an agent in the listener: it takes runs from Port itself.",
            },
        },
        "requiredInputs": ["digest", "secretsVersion"],
        "properties": {
            "url": {"type": "string", "description": "Base URL on this machine."},
            "port": {"type": "integer", "description": "Port that it is bound to."},
            "running": {"type": "boolean", "description": "Whether it answered when last looked at."},
            "owner": {"type": "string", "description": "Tells it from a successor in the same folder."},
        },
        "required": ["url", "port", "running", "owner"],
    }
    secrets: frozenset[str] = frozenset()

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        inputs = {"requestedPort": 0, "limits": {}, "handlerSettings": {}, **news}
        if has_unknown(inputs):
            return CheckResult(inputs)
        try:
            _config(ctx, inputs)
        except (ConfigError, TypeError) as error:
            return CheckResult(inputs, [Failure("", str(error))])
        return CheckResult(inputs)

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        changes = {name: Kind.UPDATE for name in _INPUTS if olds.get(name) != news.get(name)}
        if not changes and not _serves(ctx, news):
            changes["running"] = Kind.UPDATE
        return Diff(changes)

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if preview:
            return CreateResult(
                "", {**inputs, "url": UNKNOWN, "port": UNKNOWN, "running": UNKNOWN, "owner": UNKNOWN}
            )
        state = self._start(ctx, inputs)
        return CreateResult("listener", {**state, "owner": ownership.take(listener_home(ctx.state_dir))})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        return ReadResult(id, {**state, "running": _serves(ctx, inputs)}, inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        if preview:
            # The port is kept, so nothing that points here changes.
            moves = olds.get("requestedPort") != news.get("requestedPort")
            kept = {name: UNKNOWN if moves else olds.get(name, UNKNOWN) for name in ("url", "port")}
            return {**news, **kept, "running": True, "owner": olds.get("owner")}
        state = {**self._start(ctx, news), "owner": olds.get("owner")}
        _prune(ctx.state_dir, keep={str(news["digest"]), str(olds.get("digest", ""))})
        return state

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        if not ownership.owns(listener_home(ctx.state_dir), state.get("owner")):
            return
        try:
            control.stop(listener_home(ctx.state_dir), end_deployments=True)
        except control.ListenerError as error:
            raise ProviderError(str(error)) from error
        for folder in (
            listener_home(ctx.state_dir),
            bundles_folder(ctx.state_dir),
            ctx.state_dir / "deployments",
        ):
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, ctx: Context, inputs: Properties) -> Properties:
        try:
            status = control.start(listener_home(ctx.state_dir), _config(ctx, inputs))
        except (control.ListenerError, ConfigError) as error:
            raise ProviderError(str(error)) from error
        return {**inputs, "url": status.url, "port": status.port, "running": True}


def _serves(ctx: Context, inputs: Properties) -> bool:
    status = control.status(listener_home(ctx.state_dir))
    return status is not None and status.healthy and status.digest == inputs.get("digest")


def _config(ctx: Context, inputs: Properties) -> ListenerConfig:
    store = secret_file(ctx.state_dir)
    local = ctx.config.region == "local"
    return ListenerConfig(
        bundle=bundle_folder(ctx.state_dir, str(inputs["digest"])),
        secrets_file=store.path,
        secrets_key_file=store.key_path,
        port_base_url=None if local else ctx.config.base_url,
        # The address of local Port can move, so the listener reads it anew.
        port_endpoint_file=ctx.state_dir / "localport" / "endpoint.json" if local else None,
        port=int(inputs["requestedPort"]),
        public_url=inputs.get("publicUrl"),
        state_dir=ctx.state_dir,
        source_addresses=tuple(inputs.get("sourceAddresses") or ()),
        trusted_proxy_hops=int(inputs.get("trustedProxyHops") or 0),
        limits=Limits(**inputs["limits"]),
        settings=inputs["handlerSettings"],
        agent=_agent(ctx, inputs.get("agent")),
    )


def _agent(ctx: Context, options: Properties | None) -> Properties | None:
    if options is None:
        return None
    from port_webhook_stack.agent.local_handler import local_options

    return local_options(ctx, str(options["source"]), options)


def _prune(state_dir: Path, keep: set[str]) -> None:
    kept = {bundle_folder(state_dir, digest) for digest in keep if digest}
    for folder in bundles_folder(state_dir).glob("*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
