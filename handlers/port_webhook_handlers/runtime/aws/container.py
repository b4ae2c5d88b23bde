"""Credentials of AWS inside a container of ECS."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final
from urllib.request import ProxyHandler, Request, build_opener

from port_webhook_handlers.runtime.aws.api import AwsError, environment_credentials
from port_webhook_handlers.runtime.aws.sigv4 import Credentials

_HOST: Final = "http://169.254.170.2"
_SECONDS: Final = 2.0
_MARGIN_SECONDS: Final = 300.0


class ContainerCredentials:
    """The role of the task, renewed before it expires; credentials in the environment where there is no task.

    Args:
        environment: names the address that ECS hands them out at.
        clock: seconds since the epoch.
    """

    def __init__(
        self, environment: Mapping[str, str] = os.environ, clock: Callable[[], float] = time.time
    ) -> None:
        relative = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
        self._url = (
            f"{_HOST}{relative}" if relative else environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI")
        )
        self._clock = clock
        self._lock = threading.Lock()
        self._until = 0.0
        self._credentials: Credentials | None = None

    def __call__(self) -> Credentials:
        """The credentials now.

        Raises:
            AwsError: there are none.
        """
        if self._url is None:
            return environment_credentials()
        with self._lock:
            if self._credentials is None or self._clock() >= self._until:
                self._credentials = self._fetch(self._url)
            return self._credentials

    def _fetch(self, url: str) -> Credentials:
        if not url.startswith("http://"):
            raise AwsError("the address of the task's credentials is no http:// address")
        try:
            # Never through a proxy: it would see them.
            with build_opener(ProxyHandler({})).open(Request(url), timeout=_SECONDS) as response:  # noqa: S310
                found = json.load(response)
            self._until = datetime.fromisoformat(found["Expiration"]).timestamp() - _MARGIN_SECONDS
            return Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["Token"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AwsError(f"credentials of the task: {type(error).__name__}") from None
