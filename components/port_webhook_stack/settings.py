"""Stack configuration → validated settings. Every error names its key, before anything is created."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from port_webhook_handlers.port.names import is_identifier
from port_webhook_handlers.port.regions import SOURCE_ADDRESSES
from port_webhook_handlers.runtime.sources import MOST_HOPS
from port_webhook_stack.agent import settings as agent_settings
from port_webhook_stack.agent.settings import AgentSettings
from port_webhook_stack.aws import settings as aws
from port_webhook_stack.aws.settings import AwsSettings
from port_webhook_stack.errors import SettingsError
from port_webhook_stack.kubernetes import settings as kubernetes
from port_webhook_stack.kubernetes.settings import KubernetesSettings

MODULE = "port-webhook-stack"
"""Namespace of the module's keys in a stack file; the provider's are `port-webhook:*`."""

PROVIDER = "port-webhook"

ROTATION_OVERLAP_SECONDS = 24 * 3600.0
"""How long the listener accepts a client secret that was replaced, unless `port-webhook rotate-secret` says otherwise."""

_LISTENER_KEYS = (
    "port",
    "publicUrl",
    "syncDeadlineSeconds",
    "toleranceSeconds",
    "sourceAddresses",
    "trustedProxyHops",
)
# Where local Port sends from.
_LOCAL_ADDRESSES = ("127.0.0.0/8", "::1/128")

PUBLISHED_SALT = "v1:Cz2k1BBARzA=:v1:jYT0aU8KcsG0Ee0P:dvpSchCIZyxUq2DtU2ylMKDHYoQSqw=="
"""Encryption salt of `stacks/Pulumi.local.yaml`, whose passphrase everybody knows."""

Region = Literal["eu", "us", "local"]


@dataclass(frozen=True, slots=True, repr=False)
class SigningSecret:
    """A secret that signs invocations; `not_after` is an RFC 3339 time, or None for no end."""

    value: str
    not_after: str | None = None


@dataclass(frozen=True, slots=True, repr=False)
class ApiCredentials:
    """What the listener reports to Port with."""

    client_id: str
    client_secret: str


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """Where the listener receives, and within which limits."""

    port: int = 0
    public_url: str | None = None
    sync_deadline_seconds: float = 25.0
    tolerance_seconds: float = 300.0
    source_addresses: tuple[str, ...] = ()
    trusted_proxy_hops: int = 0


@dataclass(frozen=True, repr=False)
class Settings:
    """Everything that the stack file says, checked.

    `signing_secrets`, `api_credentials` and `decryption_keys` are empty where the organisation's client secret
    serves as all three.
    """

    stack: str
    project: Path
    state_dir: Path
    base_url: str | None = None
    target: Literal["local", "aws", "kubernetes"] = "local"
    region: Region | None = "local"
    client_id: str | None = None
    client_secret: str | None = None
    handlers: tuple[str, ...] = ()
    handler_settings: Mapping[str, Any] = field(default_factory=dict)
    catalog: Mapping[str, Any] = field(default_factory=dict)
    blueprints: Literal["create", "existing"] = "existing"
    force_destroy: bool = False
    verify: Literal["http", "off"] = "http"
    listener: ListenerSettings = field(default_factory=ListenerSettings)
    signing_secrets: tuple[SigningSecret, ...] = ()
    api_credentials: ApiCredentials | None = None
    decryption_keys: tuple[str, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict)
    port_secrets: Mapping[str, str] = field(default_factory=dict)
    lint_disabled: tuple[str, ...] = ()
    definitions: tuple[str, ...] = ()
    identifier_suffix: str = ""
    kubernetes: KubernetesSettings | None = None
    aws: AwsSettings | None = None
    agent: AgentSettings | None = None

    @property
    def is_local_port(self) -> bool:
        """Whether Port itself is the local one."""
        return self.region == "local"

    @classmethod
    def load(cls) -> Settings:
        """Settings of the stack that runs, from its stack file and the environment.

        Raises:
            SettingsError: a key is unknown, or its value is missing or wrong.
        """
        import pulumi

        values, secret_keys = stack_configuration()
        settings = parse(pulumi.get_stack(), values, secret_keys, os.environ, project_folder())
        _refuse_published_passphrase(settings)
        return settings


def stack_configuration() -> tuple[dict[str, str], frozenset[str]]:
    """All keys of the running stack's configuration as the engine passes them, and which of them are secret."""
    from pulumi.runtime import config

    values = {**config.get_config_env(), **config.CONFIG.get()}
    secret_keys = set(config.get_config_secret_keys_env()) | set(config._SECRET_KEYS.get())
    return {key: str(value) for key, value in values.items()}, frozenset(secret_keys)


def parse(
    stack: str,
    values: Mapping[str, str],
    secret_keys: frozenset[str],
    environment: Mapping[str, str],
    project: Path,
) -> Settings:
    """Validates configuration values (JSON text by full key, as the engine passes them).

    Raises:
        SettingsError: see `Settings.load`.
    """
    reader = _Reader(values, secret_keys, environment)
    region = reader.provider("region", "PORT_REGION")
    base_url = reader.provider("baseUrl", "PORT_BASE_URL")
    if region is None and base_url is None:
        region = "eu"
    if region not in ("eu", "us", "local", None):
        raise SettingsError(
            f"{PROVIDER}:region",
            f"{region!r} is no region of Port",
            f"Use eu, us or local{_nearest(region, ('eu', 'us', 'local'))}",
        )
    target = reader.choice("target", ("local", "aws", "kubernetes"), "local")
    listener = _listener(reader, region)
    agent = _agent(reader, target, project)
    needs_entry = target == "local" and agent is None
    if needs_entry and region != "local" and base_url is None and listener.public_url is None:
        raise SettingsError(
            f"{MODULE}:listener.publicUrl",
            f"is missing, and Port ({region}) refuses to call addresses of this machine",
            "Open a tunnel to the listener and set its https:// address, use an agent (port-webhook-stack:agent), or set "
            "port-webhook:region to local",
        )
    settings = Settings(
        stack=stack,
        project=project,
        state_dir=project / (reader.provider("stateDir", "PORT_STATE_DIR") or f".state/{stack}"),
        base_url=base_url,
        target=target,  # type: ignore[arg-type]
        region=region,  # type: ignore[arg-type]  # the provider refuses another region by name
        client_id=reader.provider("clientId", "PORT_CLIENT_ID"),
        client_secret=reader.provider("clientSecret", "PORT_CLIENT_SECRET"),
        handlers=tuple(reader.strings("handlers")),
        handler_settings=_handler_settings(reader),
        catalog=reader.mapping("catalog"),
        blueprints=reader.choice(
            "blueprints", ("create", "existing"), "create" if region == "local" else "existing"
        ),  # type: ignore[arg-type]
        force_destroy=reader.boolean("forceDestroy", default=False),
        verify=reader.choice("verify", ("http", "off"), "http"),  # type: ignore[arg-type]
        listener=listener,
        signing_secrets=_signing_secrets(reader),
        api_credentials=_api_credentials(reader),
        decryption_keys=tuple(reader.secret_strings("decryptionKeys")),
        secrets=reader.secret_mapping("secrets"),
        port_secrets=reader.secret_mapping("portSecrets"),
        lint_disabled=tuple(reader.strings("lintDisabled")),
        definitions=tuple(reader.strings("definitions")),
        identifier_suffix=_identifier_suffix(reader),
        kubernetes=_kubernetes(reader, target),
        aws=_aws(reader, target, stack, environment, project),
        agent=agent,
    )
    reader.refuse_the_rest()
    if region != "local" and settings.client_secret is None and not settings.signing_secrets:
        raise SettingsError(
            f"{PROVIDER}:clientSecret",
            "is missing: Port signs with it, and the listener verifies with it",
            "Run `pulumi config set --secret port-webhook:clientSecret`, or set PORT_CLIENT_SECRET",
        )
    if region != "local" and settings.client_id is None and settings.api_credentials is None:
        raise SettingsError(
            f"{PROVIDER}:clientId",
            "is missing: the listener reports runs with it",
            "Run `pulumi config set port-webhook:clientId <id>`, or set PORT_CLIENT_ID",
        )
    return settings


def _handler_settings(reader: _Reader) -> dict[str, Any]:
    """Settings by handler; what blueprints are called belongs to those of all."""
    values, catalog = reader.mapping("handlerSettings"), reader.mapping("catalog")
    if not catalog:
        return values
    shared = values.get("*", {})
    if not isinstance(shared, dict):
        raise SettingsError(f"{MODULE}:handlerSettings.*", "is no map", "Write a map of settings")
    return {**values, "*": {**shared, "catalog": catalog}}


def _listener(reader: _Reader, region: str | None) -> ListenerSettings:
    values = reader.mapping("listener", _LISTENER_KEYS)
    key = f"{MODULE}:listener"
    port = values.get("port", 0)
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise SettingsError(
            f"{key}.port", f"{port!r} is no port", "Use 1 to 65535, or 0 to have one picked and kept"
        )
    public_url = values.get("publicUrl")
    if public_url is not None:
        parts = urlsplit(public_url) if isinstance(public_url, str) else None
        if parts is None or parts.scheme not in ("http", "https") or not parts.netloc or parts.query:
            raise SettingsError(
                f"{key}.publicUrl",
                f"{public_url!r} is no base URL",
                "Write it as https://host or https://host/path",
            )
        public_url = public_url.rstrip("/")
    numbers: dict[str, float] = {}
    for name, default, low, high in (
        ("syncDeadlineSeconds", 25.0, 1, 60),
        ("toleranceSeconds", 300.0, 30, 900),
    ):
        value = values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise SettingsError(f"{key}.{name}", f"{value!r} is out of range", f"Use {low} to {high} seconds")
        numbers[name] = float(value)
    return ListenerSettings(
        port,
        public_url,
        numbers["syncDeadlineSeconds"],
        numbers["toleranceSeconds"],
        *_sources(values, region),
    )


def _sources(values: Mapping[str, Any], region: str | None) -> tuple[tuple[str, ...], int]:
    """Addresses that requests may come from, and how many proxies are trusted to say it."""
    key = f"{MODULE}:listener.sourceAddresses"
    listed, hops = values.get("sourceAddresses", []), values.get("trustedProxyHops", 0)
    if not isinstance(listed, list):
        raise SettingsError(key, f"{listed!r} is no list", "Write a list such as [port, 10.0.0.0/8]")
    found: list[str] = []
    for index, item in enumerate(listed):
        if item != "port":
            found.append(_network(f"{key}[{index}]", item))
        elif region is None:
            raise SettingsError(
                f"{key}[{index}]",
                "port stands for the addresses of a region of Port, and none is set",
                f"Set {PROVIDER}:region, or list the addresses",
            )
        else:
            found += SOURCE_ADDRESSES.get(region, _LOCAL_ADDRESSES)
    if isinstance(hops, bool) or not isinstance(hops, int) or not 0 <= hops <= MOST_HOPS:
        raise SettingsError(
            f"{MODULE}:listener.trustedProxyHops",
            f"{hops!r} is no number of proxies",
            f"Use 0 to {MOST_HOPS}: as many as add to X-Forwarded-For in front of the listener",
        )
    if hops and not found:
        raise SettingsError(
            f"{MODULE}:listener.trustedProxyHops",
            "is of no use without addresses to compare with",
            f"Set {key}, or remove it",
        )
    return tuple(dict.fromkeys(found)), hops


def _network(key: str, value: object) -> str:
    try:
        if isinstance(value, str):
            return str(ip_network(value))
    except ValueError:
        pass
    raise SettingsError(
        key,
        f"{value!r} is no address or network",
        "Write 10.1.2.3, 10.0.0.0/8 (no bits set behind the prefix), or port for the addresses that Port publishes",
    )


def _agent(reader: _Reader, target: str, project: Path) -> AgentSettings | None:
    values = reader.mapping("agent")
    if not values:
        return None
    if target != "local":
        raise SettingsError(
            f"{MODULE}:agent", f"is of no use to target {target}", f"Set {MODULE}:{target}.agent instead"
        )
    return agent_settings.parse(values, project)


def _kubernetes(reader: _Reader, target: str) -> KubernetesSettings | None:
    values = reader.mapping("kubernetes")
    if target == "kubernetes":
        return kubernetes.parse(values)
    if values:
        raise SettingsError(
            f"{MODULE}:kubernetes",
            f"is of no use to target {target}",
            "Remove it, or set target to kubernetes",
        )
    return None


def _aws(
    reader: _Reader, target: str, stack: str, environment: Mapping[str, str], project: Path
) -> AwsSettings | None:
    values = reader.mapping("aws")
    if target == "aws":
        return aws.parse(values, stack, environment, project)
    if values:
        raise SettingsError(
            f"{MODULE}:aws", f"is of no use to target {target}", "Remove it, or set target to aws"
        )
    return None


def _identifier_suffix(reader: _Reader) -> str:
    suffix = reader.text("identifierSuffix")
    if suffix and not is_identifier(f"a{suffix}"):
        raise SettingsError(
            f"{MODULE}:identifierSuffix",
            f"{suffix!r} has characters that Port does not take in identifiers",
            "Use letters, digits and @ _ . + : = -, for example -staging",
        )
    return suffix


def _signing_secrets(reader: _Reader) -> tuple[SigningSecret, ...]:
    found = []
    for index, item in enumerate(reader.secret_list("signingSecrets")):
        key = f"{MODULE}:signingSecrets[{index}]"
        entry = {"value": item} if isinstance(item, str) else item
        if not isinstance(entry, dict) or not isinstance(entry.get("value"), str) or not entry["value"]:
            raise SettingsError(
                key, "has no value", 'Write {"value": "<secret>", "notAfter": "<RFC 3339 time>"}'
            )
        unknown = set(entry) - {"value", "notAfter"}
        if unknown:
            raise SettingsError(f"{key}.{min(unknown)}", "is unknown", "Use value and notAfter")
        not_after = entry.get("notAfter")
        if not_after is not None and not _is_time(not_after):
            raise SettingsError(
                f"{key}.notAfter", "is no RFC 3339 time", "Write it like 2027-01-31T00:00:00Z"
            )
        found.append(SigningSecret(entry["value"], not_after))
    return tuple(found)


def _is_time(value: object) -> bool:
    from datetime import datetime

    if not isinstance(value, str):
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _api_credentials(reader: _Reader) -> ApiCredentials | None:
    values = reader.secret_mapping("apiCredentials", ("clientId", "clientSecret"))
    if not values:
        return None
    for name in ("clientId", "clientSecret"):
        if not values.get(name):
            raise SettingsError(f"{MODULE}:apiCredentials.{name}", "is missing", "Set both, or neither")
    return ApiCredentials(values["clientId"], values["clientSecret"])


def _nearest(name: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else ""


class _Reader:
    """Takes keys one by one and knows in the end which nobody asked for."""

    def __init__(
        self, values: Mapping[str, str], secret_keys: frozenset[str], environment: Mapping[str, str]
    ) -> None:
        prefix = f"{MODULE}:"
        self._values = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
        self._provider = {k: v for k, v in values.items() if k.startswith(f"{PROVIDER}:")}
        self._secret = {k.removeprefix(prefix) for k in secret_keys if k.startswith(prefix)}
        self._environment = environment
        self._known: list[str] = []

    def provider(self, key: str, variable: str) -> str | None:
        return self._provider.get(f"{PROVIDER}:{key}") or self._environment.get(variable) or None

    def refuse_the_rest(self) -> None:
        for key in self._values:
            if key not in self._known:
                raise SettingsError(
                    f"{MODULE}:{key}",
                    f"is no setting of this module{_nearest(key, tuple(self._known))}",
                    f"Known settings: {', '.join(sorted(self._known))}",
                )

    def _json(self, key: str, kind: type | tuple[type, ...], noun: str) -> Any:
        self._known.append(key)
        text = self._values.get(key)
        if text is None:
            return None
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if not isinstance(value, kind):
            shown = "a secret" if key in self._secret else repr(value)
            raise SettingsError(f"{MODULE}:{key}", f"{shown} is not {noun}", f"Write {noun}")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        self._known.append(key)
        value = self._values.get(key, default)
        if value not in choices:
            raise SettingsError(
                f"{MODULE}:{key}",
                f"{value!r} is not supported",
                f"Use {' or '.join(choices)}{_nearest(value, choices)}",
            )
        return value

    def boolean(self, key: str, *, default: bool) -> bool:
        value = self._json(key, bool, "true or false")
        return default if value is None else bool(value)

    def text(self, key: str) -> str:
        self._known.append(key)
        return self._values.get(key, "")

    def strings(self, key: str) -> list[str]:
        value = self._json(key, list, "a list of strings") or []
        for index, item in enumerate(value):
            if not isinstance(item, str) or not item:
                raise SettingsError(f"{MODULE}:{key}[{index}]", "is not a string", "Write a list of strings")
        return list(value)

    def mapping(self, key: str, allowed: tuple[str, ...] | None = None) -> dict[str, Any]:
        value: dict[str, Any] = self._json(key, dict, "a map") or {}
        for name in value:
            if allowed is not None and name not in allowed:
                raise SettingsError(
                    f"{MODULE}:{key}.{name}",
                    f"is no setting of this module{_nearest(name, allowed)}",
                    f"Known here: {', '.join(allowed)}",
                )
        return value

    def secret_list(self, key: str) -> list[Any]:
        value: list[Any] = self._json(key, list, "a list") or []
        return [self._secret_value(key, f"{MODULE}:{key}[{index}]", item) for index, item in enumerate(value)]

    def secret_strings(self, key: str) -> list[str]:
        values = self.secret_list(key)
        for index, value in enumerate(values):
            if not isinstance(value, str) or not value:
                raise SettingsError(f"{MODULE}:{key}[{index}]", "is not a string", "Write a list of strings")
        return values

    def secret_mapping(self, key: str, allowed: tuple[str, ...] | None = None) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, item in self.mapping(key, allowed).items():
            path = f"{MODULE}:{key}.{name}"
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
                raise SettingsError(
                    path, "is no name of a secret", "Use letters, digits, _ and -, 100 at most"
                )
            value = self._secret_value(key, path, item)
            if not isinstance(value, str) or not value:
                raise SettingsError(path, "is not a string", "Write a secret string or {fromEnv: VARIABLE}")
            found[name] = value
        return found

    def _secret_value(self, key: str, path: str, item: Any) -> Any:
        if isinstance(item, dict) and set(item) == {"fromEnv"}:
            variable = item["fromEnv"]
            value = self._environment.get(variable) if isinstance(variable, str) else None
            if not value:
                raise SettingsError(
                    f"{path}.fromEnv", f"{variable!r} is not set in the environment", "Export it"
                )
            return value
        if key not in self._secret:
            name = path.removeprefix(f"{MODULE}:")
            raise SettingsError(
                path,
                "is in plain text",
                f"Run `pulumi config set --secret --path '{name}'`, or write {{fromEnv: VARIABLE}}",
            )
        return item


def _refuse_published_passphrase(settings: Settings) -> None:
    host = urlsplit(settings.base_url).hostname if settings.base_url else None
    if settings.is_local_port or host in ("localhost", "127.0.0.1", "::1"):
        return
    stack_file = settings.project / "stacks" / f"Pulumi.{settings.stack}.yaml"
    if stack_file.is_file() and PUBLISHED_SALT in stack_file.read_text(encoding="utf-8"):
        raise SettingsError(
            f"stacks/{stack_file.name}: encryptionsalt",
            "is the published one of the local stack, so everybody could read this stack's secrets",
            "Create the stack with a passphrase of your own (`pulumi stack init`) and copy the settings over",
        )


def project_folder(start: Path | None = None) -> Path:
    """Nearest folder, from `start` (default: here) upwards, that holds Pulumi.yaml; else `start` itself."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / "Pulumi.yaml").is_file():
            return folder
    return here
