"""The settings under `port-webhook-stack:kubernetes`, checked; every error names its key and the remedy."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from port_webhook_stack.errors import SettingsError

KEY: Final = "port-webhook-stack:kubernetes"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_HOST = re.compile(r"(\*\.)?([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\.)+[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9.:_/-]+(:[\w.-]+)?@sha256:[0-9a-f]{64}")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|k|M|G|Ki|Mi|Gi)?")

_TOLERATION: Final[Mapping[str, tuple[str, ...]]] = {
    "key": (),
    "operator": ("Exists", "Equal"),
    "value": (),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
}

Resources = Mapping[str, Mapping[str, str]]

LISTENER_RESOURCES: Final[Resources] = {
    "requests": {"cpu": "100m", "memory": "192Mi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "2", "memory": "512Mi", "ephemeral-storage": "512Mi"},
}
DISPATCHER_RESOURCES: Final[Resources] = {
    "requests": {"cpu": "50m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "256Mi"},
}
JOB_RESOURCES: Final[Resources] = {
    "requests": {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "1Gi"},
}
AGENT_RESOURCES: Final[Resources] = {
    "requests": {"cpu": "50m", "memory": "128Mi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "1", "memory": "512Mi", "ephemeral-storage": "256Mi"},
}


@dataclass(frozen=True, slots=True)
class Ingress:
    """How requests from outside reach the listener.

    Attributes:
        host: name under which Port calls.
        tls_secret: Secret of type kubernetes.io/tls in the stack's namespace, made by you or by cert-manager.
        class_name: ingress class; None: the cluster's default.
        annotations: for the ingress controller or cert-manager.
        namespaces: namespaces of the ingress controller, the only ones that may connect to the listener.
    """

    host: str
    tls_secret: str
    class_name: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ("ingress-nginx",)


@dataclass(frozen=True, slots=True)
class Group:
    """A privilege group of handlers.

    Attributes:
        image: image with further dependencies of its handlers; None: the runtime image.
        resources: requests and limits.
        annotations: of its ServiceAccount, for example the role of a cloud.
        token: whether its Pods get a token of the cluster; what it may do is granted by you.
        egress: further CIDRs that its Pods may connect to, on any port.
    """

    image: str | None = None
    resources: Resources = field(default_factory=lambda: JOB_RESOURCES)
    annotations: Mapping[str, str] = field(default_factory=dict)
    token: bool = False
    egress: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Agent:
    """Port's execution agent in the cluster.

    Attributes:
        kind: `official` (Port's image) or `own` (the runtime image).
        image: the official image, by digest.
        resources: requests and limits.
        existing_secret: Secret with the agent's credentials; None: one is made of the stack's.
        environment: further variables of the official agent, as its documentation names them.
    """

    kind: Literal["official", "own"]
    image: str | None = None
    resources: Resources = field(default_factory=lambda: AGENT_RESOURCES)
    existing_secret: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """Where and how the stack runs in a cluster.

    Attributes:
        image: the runtime image, by digest.
        kubeconfig: file; None: `KUBECONFIG`, or the user's own.
        context: of the kubeconfig; None: its current one.
        namespace, runs_namespace: of the listener, and of runs and their Jobs.
        create_namespaces: make them, with Pod Security labels; else they must exist.
        image_pull_secrets: names of Secrets, in both namespaces.
        node_selector, tolerations: on which nodes all Pods may run, as Kubernetes takes them.
        replicas, max_replicas: of the listener; it is scaled between them by CPU.
        listener_resources, dispatcher_resources: requests and limits.
        groups: privilege groups that differ from the defaults.
        ingress: None: no address from outside.
        existing_secrets: role (`listener`, `dispatcher` or a handler's route) to a Secret that is there already.
        api_server: CIDRs of the API server, opened for listener and dispatcher.
        egress: further CIDRs that listener and dispatcher may connect to, on any port.
        monitoring_namespaces: namespaces that may read metrics.
        network_policies, admission_policies: whether they are made.
        max_jobs: how many runs are executed at once.
        max_stored: how many runs may be stored at once, ended ones within their retention included.
        retention_hours: how long an ended run is remembered.
        start_seconds: a run that cannot be started fails after this time.
        render_directory: write YAML files there and touch no cluster.
        agent: None: no agent.
    """

    image: str
    kubeconfig: str | None = None
    context: str | None = None
    namespace: str = "port-webhook"
    runs_namespace: str = "port-webhook-runs"
    create_namespaces: bool = True
    image_pull_secrets: tuple[str, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Mapping[str, Any], ...] = ()
    replicas: int = 2
    max_replicas: int = 6
    listener_resources: Resources = field(default_factory=lambda: LISTENER_RESOURCES)
    dispatcher_resources: Resources = field(default_factory=lambda: DISPATCHER_RESOURCES)
    groups: Mapping[str, Group] = field(default_factory=dict)
    ingress: Ingress | None = None
    existing_secrets: Mapping[str, str] = field(default_factory=dict)
    api_server: tuple[str, ...] = ()
    egress: tuple[str, ...] = ()
    monitoring_namespaces: tuple[str, ...] = ()
    network_policies: bool = True
    admission_policies: bool = True
    max_jobs: int = 50
    max_stored: int = 20_000
    retention_hours: float = 24
    start_seconds: float = 300
    render_directory: str | None = None
    agent: Agent | None = None

    def group(self, name: str) -> Group:
        """Settings of a privilege group."""
        return self.groups.get(name, Group())


def is_pulled(target: KubernetesSettings | None, public_url: str | None) -> bool:
    """Whether invocations come by the agent alone, because there is no way in.

    Args:
        target: settings of the target, if it is kubernetes.
        public_url: of a proxy in front.
    """
    return target is not None and target.agent is not None and target.ingress is None and public_url is None


def parse(values: Mapping[str, Any]) -> KubernetesSettings:
    """Checks the map `port-webhook-stack:kubernetes`.

    Raises:
        SettingsError: a key is unknown, or its value is missing or wrong.
    """
    top = _Map(values, KEY)
    settings = KubernetesSettings(
        image=top.image("image", required=True) or "",
        kubeconfig=top.text("kubeconfig"),
        context=top.text("context"),
        namespace=top.name("namespace") or "port-webhook",
        runs_namespace=top.name("runsNamespace") or "port-webhook-runs",
        create_namespaces=top.flag("createNamespaces", default=True),
        image_pull_secrets=top.names("imagePullSecrets"),
        node_selector=top.texts("nodeSelector"),
        tolerations=top.tolerations("tolerations"),
        replicas=top.count("replicas", 2, 1, 100),
        max_replicas=top.count("maxReplicas", 6, 1, 1000),
        listener_resources=top.resources("listenerResources", LISTENER_RESOURCES),
        dispatcher_resources=top.resources("dispatcherResources", DISPATCHER_RESOURCES),
        groups={name: _group(item) for name, item in top.maps("groups").items()},
        ingress=_ingress(top.map("ingress")),
        existing_secrets=top.texts("existingSecrets"),
        api_server=top.cidrs("apiServer"),
        egress=top.cidrs("egress"),
        monitoring_namespaces=top.names("monitoringNamespaces"),
        network_policies=top.flag("networkPolicies", default=True),
        admission_policies=top.flag("admissionPolicies", default=True),
        max_jobs=top.count("maxJobs", 50, 1, 1000),
        max_stored=top.count("maxStored", 20_000, 100, 1_000_000),
        retention_hours=top.count("retentionHours", 24, 1, 24 * 30),
        start_seconds=top.count("startSeconds", 300, 30, 3600),
        render_directory=top.text("renderYamlToDirectory"),
        agent=_agent(top.map("agent")),
    )
    top.refuse_the_rest()
    if settings.namespace == settings.runs_namespace:
        raise SettingsError(
            f"{KEY}.runsNamespace",
            "is the listener's own namespace, whose secrets a run must not reach",
            "Use another namespace, for example port-webhook-runs",
        )
    if settings.replicas > settings.max_replicas:
        raise SettingsError(
            f"{KEY}.maxReplicas",
            f"{settings.max_replicas} is less than replicas ({settings.replicas})",
            "Raise it, or lower replicas",
        )
    if settings.network_policies and not settings.api_server:
        raise SettingsError(
            f"{KEY}.apiServer",
            "is missing, so the network policies would cut listener and dispatcher off from the API server",
            "List its addresses as CIDRs (`kubectl get endpointslices -n default kubernetes` shows them), "
            "or set networkPolicies to false",
        )
    return settings


def _ingress(item: _Map | None) -> Ingress | None:
    if item is None:
        return None
    host = item.text("host")
    if host is None or not _HOST.fullmatch(host):
        raise SettingsError(
            f"{item.key}.host",
            "is missing" if host is None else f"{host!r} is no host name",
            "Set the name under which Port reaches the listener, for example hooks.example.com",
        )
    secret = item.name("tlsSecret")
    if secret is None:
        raise SettingsError(
            f"{item.key}.tlsSecret",
            "is missing; without TLS everybody on the way could read the inputs",
            "Name a Secret of type kubernetes.io/tls; cert-manager makes one from an annotation",
        )
    found = Ingress(
        host=host,
        tls_secret=secret,
        class_name=item.text("className"),
        annotations=item.texts("annotations"),
        namespaces=item.names("namespaces") or ("ingress-nginx",),
    )
    item.refuse_the_rest()
    return found


def _group(item: _Map) -> Group:
    found = Group(
        image=item.image("image"),
        resources=item.resources("resources", JOB_RESOURCES),
        annotations=item.texts("serviceAccountAnnotations"),
        token=item.flag("mountToken", default=False),
        egress=item.cidrs("egress"),
    )
    item.refuse_the_rest()
    return found


def _agent(item: _Map | None) -> Agent | None:
    if item is None:
        return None
    kind = item.text("kind") or "own"
    if kind not in ("official", "own"):
        raise SettingsError(f"{item.key}.kind", f"{kind!r} is not supported", "Use official or own")
    found = Agent(
        kind="official" if kind == "official" else "own",
        image=item.image("image", required=kind == "official"),
        resources=item.resources("resources", AGENT_RESOURCES),
        existing_secret=item.name("existingSecret"),
        environment=item.texts("environment"),
    )
    item.refuse_the_rest()
    return found


class _Map:
    """A map of the stack file that knows in the end which keys nobody asked for."""

    def __init__(self, values: Mapping[str, Any], key: str) -> None:
        self.key = key
        self._values = values
        self._known: list[str] = []

    def refuse_the_rest(self) -> None:
        for name in self._values:
            if name not in self._known:
                close = difflib.get_close_matches(name, self._known, n=1)
                hint = f"; did you mean {close[0]}?" if close else ""
                raise SettingsError(
                    f"{self.key}.{name}",
                    f"is no setting of this module{hint}",
                    f"Known here: {', '.join(self._known)}",
                )

    def _take(self, name: str, kind: type, noun: str) -> Any:
        self._known.append(name)
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SettingsError(f"{self.key}.{name}", f"{value!r} is not {noun}", f"Write {noun}")
        return value

    def text(self, name: str) -> str | None:
        return self._take(name, str, "a string") or None

    def name(self, name: str) -> str | None:
        value = self.text(name)
        if value is not None:
            self._check_name(f"{self.key}.{name}", value)
        return value

    def names(self, name: str) -> tuple[str, ...]:
        values = self._list(name)
        for index, value in enumerate(values):
            self._check_name(f"{self.key}.{name}[{index}]", value)
        return tuple(values)

    def image(self, name: str, *, required: bool = False) -> str | None:
        value = self.text(name)
        if value is None and required:
            raise SettingsError(
                f"{self.key}.{name}",
                "is missing",
                "Build the runtime image (images/runtime/README.md), push it, and set its name with @sha256:…",
            )
        if value is not None and not _IMAGE.fullmatch(value):
            raise SettingsError(
                f"{self.key}.{name}",
                f"{value!r} does not name an image by digest, so what runs could change by itself",
                "Write it as registry/name@sha256:<64 hex digits>; `docker buildx imagetools inspect` shows them",
            )
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        value = self._take(name, bool, "true or false")
        return default if value is None else bool(value)

    def count(self, name: str, default: int, low: int, high: int) -> int:
        value = self._take(name, int, "a whole number")
        if value is None:
            return default
        if not low <= value <= high:
            raise SettingsError(f"{self.key}.{name}", f"{value} is out of range", f"Use {low} to {high}")
        return int(value)

    def cidrs(self, name: str) -> tuple[str, ...]:
        values = self._list(name)
        for index, value in enumerate(values):
            try:
                ipaddress.ip_network(value)
            except ValueError as error:
                raise SettingsError(
                    f"{self.key}.{name}[{index}]",
                    f"{value!r} is no CIDR ({error})",
                    "Write it like 10.0.0.0/16",
                ) from error
        return tuple(values)

    def texts(self, name: str) -> dict[str, str]:
        values: dict[str, Any] = self._take(name, dict, "a map of strings") or {}
        for key, value in values.items():
            if not isinstance(value, str):
                raise SettingsError(f"{self.key}.{name}.{key}", "is not a string", "Write a string in quotes")
        return values

    def map(self, name: str) -> _Map | None:
        value = self._take(name, dict, "a map")
        return None if value is None else _Map(value, f"{self.key}.{name}")

    def maps(self, name: str) -> dict[str, _Map]:
        values: dict[str, Any] = self._take(name, dict, "a map of maps") or {}
        for key, value in values.items():
            if not isinstance(value, dict):
                raise SettingsError(f"{self.key}.{name}.{key}", "is not a map", "Write a map")
        return {key: _Map(value, f"{self.key}.{name}.{key}") for key, value in values.items()}

    def resources(self, name: str, default: Resources) -> Resources:
        item = self.map(name)
        if item is None:
            return default
        found: dict[str, dict[str, str]] = {kind: dict(default[kind]) for kind in ("requests", "limits")}
        for kind in found:
            for resource, quantity in item.texts(kind).items():
                where = f"{item.key}.{kind}.{resource}"
                if resource not in ("cpu", "memory", "ephemeral-storage"):
                    raise SettingsError(where, "is no resource", "Use cpu, memory or ephemeral-storage")
                if not _QUANTITY.fullmatch(quantity):
                    raise SettingsError(where, f"{quantity!r} is no quantity", "Write it like 500m or 256Mi")
                found[kind][resource] = quantity
        item.refuse_the_rest()
        return found

    def tolerations(self, name: str) -> tuple[Mapping[str, Any], ...]:
        values: list[Any] = self._take(name, list, "a list of tolerations") or []
        for index, value in enumerate(values):
            where = f"{self.key}.{name}[{index}]"
            if not isinstance(value, dict):
                raise SettingsError(where, "is not a map", "Write it like {key: dedicated, value: hooks}")
            item = _Map(value, where)
            for key, allowed in _TOLERATION.items():
                text = item.text(key)
                if text is not None and allowed and text not in allowed:
                    raise SettingsError(f"{where}.{key}", f"{text!r} is unknown", f"Use {', '.join(allowed)}")
            item.count("tolerationSeconds", 0, 0, 1_000_000_000)
            item.refuse_the_rest()
        return tuple(values)

    def _list(self, name: str) -> list[str]:
        values: list[Any] = self._take(name, list, "a list of strings") or []
        for index, value in enumerate(values):
            if not isinstance(value, str) or not value:
                raise SettingsError(
                    f"{self.key}.{name}[{index}]", "is not a string", "Write a list of strings"
                )
        return values

    @staticmethod
    def _check_name(key: str, value: str) -> None:
        if not _NAME.fullmatch(value):
            raise SettingsError(
                key, f"{value!r} is no name of an object", "Use lower-case letters, digits and -, 63 at most"
            )
