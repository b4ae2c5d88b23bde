"""Runs an agent: `python -m port_webhook_handlers.agent [--config FILE]`.

Without a file the configuration is in the environment, under the names that Port's own agent knows where there are
such. SIGTERM and SIGINT end it in order; the exit code is 0 then, and 2 for a configuration that cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from pathlib import Path

from port_webhook_handlers.agent import config as configuration
from port_webhook_handlers.agent.config import AgentConfig, AgentConfigError
from port_webhook_handlers.agent.credentials import EnvironmentSecrets
from port_webhook_handlers.agent.environment import from_environment
from port_webhook_handlers.agent.mapping import MappingError
from port_webhook_handlers.agent.service import AgentService
from port_webhook_handlers.runtime.library_log import LibraryLog
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.redact import Redactor
from port_webhook_handlers.runtime.secret_file import LiveSecrets, SecretFile, SecretFileError, StoredSecrets


def main() -> None:
    """Runs until a signal."""
    parser = argparse.ArgumentParser(prog="python -m port_webhook_handlers.agent")
    parser.add_argument("--config", type=Path, help="agent.json; without it the environment is read")
    parser.add_argument("--announce", type=Path, help="file that gets the health port once it is bound")
    parser.add_argument("--follow-input", action="store_true", help="end when standard input does")
    arguments = parser.parse_args()
    log = Log()
    logging.basicConfig(handlers=[LibraryLog(log)], level=logging.WARNING, force=True)
    try:
        config = (
            configuration.parse(arguments.config.read_bytes())
            if arguments.config is not None
            else from_environment(os.environ)
        )
        secrets = live_secrets(config, log)
        # Messages hold no cycles, so that they need not be looked for all the time.
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        with contextlib.suppress(KeyboardInterrupt), _runner() as runner:
            runner.run(_serve(config, secrets, log, arguments.announce, arguments.follow_input))
    except (AgentConfigError, MappingError, SecretFileError, OSError) as error:
        log("agent not started", error=str(error))
        sys.exit(2)


def live_secrets(config: AgentConfig, log: Log) -> LiveSecrets:
    """The secrets that a configuration names; the log hides them.

    Raises:
        SecretFileError: they cannot be read.
    """

    def changed(content: StoredSecrets) -> None:
        values = [item.value for item in content.signing] + [*content.decryption, *content.secrets.values()]
        if content.api is not None:
            values.append(content.api.client_secret)
        log.redact = Redactor(values)

    def failed(error: SecretFileError) -> None:
        log("secrets not readable, the former ones stay in force", error=str(error))

    if config.secrets_file is not None and config.secrets_key_file is not None:
        return LiveSecrets(SecretFile(config.secrets_file, config.secrets_key_file), changed, failed)
    return LiveSecrets(EnvironmentSecrets(os.environ), changed, failed)


async def _serve(
    config: AgentConfig, secrets: LiveSecrets, log: Log, announce: Path | None, follow_input: bool
) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if follow_input:
        # Nothing is ever written there: it becomes readable when the supervisor is gone.
        loop.add_reader(sys.stdin.fileno(), ended.set)
    service = AgentService(config, secrets, log)
    await service.start()
    log(
        "agent started",
        pid=os.getpid(),
        health_port=service.health_port,
        source=config.source,
        sink=config.sink,
    )
    if announce is not None:
        from port_webhook_handlers.runtime.files import write_private

        write_private(announce, str(service.health_port).encode())
    await ended.wait()
    if follow_input:
        loop.remove_reader(sys.stdin.fileno())
    await service.close()


def _runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


if __name__ == "__main__":
    main()
