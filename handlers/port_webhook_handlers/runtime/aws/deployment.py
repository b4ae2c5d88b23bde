"""What a function is deployed with: its environment, which holds no secret, and files of the archive."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.manifest import Manifest

VARIABLE: Final = "PORT_WEBHOOK"
FILE_NAME: Final = "deployment.json"
BUNDLE: Final = "bundle"


class DeploymentError(Exception):
    """The function cannot work as it was deployed; the message says what to do."""


@dataclass(frozen=True)
class Deployment:
    """The environment of a function, JSON in the variable `PORT_WEBHOOK`.

    Attributes:
        digest: of the bundle that was deployed; only compared with that of the code that is loaded.
        table: name of the ledger.
        secrets: ARN of a secret by what it holds: `signing`, `api` or `handlers`.
        queues: URL of the queue of each privilege group.
        reports: URL of the queue of reports.
        functions: name of the synchronous function of each privilege group.
        port_base_url: Port's API.
        sync_deadline_seconds, tolerance_seconds, retention_days: limits.
        secrets_seconds: how long values of secrets are kept.
        source_addresses, trusted_proxy_hops: where requests may come from, see `ListenerConfig`.
        overlap_seconds: how long former signing secrets and decryption keys stay valid after a rotation.
        credentials: handlers get the function's credentials of AWS.
    """

    digest: str = ""
    table: str = ""
    secrets: Mapping[str, str] = field(default_factory=dict)
    queues: Mapping[str, str] = field(default_factory=dict)
    reports: str = ""
    functions: Mapping[str, str] = field(default_factory=dict)
    port_base_url: str = ""
    sync_deadline_seconds: float = 25
    tolerance_seconds: float = 300
    retention_days: float = 14
    secrets_seconds: float = 300
    source_addresses: Sequence[str] = ()
    trusted_proxy_hops: int = 0
    overlap_seconds: float = 0
    credentials: bool = False

    @classmethod
    def load(cls) -> Deployment:
        """Reads the environment.

        Raises:
            DeploymentError: the variable is missing or not what the components write.
        """
        try:
            body = json.loads(os.environ[VARIABLE])
            return cls(**body)
        except (KeyError, ValueError, TypeError) as error:
            raise DeploymentError(
                f"{VARIABLE}: is missing or does not fit this code ({type(error).__name__}); deploy the stack again"
            ) from error

    def dumps(self) -> str:
        """JSON without what is default."""
        default = Deployment()
        body = {item.name: getattr(self, item.name) for item in fields(self)}
        changed = {key: value for key, value in body.items() if value != getattr(default, key)}
        return json.dumps(changed, sort_keys=True, separators=(",", ":"))


class Archive:
    """The archive that this process was started from.

    Args:
        root: folder with `bundle/`, `lib/` and `deployment.json`.
    """

    def __init__(self, root: Path) -> None:
        self.bundle = root / BUNDLE
        self._root = root
        self.manifest: Manifest
        self.digest: str
        self.manifest, self.digest = manifests.load(self.bundle)

    @classmethod
    def running(cls) -> Archive:
        """The archive of this module."""
        return cls(Path(__file__).resolve().parents[4])

    @cached_property
    def _file(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self._root / FILE_NAME).read_bytes())
        return found

    def handler_settings(self, route: str) -> dict[str, Any]:
        """Settings for the handler of a route."""
        settings: Mapping[str, Mapping[str, Any]] = self._file.get("handler_settings", {})
        return {**settings.get("*", {}), **settings.get(route, {})}

    def delegated(self, route: str) -> bool:
        """Whether a synchronous route runs in the function of its privilege group."""
        return route in self._file.get("delegated", ())

    def check_loaded(self) -> None:
        """Holds what this process has imported from the bundle against the manifest.

        Raises:
            ManifestError: a loaded file is not the one that the manifest names.
        """
        prefix = f"{self.bundle}/"
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if not isinstance(file, str) or not file.startswith(prefix):
                continue
            name = file.removeprefix(prefix)
            if manifests.hash_file(Path(file)) != self.manifest.files.get(name):
                raise manifests.ManifestError(
                    f"{name} is not the file that the manifest names; deploy the stack again"
                )
