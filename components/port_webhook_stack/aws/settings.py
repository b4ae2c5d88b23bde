"""The settings under `port-webhook-stack:aws`, checked; every error names its key and the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from port_webhook_stack.errors import SettingsError

KEY: Final = "port-webhook-stack:aws"

Architecture = Literal["arm64", "x86_64"]

PYTHONS: Final = ("3.11", "3.12", "3.13", "3.14")
"""Versions of Python that Lambda has and this code runs on."""

T = TypeVar("T")

# What CloudWatch Logs takes.
_RETENTION_DAYS: Final = (
    1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653,
)  # fmt: skip
_REGION = re.compile(r"[a-z]{2}(-[a-z]+)+-\d")
_PREFIX = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_ARN = re.compile(r"arn:[\w-]+:[\w-]+:[\w-]*:\d*:\S+")
_IMAGE = re.compile(r"[a-z0-9.:_/-]+(:[\w.-]+)?@sha256:[0-9a-f]{64}")
_SUBNET = re.compile(r"subnet-[0-9a-z]+")
_SECURITY_GROUP = re.compile(r"sg-[0-9a-z]+")
_VPC = re.compile(r"vpc-[0-9a-z]+")
# Fargate's pairs of CPU units and MiB (its documentation, "Task CPU and memory").
_FARGATE: Final = {256: (512, 2048), 512: (1024, 4096), 1024: (2048, 8192), 2048: (4096, 16_384)}


@dataclass(frozen=True, slots=True)
class Throttling:
    """What the HTTP API lets through: requests a second, and at once."""

    rate: int = 50
    burst: int = 100


@dataclass(frozen=True, slots=True)
class Agent:
    """Port's execution agent as a Fargate service.

    Attributes:
        kind: `official` (Port's image) or `own` (an image that runs `python -m port_webhook_handlers.agent`).
        image: by digest.
        subnets: where its tasks run; they need a way to Port.
        vpc: of the subnets.
        assign_public_ip: for subnets without a NAT gateway.
        cpu, memory: units and MiB.
        health_command: what the container checks itself with.
        environment: further variables, as the agent's documentation names them.
    """

    kind: Literal["official", "own"]
    image: str
    subnets: tuple[str, ...]
    vpc: str
    assign_public_ip: bool = False
    cpu: int = 256
    memory: int = 512
    health_command: tuple[str, ...] = ("CMD", "python", "-c", "import os; os.kill(1, 0)")
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """Functions of one privilege group.

    Attributes:
        subnets: that they reach into; they need a way to SQS, DynamoDB and Secrets Manager from there.
        security_groups: of their network interfaces.
        memory: MiB; None: `worker_memory`.
    """

    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """Where and how the stack runs in AWS.

    Attributes:
        region: of everything.
        name_prefix: begins every name; with it several stacks share an account.
        tags: on everything that takes tags.
        architecture: of the functions.
        python: version of Lambda's runtime.
        ingress: `http-api` (throttled, with access logs), `function-url`, or `none` (an agent delivers).
        throttling: of the HTTP API.
        receiver_memory, worker_memory: MiB.
        groups: by privilege group, where its functions differ from others.
        receiver_concurrency: most receivers at once; None: what the account has left.
        kms_key: ARN of a customer key for secrets, queues, table and logs; None: keys of AWS.
        log_retention_days: of every log group.
        retention_days: how long runs are remembered.
        secret_recovery_days: how long a deleted secret can be restored; 0: not at all.
        protect: the table survives a mistake: deletion protection and point-in-time recovery.
        alarm_topic: ARN of an SNS topic; None: alarms have no action.
        requirements: lock files in place of this project's, with hashes.
        endpoints: service to URL, for another implementation of AWS.
        skip_validation: the provider asks nothing about credentials, region and account beforehand.
        agent: None: no agent.
    """

    region: str
    name_prefix: str
    tags: Mapping[str, str] = field(default_factory=dict)
    architecture: Architecture = "arm64"
    python: str = "3.13"
    ingress: Literal["http-api", "function-url", "none"] = "http-api"
    throttling: Throttling = field(default_factory=Throttling)
    receiver_memory: int = 512
    worker_memory: int = 512
    groups: Mapping[str, GroupSettings] = field(default_factory=dict)
    receiver_concurrency: int | None = None
    kms_key: str | None = None
    log_retention_days: int = 30
    retention_days: int = 14
    secret_recovery_days: int = 7
    protect: bool = True
    alarm_topic: str | None = None
    requirements: tuple[Path, ...] = ()
    endpoints: Mapping[str, str] = field(default_factory=dict)
    skip_validation: bool = False
    agent: Agent | None = None


def parse(
    values: Mapping[str, Any], stack: str, environment: Mapping[str, str], project: Path
) -> AwsSettings:
    """Checks the settings of target aws.

    Args:
        values: the map under the key.
        stack: name of the stack, for the default prefix.
        environment: `AWS_REGION` counts where `region` is not set.
        project: folder that paths are relative to.

    Raises:
        SettingsError: a key is unknown, or its value is missing or wrong.
    """
    reader = _Reader(KEY, values)
    region = reader.text("region", _REGION, "a region of AWS", "Write it like eu-west-1", None)
    region = region or environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if not region or not _REGION.fullmatch(region):
        raise SettingsError(
            f"{KEY}.region", "is missing", "Set it, for example to eu-west-1, or export AWS_REGION"
        )
    throttling = reader.nested("throttling")
    settings = AwsSettings(
        region=region,
        name_prefix=reader.text(
            "namePrefix", _PREFIX, "a prefix of names", "Use letters, digits and -, a letter first", None
        )
        or f"port-webhook-{stack}",
        tags=reader.texts("tags"),
        architecture=reader.choice("architecture", ("arm64", "x86_64"), "arm64"),  # type: ignore[arg-type]
        python=reader.choice("python", PYTHONS, "3.13"),
        ingress=reader.choice("ingress", ("http-api", "function-url", "none"), "http-api"),  # type: ignore[arg-type]
        throttling=Throttling(
            throttling.number("rate", 1, 10_000, 50), throttling.number("burst", 1, 5_000, 100)
        ),
        receiver_memory=reader.number("receiverMemory", 128, 10_240, 512),
        worker_memory=reader.number("workerMemory", 128, 10_240, 512),
        groups=_groups(reader.nested("groups")),
        receiver_concurrency=reader.optional_number("receiverConcurrency", 1, 10_000),
        kms_key=reader.text("kmsKey", _ARN, "the ARN of a KMS key", "Write arn:aws:kms:…:key/…", None),
        log_retention_days=reader.number("logRetentionDays", 1, 3653, 30),
        retention_days=reader.number("retentionDays", 1, 14, 14),
        secret_recovery_days=reader.number("secretRecoveryDays", 0, 30, 7),
        protect=reader.boolean("protect", default=True),
        alarm_topic=reader.text("alarmTopic", _ARN, "the ARN of an SNS topic", "Write arn:aws:sns:…", None),
        requirements=tuple(project / path for path in reader.strings("requirements")),
        endpoints=reader.texts("endpoints"),
        skip_validation=reader.boolean("skipValidation", default=False),
        agent=_agent(reader.nested("agent")) if "agent" in values else None,
    )
    throttling.refuse_the_rest()
    reader.refuse_the_rest()
    if settings.log_retention_days not in _RETENTION_DAYS:
        shown = ", ".join(map(str, _RETENTION_DAYS))
        raise SettingsError(
            f"{KEY}.logRetentionDays",
            f"{settings.log_retention_days} is none that CloudWatch Logs has",
            f"Use one of {shown}",
        )
    if 0 < settings.secret_recovery_days < 7:
        raise SettingsError(
            f"{KEY}.secretRecoveryDays",
            f"{settings.secret_recovery_days} is none that Secrets Manager takes",
            "Use 0, or 7 to 30",
        )
    if settings.ingress == "none" and settings.agent is None:
        raise SettingsError(
            f"{KEY}.ingress", "is none, so nothing could reach the listener", "Set agent, or another ingress"
        )
    for index, path in enumerate(settings.requirements):
        if not path.is_file():
            raise SettingsError(
                f"{KEY}.requirements[{index}]", f"{path} is no file", "Name a lock file with hashes"
            )
    return settings


def _agent(reader: _Reader) -> Agent:
    kind = reader.choice("kind", ("official", "own"), "official")
    image = reader.text(
        "image",
        _IMAGE,
        "an image by digest",
        "Write <registry>/<name>@sha256:<64 hex digits>, so that what runs is what was reviewed",
        None,
    )
    subnets = tuple(reader.strings("subnets"))
    vpc = reader.text("vpc", _VPC, "a VPC", "Write it like vpc-0a1b", None)
    for name, value, remedy in (
        ("image", image, "Name it by digest"),
        ("subnets", subnets, "List the subnets that its tasks run in"),
        ("vpc", vpc, "Name the VPC of the subnets, for the security group"),
    ):
        if not value:
            raise SettingsError(f"{reader.key}.{name}", "is missing", remedy)
    _check_ids(reader.key, "subnets", subnets)
    cpu = reader.number("cpu", 256, 2048, 256)
    memory = reader.number("memory", 512, 16_384, 512)
    low, high = _FARGATE.get(cpu, (0, 0))
    if not low <= memory <= high:
        pairs = "; ".join(f"{units}: {least} to {most}" for units, (least, most) in _FARGATE.items())
        raise SettingsError(
            f"{reader.key}.memory", f"{memory} does not go with cpu {cpu}", f"Fargate has {pairs}"
        )
    command = reader.strings("healthCommand")
    agent = Agent(
        kind=kind,  # type: ignore[arg-type]
        image=image or "",
        subnets=subnets,
        vpc=vpc or "",
        assign_public_ip=reader.boolean("assignPublicIp", default=False),
        cpu=cpu,
        memory=memory,
        environment=reader.texts("environment"),
        **({"health_command": tuple(command)} if command else {}),
    )
    reader.refuse_the_rest()
    return agent


def _groups(reader: _Reader) -> dict[str, GroupSettings]:
    return {name: _group(reader.nested(name)) for name in reader.names}


def _group(reader: _Reader) -> GroupSettings:
    subnets, groups = tuple(reader.strings("subnets")), tuple(reader.strings("securityGroups"))
    for name, value, other in (("subnets", subnets, groups), ("securityGroups", groups, subnets)):
        if other and not value:
            raise SettingsError(
                f"{reader.key}.{name}",
                "is missing: a function in a VPC needs subnets and security groups",
                "Set both, or neither",
            )
    _check_ids(reader.key, "subnets", subnets)
    _check_ids(reader.key, "securityGroups", groups)
    found = GroupSettings(subnets, groups, reader.optional_number("memory", 128, 10_240))
    reader.refuse_the_rest()
    return found


def _check_ids(key: str, name: str, values: tuple[str, ...]) -> None:
    pattern, noun, example = {
        "subnets": (_SUBNET, "subnet", "subnet-0a1b"),
        "securityGroups": (_SECURITY_GROUP, "security group", "sg-0a1b"),
    }[name]
    for index, value in enumerate(values):
        if not pattern.fullmatch(value):
            raise SettingsError(
                f"{key}.{name}[{index}]", f"{value!r} is no {noun}", f"Write it like {example}"
            )


class _Reader:
    """Takes keys of a map one by one and knows in the end which nobody asked for."""

    def __init__(self, key: str, values: Mapping[str, Any]) -> None:
        self.key = key
        self._values = values
        self._known: list[str] = []

    @property
    def names(self) -> tuple[str, ...]:
        """All keys of the map."""
        return tuple(self._values)

    def refuse_the_rest(self) -> None:
        for name in self._values:
            if name not in self._known:
                close = difflib.get_close_matches(name, self._known, n=1)
                raise SettingsError(
                    f"{self.key}.{name}",
                    "is no setting of this module" + (f"; did you mean {close[0]}?" if close else ""),
                    f"Known here: {', '.join(sorted(self._known))}",
                )

    def _take(self, name: str, valid: Callable[[Any], bool], noun: str, remedy: str, default: T) -> Any | T:
        self._known.append(name)
        value = self._values.get(name)
        if value is None:
            return default
        if not valid(value):
            raise SettingsError(f"{self.key}.{name}", f"{value!r} is not {noun}", remedy)
        return value

    def text(
        self, name: str, pattern: re.Pattern[str], noun: str, remedy: str, default: str | None
    ) -> str | None:
        found: str | None = self._take(
            name,
            lambda value: isinstance(value, str) and bool(pattern.fullmatch(value)),
            noun,
            remedy,
            default,
        )
        return found

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        shown = " or ".join(choices)
        # Versions like 3.13 are numbers in YAML.
        self._known.append(name)
        value = str(self._values.get(name, default))
        if value not in choices:
            raise SettingsError(f"{self.key}.{name}", f"{value!r} is not supported", f"Use {shown}")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        return bool(
            self._take(name, lambda value: isinstance(value, bool), "true or false", "Write one", default)
        )

    def optional_number(self, name: str, low: int, high: int) -> int | None:
        found: int | None = self._take(
            name,
            lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high,
            f"a whole number from {low} to {high}",
            "Write one",
            None,
        )
        return found

    def number(self, name: str, low: int, high: int, default: int) -> int:
        found = self.optional_number(name, low, high)
        return default if found is None else found

    def strings(self, name: str) -> list[str]:
        return list(
            self._take(
                name,
                lambda value: (
                    isinstance(value, list) and all(isinstance(item, str) and item for item in value)
                ),
                "a list of strings",
                "Write one",
                [],
            )
        )

    def texts(self, name: str) -> dict[str, str]:
        found: Mapping[str, str] = self._take(
            name,
            lambda value: isinstance(value, dict) and all(isinstance(item, str) for item in value.values()),
            "a map of strings",
            "Write one",
            {},
        )
        return dict(found)

    def nested(self, name: str) -> _Reader:
        found: Mapping[str, Any] = self._take(
            name, lambda value: isinstance(value, dict), "a map", "Write one", {}
        )
        return _Reader(f"{self.key}.{name}", found)
