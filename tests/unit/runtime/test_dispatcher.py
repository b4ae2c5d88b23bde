"""The dispatcher with a ledger and an outbox of its own, and children that are only pretended."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.runtime.kit import FakePort, envelope, fake_port, listener_config, route, write_secrets

from port_webhook_handlers.port.encryption import encrypt_aes256_gcm, encrypt_client_side
from port_webhook_handlers.runtime.child import completed
from port_webhook_handlers.runtime.children import ChildPool
from port_webhook_handlers.runtime.claims import LedgerError
from port_webhook_handlers.runtime.dispatcher import Dispatcher
from port_webhook_handlers.runtime.execution import Outcome
from port_webhook_handlers.runtime.ledger import Ledger
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Manifest
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.outbox import Outbox
from port_webhook_handlers.runtime.secret_file import LiveSecrets

KEY = "decryption-key-of-at-least-32-bytes!"


class Pool(ChildPool):
    """Records requests instead of running them."""

    def __init__(self, folder: Path, log: Log) -> None:
        super().__init__(folder, "sha256:", folder, log)
        self.requests: list[dict[str, Any]] = []

    def submit(self, run_id: str, *args: Any, **options: Any) -> None:
        _, _, request, _, _, _, then = args
        content = json.loads(request)
        self.requests.append(completed(content) if "body" in content else content)
        then(Outcome("SUCCESS", "done"))


class Bench:
    def __init__(self, ledger: Ledger, dispatcher: Dispatcher, pool: Pool, outbox: Outbox) -> None:
        self.ledger = ledger
        self.dispatcher = dispatcher
        self.pool = pool
        self.outbox = outbox

    async def claim(self, name: str, run_id: str, **inputs: Any) -> None:
        await self.ledger.claim(run_id, name, "async", b"", envelope(name, run_id, **inputs))

    async def accept(self, name: str, run_id: str, **inputs: Any) -> None:
        await self.claim(name, run_id, **inputs)
        self.dispatcher.accepted(run_id, name)


@pytest.fixture
def port() -> Iterator[FakePort]:
    with fake_port() as fake:
        yield fake


def run(folder: Path, port: FakePort, scenario: Callable[[Bench], Awaitable[None]], **secrets: Any) -> None:
    async def main() -> None:
        store = write_secrets(folder, **secrets)
        ledger = Ledger(folder / "ledger.db", store.key(), "1:1.0:test")
        ledger.open()
        with (folder / "log").open("ab") as stream:
            log, live, metrics = Log(stream.fileno()), LiveSecrets(store), Metrics()
            outbox = Outbox(ledger, live, port.url, log, metrics, first_delay=0.02)
            pool = Pool(folder, log)
            routes = {
                item.name: item for item in (route("work"), route("sealed", encrypted_inputs=("text",)))
            }
            config = listener_config(folder, port.url, settings={"*": {"a": 1}, "work": {"b": 2}})
            dispatcher = Dispatcher(
                Manifest({}, routes), config, folder, live, ledger, pool, outbox, log, metrics
            )
            serving = asyncio.ensure_future(dispatcher.serve())
            try:
                await scenario(Bench(ledger, dispatcher, pool, outbox))
            finally:
                await dispatcher.drain(5)
                serving.cancel()
                await asyncio.wait([serving])
                await outbox.close()
                await ledger.close()

    asyncio.run(main())


async def ended(port: FakePort, run_id: str) -> dict[str, Any]:
    for _ in range(500):
        if (found := port.ended(run_id)) is not None:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{run_id} did not end")


def test_what_a_child_is_given(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        await b.accept("work", "r_1", text="a")
        assert (await ended(port, "r_1"))["status"] == "SUCCESS"
        (request,) = b.pool.requests
        assert request["run"]["id"] == request["run"]["idempotency_key"] == "r_1"
        assert request["run"]["attempt"] == 1
        assert request["run"]["entity"] is None
        assert request["inputs"] == {"text": "a"}
        assert request["handler"] == "app:work"
        assert request["secrets"] == {}, "only declared secrets"
        assert request["settings"] == {"a": 1, "b": 2, "state_dir": str(tmp_path)}

    run(tmp_path, port, scenario)


@pytest.mark.parametrize("client_side", [False, True])
def test_encrypted_inputs_are_opened_for_the_child(tmp_path: Path, port: FakePort, client_side: bool) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(65537, 2048)
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    sealed = encrypt_client_side(b"plain", public) if client_side else encrypt_aes256_gcm(b"plain", KEY)

    async def scenario(b: Bench) -> None:
        await b.accept("sealed", "r_1", text=sealed)
        assert (await ended(port, "r_1"))["status"] == "SUCCESS"
        assert b.pool.requests[0]["inputs"] == {"text": "plain"}
        for number, wrong in enumerate(("no ciphertext", encrypt_aes256_gcm(b"plain", "x" * 32), 7)):
            await b.accept("sealed", f"x_{number}", text=wrong)
            failed = await ended(port, f"x_{number}")
            assert failed["status"] == "FAILURE"
            assert "encrypted input" in failed["summary"]
            assert "plain" not in failed["summary"]
        assert len(b.pool.requests) == 1

    run(tmp_path, port, scenario, decryption=(KEY, pem))


def test_an_outcome_is_stored_once_the_disk_allows_it(
    tmp_path: Path, port: FakePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(b: Bench) -> None:
        finish, failures = b.ledger.finish, [2]

        async def failing(*args: Any) -> bool:
            if failures[0]:
                failures[0] -= 1
                raise LedgerError("nothing was stored: database or disk is full")
            return await finish(*args)

        monkeypatch.setattr(b.ledger, "finish", failing)
        await b.accept("work", "r_1", text="a")
        assert (await ended(port, "r_1"))["status"] == "SUCCESS"
        assert len(b.pool.requests) == 1

    run(tmp_path, port, scenario)


def test_a_route_that_is_gone_ends_its_runs(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        await b.accept("former", "r_1", text="a")
        assert "deployed" in (await ended(port, "r_1"))["summary"]

    run(tmp_path, port, scenario)


def test_a_busy_route_does_not_keep_others_waiting(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        for number in range(200):
            await b.claim("work", f"r_{number}", text="a")
        for number in range(200):
            b.dispatcher.accepted(f"r_{number}", "work")
        await b.accept("sealed", "r_other")
        # On a busy machine many have been executed by now.
        before = len(b.pool.requests)
        await ended(port, "r_other")
        position = [request["run"]["id"] for request in b.pool.requests].index("r_other")
        assert position - before < 20
        await b.outbox.flush(20)

    run(tmp_path, port, scenario)


def test_a_flood_is_accepted_before_it_is_run(
    tmp_path: Path, port: FakePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(b: Bench) -> None:
        holds = [True]
        monkeypatch.setattr(b.dispatcher._flood, "holds", lambda: holds[0])
        for number in range(20):
            await b.accept("work", f"r_{number}", text="a")
        await asyncio.sleep(0.3)
        assert not b.pool.requests
        holds[0] = False
        for number in range(20):
            assert (await ended(port, f"r_{number}"))["status"] == "SUCCESS"
        await b.outbox.flush(20)

    run(tmp_path, port, scenario)


def test_a_flood_does_not_fill_the_queue_with_runs_that_wait(
    tmp_path: Path, port: FakePort, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(b: Bench) -> None:
        monkeypatch.setattr(b.dispatcher._flood, "holds", lambda: True)
        object.__setattr__(b.dispatcher._config.limits, "max_queued", 40)
        for number in range(9):
            await b.accept("work", f"r_{number}", text="a")
        await asyncio.sleep(0.3)
        assert not b.pool.requests
        await b.accept("work", "r_9", text="a")
        await ended(port, "r_0")
        await b.outbox.flush(20)

    run(tmp_path, port, scenario)


def test_runs_of_an_earlier_server_are_no_flood(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        for number in range(150):
            await b.claim("work", f"r_{number}", text="a")
        await ended(port, "r_149")
        assert b.dispatcher._flood._count == 0
        await b.outbox.flush(20)

    run(tmp_path, port, scenario)
