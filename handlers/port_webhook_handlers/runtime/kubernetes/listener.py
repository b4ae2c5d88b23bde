"""The listener's process in a cluster: verifies, stores accepted runs as Secrets, runs synchronous handlers.

SIGTERM ends it without losing a request: the preStop hook has taken the Pod out of its Service before, requests
in flight are answered, synchronous runs get `limits.drain_seconds`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import secrets as random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.runtime import manifest as manifests
from port_webhook_handlers.runtime.asgi import Application
from port_webhook_handlers.runtime.children import ChildPool
from port_webhook_handlers.runtime.claims import Answer, LedgerError
from port_webhook_handlers.runtime.config import ConfigError
from port_webhook_handlers.runtime.confirmation import Confirmation, is_needed
from port_webhook_handlers.runtime.dispatcher import Dispatcher, owner_name
from port_webhook_handlers.runtime.kubernetes import config as configuration
from port_webhook_handlers.runtime.kubernetes import names, private_http
from port_webhook_handlers.runtime.kubernetes.api import ApiServer, ApiServerError
from port_webhook_handlers.runtime.kubernetes.claims import ClusterClaims
from port_webhook_handlers.runtime.kubernetes.mounted import MountedSecrets
from port_webhook_handlers.runtime.ledger import Ledger
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Manifest
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.outbox import Outbox
from port_webhook_handlers.runtime.port_calls import LoopCalls
from port_webhook_handlers.runtime.receiver import Invocation, Receiver
from port_webhook_handlers.runtime.redact import Redactor
from port_webhook_handlers.runtime.secret_file import LiveSecrets, SecretFileError, StoredSecrets
from port_webhook_handlers.runtime.sources import Sources

_API_THREADS: Final = 32
_FLUSH_SECONDS: Final = 10.0


class StartError(Exception):
    """The listener cannot serve; the message says why and what to do."""


class _Executor:
    """Synchronous runs are executed here; what becomes of the others is the dispatcher's business."""

    def __init__(self, local: Dispatcher) -> None:
        self._local = local

    def accepted(self, run_id: str, route: str) -> None:
        pass

    def refused(self, run_id: str) -> None:
        pass

    async def answer(self, invocation: Invocation, seconds: float) -> Answer:
        return await self._local.answer(invocation, seconds)

    async def fail_now(self, run_id: str, summary: str) -> None:
        await self._local.fail_now(run_id, summary)


class Listener:
    """One replica.

    Args:
        root: folder of the mounts.
        bundle: folder of the verified bundle.
        api: the API server, as this ServiceAccount.
        log: its log.
    """

    def __init__(self, root: Path, bundle: Path, api: ApiServer, log: Log) -> None:
        self._root = root
        self._bundle = bundle
        self._api = api
        self._log = log
        self._threads = ThreadPoolExecutor(_API_THREADS, thread_name_prefix="api")
        self.metrics = Metrics()
        self.confirmation: Confirmation | None = None

    def open(self) -> None:
        """Builds everything; accepts nothing yet.

        Raises:
            StartError: configuration, bundle or secrets cannot be used.
        """
        try:
            config = configuration.load(self._root / "config")
            manifest, self.digest = manifests.load(self._bundle)
            served = _served(manifest, config.group)
            secrets = LiveSecrets(MountedSecrets.below(self._root), self._changed, self._unreadable)
            _check_secrets(served, secrets.content)
            work = self._root / "work"
            shared = config.listener(self._bundle, self._root / "secrets")
            nonce = random.token_hex(8)
            # What it holds is of use to this replica only, so its key may end with it.
            self.ledger = Ledger(work / "ledger.db", random.token_bytes(32), owner_name(nonce))
            self.pool = ChildPool(self._bundle, self.digest, work, self._log)
            self.outbox = Outbox(self.ledger, secrets, config.port_base_url, self._log, self.metrics)
            self.dispatcher = Dispatcher(
                served, shared, work, secrets, self.ledger, self.pool, self.outbox, self._log, self.metrics
            )
            claims = ClusterClaims(self._api, config.runs_namespace, self.ledger, self._threads)
            if is_needed(served.routes.values()):
                self.confirmation = Confirmation(LoopCalls(secrets, config.port_base_url))
            self.receiver = Receiver(
                served,
                self.digest,
                nonce,
                secrets,
                claims,
                _Executor(self.dispatcher),
                config.limits,
                self._log,
                self.metrics,
                confirm=self.confirmation,
            )
            self.ledger.open()
        except (manifests.ManifestError, ConfigError, SecretFileError, LedgerError, ValueError) as error:
            raise StartError(str(error)) from error
        self.config = config
        self.routes = served.routes
        sources = Sources.of(config.source_addresses, config.trusted_proxy_hops)
        self.application = Application(self.receiver, config.limits.max_body_bytes, None, sources)

    async def serve(self, port: int, metrics_port: int) -> None:
        """Serves until SIGTERM or SIGINT."""
        http = _http_server(self.application, self.config.limits.sync_deadline_seconds)
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        private = await private_http.serve({"/live": _live, "/metrics": self._metrics_text}, metrics_port)
        if any(route.mode == "sync" for route in self.routes.values()):
            self.pool.warm()
        dispatching = asyncio.ensure_future(self.dispatcher.serve())
        accepting = asyncio.ensure_future(http.serve(sockets=[private_http.listening(port)]))
        self._log("serving", digest=self.digest, pid=os.getpid())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([stopping, accepting], return_when=asyncio.FIRST_COMPLETED)
        self._log("stopping")
        self.application.closing = True
        http.should_exit = True
        await accepting
        stopping.cancel()
        dispatching.cancel()
        await asyncio.wait([dispatching])
        if self.confirmation is not None:
            await self.confirmation.close()
        await self.dispatcher.drain(self.config.limits.drain_seconds)
        if not await self.outbox.flush(_FLUSH_SECONDS):
            self._log("reports of synchronous runs were not taken by Port")
        await self.outbox.close()
        await self.ledger.close()
        self._threads.shutdown()
        private.close()
        self._log("ended", pid=os.getpid())

    async def _metrics_text(self) -> tuple[int, str]:
        return 200, self.metrics.render(await self.ledger.gauges())

    def _changed(self, content: StoredSecrets) -> None:
        values = [item.value for item in (*content.signing, *content.previous)] + [
            *content.decryption,
            *content.secrets.values(),
        ]
        if content.api is not None:
            values.append(content.api.client_secret)
        self._log.redact = Redactor(values)
        self._log("secrets read", signing=len(content.signing), names=sorted(content.secrets))

    def _unreadable(self, error: SecretFileError) -> None:
        self._log("secrets not readable, the former ones stay in force", error=str(error))


async def _live() -> tuple[int, str]:
    return 200, "ok\n"


def _served(manifest: Manifest, group: str | None) -> Manifest:
    """The routes that a listener of this group takes."""
    routes = {
        name: route
        for name, route in manifest.routes.items()
        if (
            route.mode == "sync" and route.privilege_group == group
            if group is not None
            else route.mode == "async" or route.privilege_group == "default"
        )
    }
    return dataclasses.replace(manifest, routes=routes)


def _check_secrets(manifest: Manifest, content: StoredSecrets) -> None:
    if not content.signing:
        raise StartError("secrets store: holds no signing secret, so that no request could be accepted")
    if content.api is None:
        raise StartError("secrets store: holds no API credentials, so that no failure could be reported")
    for route in manifest.routes.values():
        missing = [name for name in route.secrets if route.mode == "sync" and name not in content.secrets]
        if missing:
            raise StartError(
                f"route {route.name}: its handler ({route.source}) declares the secret {missing[0]}, which the "
                "secrets store does not hold; set it in the stack's secrets"
            )


def _http_server(application: Application, sync_seconds: float) -> Any:
    import uvicorn

    class QuietServer(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            # Signals are the business of `serve`.
            yield

    return QuietServer(
        uvicorn.Config(
            application,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=65,
            timeout_graceful_shutdown=int(sync_seconds + 5),
        )
    )


async def _run(root: Path, bundle: Path, log: Log) -> int:
    port = int(os.environ.get("PORT_WEBHOOK_PORT", names.PORT))
    metrics_port = int(os.environ.get("PORT_WEBHOOK_METRICS_PORT", names.METRICS_PORT))
    try:
        listener = Listener(root, bundle, ApiServer.in_cluster(), log)
        listener.open()
    except (StartError, ApiServerError) as error:
        log("not started", error=str(error))
        return 1
    await listener.serve(port, metrics_port)
    return 0


def main() -> None:
    """Runs the listener. Argument: folder of the bundle."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_run(names.root(), Path(sys.argv[1]), Log()))
    sys.exit(code)


if __name__ == "__main__":
    main()
