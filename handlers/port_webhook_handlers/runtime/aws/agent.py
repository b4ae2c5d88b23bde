"""An agent for a stack without an inbound endpoint: what it takes from Port it hands to the receiver by Invoke.

`python -m port_webhook_handlers.runtime.aws.agent` reads the environment like `python -m port_webhook_handlers.agent`,
the receiver's name from `PORT_WEBHOOK_RECEIVER` and its region from `AWS_REGION`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from port_webhook_handlers.agent.config import AgentConfig, AgentConfigError
from port_webhook_handlers.agent.core import RetryLaterError
from port_webhook_handlers.agent.messages import Message
from port_webhook_handlers.agent.reports import NOTHING, Outcome
from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.port.signature import sign
from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.aws.container import ContainerCredentials
from port_webhook_handlers.runtime.claims import CurrentSecrets
from port_webhook_handlers.runtime.logs import Log

VARIABLE: Final = "PORT_WEBHOOK_RECEIVER"

_SECONDS: Final = 35.0


class InvokeSink:
    """Delivers to the receiver's function, signed like any delivery: it is verified there once more.

    Args:
        api: makes the calls to AWS; one for each thread, as connections are not shared.
        function: name of the receiver.
        secrets: the first signing secret is used.
    """

    def __init__(self, api: Callable[[], AwsApi], function: str, secrets: CurrentSecrets) -> None:
        self._api = api
        self._function = function
        self._secrets = secrets

    async def deliver(self, message: Message) -> Outcome:
        """One attempt; see `agent.core.Sink`."""
        if not isinstance(message.body, dict) or message.route is None:
            return Outcome(
                "failed", "FAILURE", "The message is no invocation of a handler: it names no action."
            )
        event = self._event(message, message.route)
        try:
            answer = json.loads(await asyncio.to_thread(self._invoke, event))
        except (AwsError, ValueError) as error:
            raise RetryLaterError(f"The receiver could not be invoked: {error}", lasting=True) from None
        status = int(answer["statusCode"])
        body = json.loads(answer["body"])
        if status == 202:
            return Outcome("delivered")
        if status in (429, 503):
            raise RetryLaterError(_message(body, status), lasting=True)
        if status == 409:
            # The run with this id is on its way, and nobody may end it because of another message.
            return Outcome("settled")
        succeeded = 200 <= status < 300
        return Outcome(
            "delivered" if succeeded else "failed",
            "SUCCESS" if succeeded else "FAILURE",
            None if succeeded else _message(body, status),
            response=body if message.invocation.synchronized else NOTHING,
        )

    def _event(self, message: Message, route: str) -> bytes:
        raw = message.raw or compact(message.body).encode()
        stamp = str(int(time.time()))
        path = f"/webhooks/{quote(route, safe='')}"
        event = {
            "version": "2.0",
            "rawPath": path,
            "headers": {
                # A definition may name the run there alone.
                **{name.lower(): value for name, value in message.invocation.headers.items()},
                "content-type": "application/json",
                "x-port-timestamp": stamp,
                "x-port-signature": sign(self._secrets.content.signing[0].value, stamp, raw),
            },
            "requestContext": {"http": {"method": message.invocation.method, "path": path}},
            "body": raw.decode(),
            "isBase64Encoded": False,
        }
        return json.dumps(event).encode()

    def _invoke(self, event: bytes) -> bytes:
        api = self._api()
        try:
            return api.invoke(self._function, event, _SECONDS)
        finally:
            api.close()


def _message(body: Any, status: int) -> str:
    text = body.get("message") if isinstance(body, dict) else None
    return text if isinstance(text, str) else f"The listener answered {status}."


def configured(environment: Mapping[str, str]) -> tuple[AgentConfig, str, str]:
    """The agent's configuration, the receiver's name and the region.

    Raises:
        AgentConfigError: a variable is missing or wrong; the message names it.
    """
    from port_webhook_handlers.agent.environment import from_environment

    for name, remedy in ((VARIABLE, "name the receiver's function"), ("AWS_REGION", "name its region")):
        if not environment.get(name):
            raise AgentConfigError(f"{name}: is not set; {remedy}")
    # An agent without hosts is refused, but this one calls none: the receiver is named by itself.
    config = from_environment({"AGENT_ALLOWED_HOSTS": "-", **environment})
    return config, environment[VARIABLE], environment["AWS_REGION"]


async def _serve(config: AgentConfig, function: str, region: str, log: Log) -> None:
    from port_webhook_handlers.agent.__main__ import live_secrets
    from port_webhook_handlers.agent.service import AgentService

    secrets = live_secrets(config, log)
    credentials = ContainerCredentials()
    sink = InvokeSink(lambda: AwsApi(region, credentials), function, secrets)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    service = AgentService(config, secrets, log, sink)
    await service.start()
    log("agent started", pid=os.getpid(), source=config.source, receiver=function)
    await ended.wait()
    await service.close()


def main() -> None:
    """Runs until a signal; exit code 2 for a configuration that cannot be used."""
    from port_webhook_handlers.agent.mapping import MappingError
    from port_webhook_handlers.runtime.library_log import LibraryLog
    from port_webhook_handlers.runtime.secret_file import SecretFileError

    log = Log()
    logging.basicConfig(handlers=[LibraryLog(log)], level=logging.WARNING, force=True)
    try:
        asyncio.run(_serve(*configured(os.environ), log))
    except (AgentConfigError, MappingError, SecretFileError, OSError) as error:
        log("agent not started", error=str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
