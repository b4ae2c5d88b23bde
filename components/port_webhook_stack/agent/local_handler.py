"""The provider's side of the local agent and of its broker."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from port_webhook_handlers.agent import config as configuration
from port_webhook_handlers.agent import control
from port_webhook_handlers.agent.config import AgentConfig, AgentConfigError
from port_webhook_handlers.port.client import PortError
from port_webhook_stack.agent import kafka_broker
from port_webhook_stack.agent.kafka_broker import KafkaBrokerError
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

_READY_SECONDS = 30.0
_USERNAME = "port-agent"
_INPUTS = ("source", "actions", "allowedHosts", "secretsVersion", "options")


def broker_home(state_dir: Path) -> Path:
    """Where the broker of a stack keeps its data."""
    return state_dir / "kafka"


def agent_home(state_dir: Path) -> Path:
    """Where the agent of a stack keeps its files."""
    return state_dir / "agent"


def agent_name(state_dir: Path) -> str:
    """Project and stack, for the consumer group."""
    return f"port-webhook-stack.{state_dir.name}"


class KafkaBrokerHandler:
    """Starts the broker, makes topics and the agent's user, and tells the local Port of them."""

    schema: Mapping[str, Any] = {
        "description": "A Kafka broker on this machine, for the local Port and its execution agent.",
        "inputProperties": {},
        "requiredInputs": [],
        "properties": {
            "brokers": {"type": "string", "description": "Address for clients."},
            "username": {"type": "string", "description": "The agent's user."},
            "password": {"type": "string", "secret": True, "description": "Its password."},
            "running": {"type": "boolean", "description": "Whether it answered when last looked at."},
            "owner": {"type": "string", "description": "Tells it from a successor in the same folder."},
        },
        "required": ["brokers", "username", "password", "running", "owner"],
    }
    secrets = frozenset({"password"})

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        if ctx.config.region != "local":
            reason = "needs port-webhook:region to be local: Port cannot write to a broker of this machine"
            return CheckResult(news, [Failure("", reason)])
        return CheckResult(news)

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        return Diff({} if self._serves(ctx, olds) else {"running": Kind.UPDATE})

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if preview:
            names = ("brokers", "username", "password", "running", "owner")
            return CreateResult("", dict.fromkeys(names, UNKNOWN))
        state = self._start(ctx, kafka_broker.new_password())
        return CreateResult("kafka", {**state, "owner": ownership.take(broker_home(ctx.state_dir))})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        if not broker_home(ctx.state_dir).is_dir():
            return None
        return ReadResult(id, {**state, "running": self._serves(ctx, state)}, inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        if preview:
            return {**olds, "running": True}
        state = self._start(ctx, str(olds.get("password") or kafka_broker.new_password()))
        return {**state, "owner": olds.get("owner")}

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        if not ownership.owns(broker_home(ctx.state_dir), state.get("owner")):
            return
        if not ctx.config.port_is_gone:
            _admin(ctx, "DELETE", None)
        kafka_broker.remove(broker_home(ctx.state_dir))

    def _start(self, ctx: Context, password: str) -> Properties:
        home = broker_home(ctx.state_dir)
        try:
            endpoint = kafka_broker.ensure_running(home)
            organization = str(ctx.port.request("GET", "/v1/organization")["organization"]["id"])
            kafka_broker.add_topics(home, [f"{organization}.runs", f"{organization}.change.log"])
            kafka_broker.add_user(home, _USERNAME, password, prefix=f"{organization}.")
        except KafkaBrokerError as error:
            raise ProviderError(str(error)) from error
        credentials = {"brokers": [endpoint.brokers], "username": _USERNAME, "password": password}
        _admin(ctx, "PUT", {**credentials, "caFile": str(endpoint.ca_file)})
        return {"brokers": endpoint.brokers, "username": _USERNAME, "password": password, "running": True}

    def _serves(self, ctx: Context, state: Properties) -> bool:
        endpoint = kafka_broker.status(broker_home(ctx.state_dir))
        if endpoint is None or endpoint.brokers != state.get("brokers"):
            return False
        try:
            known = ctx.port.request("GET", "/v1/kafka-credentials", attempts=1)["credentials"]
        except (PortError, KeyError):
            return False
        return bool(known["brokers"] == [endpoint.brokers] and known["password"] == state.get("password"))


class LocalAgentHandler:
    """Starts, exchanges and stops the supervised process."""

    schema: Mapping[str, Any] = {
        "description": "Port's execution agent as a supervised process on this machine.",
        "inputProperties": {
            "source": {"type": "string", "description": "kafka or polling."},
            "actions": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Identifiers in Port that it delivers.",
            },
            "allowedHosts": {
                "type": "array",
                "items": {"type": "string"},
                "description": "host:port that it may call.",
            },
            "secretsVersion": {"type": "string", "description": "Version of the secrets store."},
            "options": {
                "type": "object",
                "additionalProperties": {"$ref": "pulumi.json#/Any"},
                "description": "Further configuration.",
            },
        },
        "requiredInputs": ["source", "allowedHosts", "secretsVersion"],
        "properties": {
            "running": {"type": "boolean", "description": "Whether it answered when last looked at."},
            "owner": {"type": "string", "description": "Tells it from a successor in the same folder."},
        },
        "required": ["running", "owner"],
    }
    secrets: frozenset[str] = frozenset()

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        inputs = {"actions": [], "options": {}, **news}
        if has_unknown(inputs):
            return CheckResult(inputs)
        try:
            _config(ctx, inputs)
        except (AgentConfigError, TypeError) as error:
            return CheckResult(inputs, [Failure("options", str(error))])
        return CheckResult(inputs)

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        changes = {name: Kind.UPDATE for name in _INPUTS if olds.get(name) != news.get(name)}
        if not changes and not _runs(ctx, news):
            changes["running"] = Kind.UPDATE
        return Diff(changes)

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        if preview:
            return CreateResult("", {**inputs, "running": UNKNOWN, "owner": UNKNOWN})
        state = self._start(ctx, inputs)
        return CreateResult("agent", {**state, "owner": ownership.take(agent_home(ctx.state_dir))})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        return ReadResult(id, {**state, "running": _runs(ctx, inputs)}, inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        state = {**news, "running": True} if preview else self._start(ctx, news)
        return {**state, "owner": olds.get("owner")}

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        if not ownership.owns(agent_home(ctx.state_dir), state.get("owner")):
            return
        control.stop(agent_home(ctx.state_dir))
        shutil.rmtree(agent_home(ctx.state_dir), ignore_errors=True)

    def _start(self, ctx: Context, inputs: Properties) -> Properties:
        home = agent_home(ctx.state_dir)
        try:
            control.start(home, _config(ctx, inputs))
        except (control.AgentError, AgentConfigError) as error:
            raise ProviderError(str(error)) from error
        until = time.monotonic() + _READY_SECONDS
        problem: str | None = "it does not answer"
        while problem is not None and time.monotonic() < until and not ctx.cancelled.wait(0.1):
            status = control.status(home)
            problem = "it does not run" if status is None else None if status.ready else status.problem
        if problem is not None:
            ctx.log.warning(f"the agent runs, but receives nothing yet: {problem}")
        return {**inputs, "running": True}


def _runs(ctx: Context, inputs: Properties) -> bool:
    status = control.status(agent_home(ctx.state_dir))
    return status is not None and status.url is not None and status.config == _config(ctx, inputs)


def local_options(ctx: Context, source: str, options: Properties) -> Properties:
    """An agent's configuration, completed by its name and, for the stack's own broker, whom to trust."""
    kafka = dict(options.get("kafka", {}))
    if source == "kafka" and ctx.config.region == "local" and not {"ca_file", "brokers"} & set(kafka):
        kafka["ca_file"] = str(broker_home(ctx.state_dir) / "ca.pem")
    return {"name": agent_name(ctx.state_dir), **options, "source": source, "kafka": kafka}


def _config(ctx: Context, inputs: Properties) -> AgentConfig:
    store = secret_file(ctx.state_dir)
    local = ctx.config.region == "local"
    return configuration.from_json(
        {
            **local_options(ctx, str(inputs["source"]), inputs["options"]),
            "sink": "forward",
            "secrets_file": str(store.path),
            "secrets_key_file": str(store.key_path),
            "port_base_url": None if local else ctx.config.base_url,
            # The address of local Port can move, so the agent reads it anew.
            "port_endpoint_file": str(ctx.state_dir / "localport" / "endpoint.json") if local else None,
            "actions": inputs["actions"] or None,
            "allowed_hosts": inputs["allowedHosts"],
        }
    )


def _admin(ctx: Context, method: str, body: dict[str, Any] | None) -> None:
    """Tells the local Port which broker is its own."""
    from port_webhook_localport import control as local_port

    endpoint = local_port.status(ctx.state_dir / "localport")
    if endpoint is None:
        if method == "DELETE":
            return
        raise ProviderError("the local Port does not answer; run `port-webhook up` again")
    address = urlsplit(endpoint.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
    try:
        data = None if body is None else json.dumps(body)
        connection.request(method, "/_local/kafka", data, {"Authorization": f"Bearer {endpoint.admin_token}"})
        if (status := connection.getresponse().status) != 200:
            raise ProviderError(f"the local Port refuses its broker ({status}); see its log")
    except OSError as error:
        raise ProviderError(f"the local Port does not answer: {error}") from error
    finally:
        connection.close()
