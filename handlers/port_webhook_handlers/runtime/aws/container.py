"""Credentials of AWS inside a container of ECS."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from http.client import HTTPException
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
            try:
                return environment_credentials()
            except KeyError as error:
                raise AwsError(
                    f"credentials: neither a role of the task nor {error.args[0]} is there; run the agent as a task of "
                    "ECS with a task role, or set the variable"
                ) from None
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
            credentials = Credentials(found["AccessKeyId"], found["SecretAccessKey"], found["Token"])
            # Last, so that an answer that is no use does not keep the former ones beyond their end.
            self._until = datetime.fromisoformat(found["Expiration"]).timestamp() - _MARGIN_SECONDS
        except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
            raise AwsError(
                f"credentials of the task cannot be read from ECS ({type(error).__name__}); see whether the task has a role"
            ) from None
        return credentials
