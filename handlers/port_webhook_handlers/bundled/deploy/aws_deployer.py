"""What the deployers of ECS and Lambda share: clients of the settings' account, and errors for the run's page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from port_webhook_handlers.bundled.aws import AwsAccess, AwsRefusedError, refused
from port_webhook_handlers.bundled.deploy.deployer import DeploymentError
from port_webhook_handlers.bundled.deploy.settings import part_of

T = TypeVar("T")


class AwsDeployer:
    """Base of the deployers of AWS.

    Args:
        settings: hold the maps `services` and `aws`.

    Raises:
        SettingError: the map `aws` cannot be used.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        options = part_of(settings, "aws")
        self._aws = AwsAccess.of(options)
        options.end()

    @contextmanager
    def _client(self, name: str) -> Iterator[Any]:
        """A client of a service of AWS; what is refused inside comes out as `DeploymentError`."""
        try:
            with self._aws.client(name) as client:
                yield client
        except AwsRefusedError as error:
            raise DeploymentError(str(error)) from None


def look(call: Callable[[], T]) -> T | None:
    """The answer of a call that only reads; None if the same call may succeed later.

    Raises:
        DeploymentError: it was refused.
    """
    try:
        return call()
    except Exception as error:  # noqa: BLE001 - what is none of AWS's goes on
        problem = refused(error)
        if not problem.passing:
            raise DeploymentError(str(problem)) from None
        return None
