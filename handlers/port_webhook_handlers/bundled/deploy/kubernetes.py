"""Deploys services as Deployments of a cluster that exist already: their image is patched and the rollout watched.

What is live is remembered at the Deployment itself, in an annotation, so that an image that somebody else has set
since is not taken for it. With `cluster` left out, the API server of the cluster is used that the handler runs in,
with the token of its ServiceAccount.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.bundled.deploy.deployer import (
    Deployment,
    DeploymentError,
    Report,
    ServiceState,
    new_revision,
    plain,
)
from port_webhook_handlers.bundled.deploy.rollout import ReplacedError, Watch
from port_webhook_handlers.bundled.deploy.settings import (
    ContainerPlace,
    image_of,
    part_of,
    service_options,
    version_in,
    with_version,
)
from port_webhook_handlers.runtime.kubernetes.api import MERGE_PATCH, ApiServer, ApiServerError

DEPLOYED: Final = "port-webhook-stack/deployed"
"""Annotation of a Deployment: JSON of version, revision and image."""

RESTARTED_AT: Final = "kubectl.kubernetes.io/restartedAt"

_STRATEGIC: Final = "application/strategic-merge-patch+json"
# A process of a handler does not get the variables that name the API server; its name is the same everywhere.
_IN_CLUSTER: Final = "https://kubernetes.default.svc"
_SERVICE_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_TRIES: Final = 3
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workload(ContainerPlace):
    """One service's Deployment.

    Attributes:
        namespace, name: of the Deployment.
    """

    namespace: str
    name: str

    @classmethod
    def of(cls, settings: Mapping[str, Any], service: str) -> Workload:
        """From the settings below `services`.

        Raises:
            SettingError: they cannot be used.
        """
        options = service_options(settings, service)
        found = cls(
            service=service,
            namespace=options.text("namespace"),
            name=options.text("deployment", service),
            container=options.text("container", "") or None,
            image=image_of(options),
            url=options.text("url", "") or None,
        )
        options.end()
        for key, value in (("namespace", found.namespace), ("deployment", found.name)):
            if not _NAME.fullmatch(value):
                raise options.error(key, "must be a name of Kubernetes: lower-case letters, digits, - and .")
        return found

    @property
    def path(self) -> str:
        """Path of the Deployment."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.name}"


@dataclass(frozen=True, slots=True)
class _Change:
    """One change of a Deployment.

    Attributes:
        what: for people.
        former: what it goes back to, for people.
        after, undo: patches.
        holds: whether a Deployment still wants it.
        part: subresource that is patched.
    """

    what: str
    former: str
    after: Manifest
    undo: Manifest
    holds: Callable[[Manifest], bool]
    part: str = ""


class KubernetesDeployer:
    """Changes Deployments; see `Deployer`.

    Args:
        settings: hold the map `services`, and `cluster` outside of the cluster.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        options = part_of(settings, "cluster")
        self._server = options.text("server", _IN_CLUSTER)
        self._folder = Path(options.text("credentials", _SERVICE_ACCOUNT))
        options.end()
        if not self._server.startswith("https://"):
            raise options.error("server", "must start with https://")
        if not (self._folder / "token").is_file():
            raise options.error(
                "credentials",
                f"{self._folder} holds no token; name a folder with token and ca.crt, or give the privilege group "
                "of this handler a ServiceAccount's token",
            )

    def deploy(self, service: str, version: str, *, report: Report, timeout_seconds: float) -> Deployment:
        """See `Deployer.deploy`; a version that does not roll out is rolled back."""
        workload = Workload.of(self._settings, service)
        image = with_version(workload.image, version)
        revision = new_revision(version)
        deployed = {"version": version, "revision": revision, "image": image}
        with self._api() as api:
            before = _required(api, workload)
            container = _container(before, workload)
            former = _state(before, workload)
            report(f"{workload.namespace}/{workload.name}: {container['image']} → {image}")
            self._change(
                api,
                workload,
                _Change(
                    f"version {version}",
                    str(container["image"]),
                    _with_image(container["name"], image, json.dumps(deployed, sort_keys=True)),
                    _with_image(container["name"], container["image"], _annotations(before).get(DEPLOYED)),
                    lambda found: bool(_container(found, workload)["image"] == image),
                ),
                Watch(timeout_seconds, report),
            )
        return Deployment(
            url=workload.address(version),
            version=version,
            revision=revision,
            replaced=former.revision,
            replaced_version=former.version,
        )

    def scale(self, service: str, replicas: int, *, report: Report, timeout_seconds: float) -> ServiceState:
        """See `Deployer.scale`; if the copies do not get ready there are as many as before."""
        workload = Workload.of(self._settings, service)
        with self._api() as api:
            now = _replicas(_required(api, workload))
            report(f"{workload.namespace}/{workload.name}: {now} → {replicas} copies")
            self._change(
                api,
                workload,
                _Change(
                    "scaling",
                    "the former number of copies",
                    {"spec": {"replicas": replicas}},
                    {"spec": {"replicas": now}},
                    lambda found: _replicas(found) == replicas,
                    "/scale",
                ),
                Watch(timeout_seconds, report),
            )
            return _state(_required(api, workload), workload)

    def restart(self, service: str, *, report: Report, timeout_seconds: float) -> ServiceState:
        """See `Deployer.restart`; the way in which copies are replaced is the Deployment's own."""
        workload = Workload.of(self._settings, service)
        when = datetime.now(UTC).isoformat(timespec="microseconds")
        with self._api() as api:
            before = _required(api, workload)
            former = _annotations(before["spec"]["template"]).get(RESTARTED_AT)
            report(f"{workload.namespace}/{workload.name}: restarting {_replicas(before)} copies")
            self._change(
                api,
                workload,
                _Change(
                    "the restart",
                    "the former copies",
                    _restarted(when),
                    _restarted(former),
                    lambda found: _annotations(found["spec"]["template"]).get(RESTARTED_AT) == when,
                ),
                Watch(timeout_seconds, report),
            )
            return _state(_required(api, workload), workload)

    def state(self, service: str) -> ServiceState | None:
        """See `Deployer.state`."""
        workload = Workload.of(self._settings, service)
        with self._api() as api:
            found = _get(api, workload)
        return None if found is None else _state(found, workload)

    def _change(self, api: ApiServer, workload: Workload, change: _Change, watch: Watch) -> None:
        """Patches the Deployment and waits for its rollout; undoes it if that fails."""
        _patch(api, workload, change.after, change.part)
        try:
            watch.until_done(lambda: _missing(api, workload, change))
        except ReplacedError:
            raise
        except DeploymentError as error:
            failed = f"{change.what} of {workload.service} failed: {error}"
            try:
                _patch(api, workload, change.undo, change.part)
            except ApiServerError as other:
                raise DeploymentError(
                    f"{failed}. Going back to {change.former} failed too: {_said(other)}; look at "
                    f"`kubectl -n {workload.namespace} describe deployment {workload.name}`"
                ) from error
            back = watch.undone(lambda: _missing(api, workload, None))
            raise DeploymentError(
                f"{failed}. {'Rolled back' if back else 'The rollback is under way'} to {change.former}"
            ) from error

    @contextmanager
    def _api(self) -> Iterator[ApiServer]:
        api = ApiServer(self._server, self._folder)
        try:
            yield api
        except ApiServerError as error:
            raise DeploymentError(_said(error)) from None
        finally:
            api.close()


def _with_image(container: str, image: str, deployed: str | None) -> Manifest:
    # In a strategic merge patch, null removes an annotation.
    return {
        "metadata": {"annotations": {DEPLOYED: deployed}},
        "spec": {"template": {"spec": {"containers": [{"name": container, "image": image}]}}},
    }


def _restarted(when: str | None) -> Manifest:
    return {"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: when}}}}}


def _get(api: ApiServer, workload: Workload) -> Manifest | None:
    try:
        return api.request("GET", workload.path)
    except ApiServerError as error:
        if error.status == 404:
            return None
        raise


def _required(api: ApiServer, workload: Workload) -> Manifest:
    found = _get(api, workload)
    if found is None:
        raise DeploymentError(
            f"Deployment {workload.namespace}/{workload.name} of {workload.service} does not exist; create it "
            "once, this action only changes its image"
        )
    return found


def _container(deployment: Manifest, workload: Workload) -> Manifest:
    containers = deployment["spec"]["template"]["spec"]["containers"]
    return workload.chosen(containers, f"{workload.namespace}/{workload.name}")


def _patch(api: ApiServer, workload: Workload, body: Manifest, part: str) -> None:
    for attempt in range(_TRIES):
        try:
            api.request("PATCH", workload.path + part, body, content_type=MERGE_PATCH if part else _STRATEGIC)
            return
        except ApiServerError as error:
            # The same patch twice is as good as once.
            if not error.passing or attempt == _TRIES - 1:
                raise
            time.sleep(2**attempt)


def _missing(api: ApiServer, workload: Workload, change: _Change | None) -> str | None:
    """What a rollout lacks, as `kubectl rollout status` sees it; None: nothing."""
    try:
        found = _required(api, workload)
    except ApiServerError as error:
        if error.passing:
            return "the API server does not answer"
        raise DeploymentError(_said(error)) from None
    status = found.get("status", {})
    if change is not None and not change.holds(found):
        raise ReplacedError(
            f"{change.what} of {workload.service} is not what the Deployment wants any more: somebody else has "
            "changed it meanwhile, so nothing was rolled back"
        )
    if found["spec"].get("paused"):
        raise DeploymentError("the Deployment is paused; resume it first")
    if int(status.get("observedGeneration", 0)) < int(found["metadata"]["generation"]):
        return "waiting for the Deployment's controller"
    conditions = {item["type"]: item for item in status.get("conditions") or ()}
    progressing = conditions.get("Progressing", {})
    if progressing.get("status") == "False" or progressing.get("reason") == "ProgressDeadlineExceeded":
        refused = conditions.get("ReplicaFailure", {}).get("message")
        said = progressing.get("message") or progressing.get("reason")
        raise DeploymentError(f"{said}{f' ({refused})' if refused else ''}")
    wanted = _replicas(found)
    total, updated, available = (
        int(status.get(key) or 0) for key in ("replicas", "updatedReplicas", "availableReplicas")
    )
    if updated < wanted:
        return f"{updated} of {wanted} copies are new"
    if total > updated:
        return f"{total - updated} former copies are still there"
    if available < updated:
        return f"{available} of {updated} copies are available"
    return None


def _state(deployment: Manifest, workload: Workload) -> ServiceState:
    image = str(_container(deployment, workload)["image"])
    version, revision = version_in(image, workload.image), ""
    try:
        deployed = json.loads(_annotations(deployment).get(DEPLOYED) or "null") or {}
        if deployed.get("image") == image:
            version, revision = str(deployed["version"]), str(deployed["revision"])
    except (ValueError, KeyError, AttributeError):
        pass
    status = deployment.get("status", {})
    return ServiceState(
        version=version,
        # What was not deployed from here has no name of its own.
        revision=revision or plain(version),
        replicas=_replicas(deployment),
        healthy=int(status.get("availableReplicas") or 0),
        url=workload.address(version),
    )


def _annotations(item: Manifest) -> Mapping[str, str]:
    return item.get("metadata", {}).get("annotations") or {}


def _replicas(deployment: Manifest) -> int:
    return int(deployment["spec"].get("replicas", 1))


def _said(error: ApiServerError) -> str:
    if error.status == 403:
        return f"the cluster does not allow it: {error}"
    return f"the cluster: {error}"
