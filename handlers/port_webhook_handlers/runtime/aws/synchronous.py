"""The function that runs synchronous handlers which have privileges; only the receiver invokes it."""

from __future__ import annotations

import dataclasses
import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.runtime.aws.api import AwsApi
from port_webhook_handlers.runtime.aws.deployment import Archive, Deployment
from port_webhook_handlers.runtime.aws.runs import Runs
from port_webhook_handlers.runtime.aws.secrets import CachedSecrets
from port_webhook_handlers.runtime.logs import Log


class SynchronousFunction:
    """Runs a handler that was verified, validated and claimed elsewhere."""

    def __init__(self, archive: Archive, deployment: Deployment, api: AwsApi, log: Log) -> None:
        self._routes = archive.manifest.routes
        secrets = CachedSecrets(
            api,
            deployment.secrets,
            ("handlers",),
            deployment.secrets_seconds,
            log,
            deployment.overlap_seconds,
        )
        self._runs = Runs(
            archive, deployment, api, secrets if "handlers" in deployment.secrets else None, log
        )

    def __call__(self, event: Mapping[str, Any], context: object) -> dict[str, Any]:
        """The fields of the run's outcome."""
        route = self._routes[str(event["route"])]
        body = json.loads(b64decode(event["body"]))
        outcome = self._runs.run(str(event["run_id"]), route, body, 1, float(event["seconds"]))
        return dataclasses.asdict(outcome)


def create() -> SynchronousFunction:
    """The function, built while Lambda initialises the environment."""
    deployment, archive, log = Deployment.load(), Archive.running(), Log()
    archive.check_loaded()
    return SynchronousFunction(archive, deployment, AwsApi.from_environment(), log)
