"""What target aws deploys, decided and checked before anything is registered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.bundle import Bundle
from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.aws.deployment import VARIABLE, Deployment
from port_webhook_handlers.runtime.confirmation import is_needed
from port_webhook_handlers.runtime.execution import STARTS_AFTER_INTERRUPTS
from port_webhook_handlers.runtime.manifest import Route
from port_webhook_stack.aws import actions
from port_webhook_stack.aws.settings import KEY, AwsSettings, GroupSettings
from port_webhook_stack.errors import SettingsError, StackError
from port_webhook_stack.listener.aws_archive import LambdaArchive, build_archive

HANDLER_SECONDS: Final = 870
"""Longest run of an asynchronous handler: Lambda ends a function after 900 s."""

SYNC_SECONDS: Final = 28
"""Longest synchronous run: an HTTP API gives up after 30 s."""

_FUNCTION_MARGIN_SECONDS: Final = 30
_MOST_NAME: Final = 64
_MOST_GROUPS: Final = 20
_MOST_ENVIRONMENT: Final = 4096
_DEFAULT_GROUP: Final = "default"


@dataclass(frozen=True)
class Group:
    """A privilege group: its handlers share a queue, a function and a role.

    Attributes:
        name: of the group.
        routes: its routes.
        statements: what its handlers declared that they do in AWS.
        settings: of its functions.
    """

    name: str
    routes: tuple[Route, ...]
    statements: tuple[Mapping[str, Sequence[str]], ...]
    settings: GroupSettings = field(default_factory=GroupSettings)

    @property
    def asynchronous(self) -> tuple[Route, ...]:
        """Routes that its worker runs."""
        return tuple(route for route in self.routes if route.mode == "async")

    @property
    def secrets(self) -> tuple[str, ...]:
        """Names of the secrets that its handlers declare."""
        return tuple(sorted({name for route in self.routes for name in route.secrets}))

    @property
    def decrypts(self) -> bool:
        """Whether a handler has encrypted inputs."""
        return any(route.encrypted_inputs for route in self.routes)

    @property
    def has_secret(self) -> bool:
        """Whether there is a secret for its functions to read."""
        return bool(self.secrets) or self.decrypts

    @property
    def worker_seconds(self) -> int:
        """Time limit of its worker function."""
        longest = max(route.timeout_seconds for route in self.asynchronous)
        return math.ceil(longest) + _FUNCTION_MARGIN_SECONDS

    @property
    def visibility_seconds(self) -> int:
        """How long its queue hides a message: six times the function's limit, as Lambda's documentation asks for."""
        return 6 * self.worker_seconds

    @property
    def concurrency(self) -> int:
        """Runs at once; an event source has at least two."""
        return max(2, min(1000, sum(route.max_concurrency for route in self.asynchronous)))

    @property
    def receives(self) -> int:
        """Deliveries of a message before it is a dead letter."""
        attempts = max(route.max_attempts for route in self.asynchronous)
        return max(attempts, STARTS_AFTER_INTERRUPTS) + 2


@dataclass(frozen=True)
class Plan:
    """What is deployed.

    Attributes:
        settings: of the target.
        digest: of the bundle.
        archive: of the functions.
        groups: by name.
        delegated: synchronous routes that run in a function of their group.
        port_base_url: Port's API.
        sync_deadline_seconds, tolerance_seconds: limits of the receiver.
        overlap_seconds: how long a former signing secret stays valid.
        source_addresses, trusted_proxy_hops: where requests may come from, see `ListenerConfig`.
    """

    settings: AwsSettings
    digest: str
    archive: LambdaArchive
    groups: Mapping[str, Group]
    delegated: tuple[str, ...]
    port_base_url: str
    sync_deadline_seconds: float
    tolerance_seconds: float
    overlap_seconds: float = 0
    source_addresses: Sequence[str] = ()
    trusted_proxy_hops: int = 0

    @cached_property
    def workers(self) -> tuple[Group, ...]:
        """Groups with asynchronous routes."""
        return tuple(group for group in self.groups.values() if group.asynchronous)

    @cached_property
    def synchronous(self) -> tuple[Group, ...]:
        """Groups with a function for synchronous routes."""
        return tuple(
            group
            for group in self.groups.values()
            if any(route.name in self.delegated for route in group.routes)
        )

    @property
    def answers_here(self) -> bool:
        """Whether the receiver runs synchronous handlers itself."""
        return any(
            route.mode == "sync" and route.name not in self.delegated
            for group in self.groups.values()
            for route in group.routes
        )

    @property
    def confirms(self) -> bool:
        """Whether the receiver asks Port about runs, whose ids are in a header."""
        return is_needed(route for group in self.groups.values() for route in group.routes)


def _check_environment(found: Plan) -> None:
    """Lambda takes 4 KiB of variables, and the receiver's name every queue and function."""
    settings, prefix, account = found.settings, found.settings.name_prefix, "0" * 12
    queue = f"https://sqs.{settings.region}.amazonaws.com/{account}/{prefix}-"
    secret = f"arn:aws:secretsmanager:{settings.region}:{account}:secret:{prefix}-"
    read = ("signing", "api") if found.confirms else ("signing",)
    deployment = Deployment(
        digest=found.digest,
        table=f"{prefix}-ledger",
        secrets={name: f"{secret}{name}-000000" for name in read},
        queues={group.name: f"{queue}runs-{group.name}.fifo" for group in found.workers},
        reports=f"{queue}reports.fifo",
        functions={group.name: f"{prefix}-sync-{group.name}" for group in found.synchronous},
        port_base_url=found.port_base_url if found.confirms else "",
        sync_deadline_seconds=found.sync_deadline_seconds,
        tolerance_seconds=found.tolerance_seconds,
        retention_days=settings.retention_days,
        overlap_seconds=found.overlap_seconds,
        source_addresses=found.source_addresses,
        trusted_proxy_hops=found.trusted_proxy_hops,
    )
    size = len(VARIABLE) + len(deployment.dumps())
    if size > _MOST_ENVIRONMENT:
        addresses = len(found.source_addresses)
        raise SettingsError(
            f"{KEY}.namePrefix",
            f"makes the receiver's environment {size} bytes with {len(found.groups)} privilege groups"
            + (f" and {addresses} source addresses" if addresses else "")
            + f"; Lambda takes {_MOST_ENVIRONMENT}",
            "Use a shorter prefix, or fewer privilege groups with shorter names"
            + (", or fewer networks in listener.sourceAddresses" if addresses else ""),
        )


def plan(
    bundle: Bundle,
    settings: AwsSettings,
    *,
    archives: Path,
    requirements: Path,
    handler_settings: Mapping[str, Any],
    port_base_url: str,
    sync_deadline_seconds: float,
    tolerance_seconds: float,
    overlap_seconds: float = 0,
    source_addresses: Sequence[str] = (),
    trusted_proxy_hops: int = 0,
) -> Plan:
    """Decides what is deployed.

    Args:
        bundle: runtime and handlers.
        settings: of the target.
        archives: folder for the archive.
        requirements: folder of this project's lock files.
        handler_settings: settings by route; `*` for all.
        port_base_url: Port's API.
        sync_deadline_seconds, tolerance_seconds: limits of the receiver.
        overlap_seconds: how long a former signing secret stays valid.
        source_addresses, trusted_proxy_hops: where requests may come from, see `ListenerConfig`.

    Raises:
        StackError: handlers and target do not fit together, or the archive cannot be made.
    """
    routes = manifests.load(bundle.path)[0].routes
    groups = _groups(routes, bundle.aws_permissions, settings.groups)
    delegated = tuple(
        sorted(
            route.name
            for route in routes.values()
            if route.mode == "sync" and _privileged(route, bundle, groups[route.privilege_group])
        )
    )
    _check_times(routes.values(), sync_deadline_seconds)
    _check_permissions(routes, bundle.aws_permissions)
    _check_names(groups, settings.name_prefix)
    locks = settings.requirements or _locks(
        requirements, encrypted=any(group.decrypts for group in groups.values())
    )
    archive = build_archive(
        bundle,
        archives,
        architecture=settings.architecture,
        python=settings.python,
        requirements=locks,
        handler_settings=handler_settings,
        delegated=delegated,
    )
    found = Plan(
        settings,
        bundle.digest,
        archive,
        groups,
        delegated,
        port_base_url,
        sync_deadline_seconds,
        tolerance_seconds,
        overlap_seconds,
        source_addresses,
        trusted_proxy_hops,
    )
    _check_environment(found)
    return found


def _groups(
    routes: Mapping[str, Route],
    permissions: Mapping[str, Sequence[Mapping[str, Sequence[str]]]],
    settings: Mapping[str, GroupSettings],
) -> dict[str, Group]:
    members: dict[str, list[Route]] = {}
    for name in sorted(routes):
        members.setdefault(routes[name].privilege_group, []).append(routes[name])
    for name in settings:
        if name not in members:
            raise SettingsError(
                f"{KEY}.groups.{name}",
                "is no privilege group of the handlers",
                f"They have: {', '.join(sorted(members))}",
            )
    return {
        name: Group(
            name,
            tuple(found),
            tuple(statement for route in found for statement in permissions.get(route.name, ())),
            settings.get(name, GroupSettings()),
        )
        for name, found in sorted(members.items())
    }


def _privileged(route: Route, bundle: Bundle, group: Group) -> bool:
    """Whether a handler needs more than the receiver, which holds the signing secret, may give away."""
    return bool(
        route.privilege_group != _DEFAULT_GROUP
        or group.settings.subnets
        or route.secrets
        or route.encrypted_inputs
        or bundle.aws_permissions.get(route.name)
    )


def _locks(folder: Path, *, encrypted: bool) -> tuple[Path, ...]:
    return (folder / ("handlers-encryption.txt" if encrypted else "handlers.txt"),)


def _check_times(routes: Any, sync_deadline_seconds: float) -> None:
    for route in routes:
        limit = SYNC_SECONDS if route.mode == "sync" else HANDLER_SECONDS
        if route.timeout_seconds > limit:
            why = (
                "an HTTP API gives up after 30 s"
                if route.mode == "sync"
                else "Lambda ends a function after 900 s"
            )
            raise StackError(
                f"{route.source}: timeout_seconds of {route.name} is {route.timeout_seconds:g}; on target aws "
                f"{'a synchronous' if route.mode == 'sync' else 'an asynchronous'} handler has {limit} at most: {why}"
            )
    if sync_deadline_seconds > SYNC_SECONDS:
        raise SettingsError(
            "port-webhook-stack:listener.syncDeadlineSeconds",
            f"{sync_deadline_seconds:g} is too long for target aws, where gateways give up after 30 s",
            f"Use {SYNC_SECONDS} at most",
        )


def _check_permissions(
    routes: Mapping[str, Route], permissions: Mapping[str, Sequence[Mapping[str, Sequence[str]]]]
) -> None:
    for name in sorted(routes):
        if problem := actions.problem_with(permissions.get(name, ())):
            raise StackError(f"{routes[name].source}: aws_permissions of {name}: {problem}")


def _check_names(groups: Mapping[str, Group], prefix: str) -> None:
    if len(groups) > _MOST_GROUPS:
        raise StackError(
            f"the handlers have {len(groups)} privilege groups, target aws takes {_MOST_GROUPS}; "
            "give handlers with the same privileges the same group"
        )
    longest = max([f"{prefix}-worker-{name}" for name in groups] + [f"{prefix}-dead-letters"], key=len)
    if len(longest) > _MOST_NAME:
        raise SettingsError(
            f"{KEY}.namePrefix",
            f"makes the name {longest}, which has {len(longest)} characters; AWS takes {_MOST_NAME}",
            f"Use a prefix that is {len(longest) - _MOST_NAME} shorter, or a shorter privilege group",
        )
