import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.runtime.kit import FakePort, fake_port, write_secrets

from port_webhook_handlers.runtime.ledger import Ledger
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.outbox import Outbox
from port_webhook_handlers.runtime.secret_file import ApiCredentials, LiveSecrets, SecretFile, StoredSecrets

Fault = tuple[int, dict[str, str], dict[str, Any]]


@dataclass
class Bench:
    ledger: Ledger
    outbox: Outbox
    store: SecretFile
    port: FakePort

    async def accept(self, run_id: str, mode: str = "async") -> None:
        await self.ledger.claim(run_id, "route", mode, b"", b"")
        if mode == "async":
            await self.ledger.start(run_id)

    async def finish(self, run_id: str, **final: Any) -> None:
        await self.ledger.finish(run_id, {"status": "SUCCESS", **final})
        self.outbox.wake(run_id)

    async def state(self, run_id: str) -> str:
        found = await self.ledger.lookup(run_id, "route", b"")
        assert found is not None
        return found.state


@pytest.fixture
def port() -> Iterator[FakePort]:
    with fake_port() as fake:
        yield fake


def run(folder: Path, port: FakePort, scenario: Callable[[Bench], Awaitable[None]], url: Any = None) -> None:
    async def main() -> None:
        store = write_secrets(folder)
        ledger = Ledger(folder / "ledger.db", store.key(), "1:1.0:test")
        ledger.open()
        with (folder / "log").open("ab") as stream:
            log = Log(stream.fileno())
            outbox = Outbox(ledger, LiveSecrets(store), url or port.url, log, Metrics(), first_delay=0.02)
            try:
                await scenario(Bench(ledger, outbox, store, port))
            finally:
                await outbox.close()
                await ledger.close()

    asyncio.run(main())


def fail_times(count: int, status: int, only: str = "", **headers: str) -> Callable[[str, str], Fault | None]:
    left = [count]

    def fault(method: str, path: str) -> Fault | None:
        if only not in f"{method} {path}" or left[0] == 0:
            return None
        left[0] -= 1
        return status, headers, {"ok": False, "error": "told_to", "message": "told to fail"}

    return fault


def test_reports_arrive_in_order_and_the_status_last(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        await b.accept("r_1")
        for number in range(5):
            b.ledger.report("r_1", "log", {"message": f"line {number}"})
        b.ledger.report("r_1", "patch", {"statusLabel": "half"})
        b.ledger.report("r_1", "log", {"message": "line 5"})
        entity = {"op": "upsert", "blueprint": "a b", "body": {"identifier": "e"}, "ref": 1}
        b.ledger.report("r_1", "entity", entity)
        await b.finish("r_1", summary="done", link=["https://example.com"])
        assert await b.outbox.flush(10)
        assert [(method, path) for method, path, _ in b.port.calls] == [
            ("POST", "/v1/actions/runs/r_1/logs"),
            ("PATCH", "/v1/actions/runs/r_1"),
            ("POST", "/v1/actions/runs/r_1/logs"),
            ("POST", "/v1/blueprints/a%20b/entities"),
            ("PATCH", "/v1/actions/runs/r_1"),
        ]
        assert b.port.logs["r_1"] == [f"line {number}" for number in range(6)]
        assert b.port.entities[0]["query"] == "upsert=true&merge=true&run_id=r_1"
        assert b.port.calls[-1][2] == {
            "status": "SUCCESS",
            "summary": "done",
            "link": ["https://example.com"],
        }
        assert await b.state("r_1") == "done"

    run(tmp_path, port, scenario)


@pytest.mark.parametrize("status", [401, 408, 429, 500, 502, 503])
def test_passing_failures_are_tried_again(tmp_path: Path, port: FakePort, status: int) -> None:
    async def scenario(b: Bench) -> None:
        b.port.fault = fail_times(3, status)
        await b.accept("r_1")
        b.ledger.report("r_1", "log", {"message": "kept"})
        await b.finish("r_1")
        assert await b.outbox.flush(10)
        run = b.port.ended("r_1")
        assert run is not None
        assert (run["status"], run.get("summary")) == ("SUCCESS", None)
        assert b.port.logs["r_1"] == ["kept"]

    run(tmp_path, port, scenario)


def test_retry_after_is_honoured(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        b.port.fault = fail_times(1, 429, **{"Retry-After": "1"})
        await b.accept("r_1")
        began = time.monotonic()
        await b.finish("r_1")
        assert await b.outbox.flush(10)
        assert time.monotonic() - began >= 1
        assert b.port.ended("r_1")

    run(tmp_path, port, scenario)


def test_a_port_that_is_down_gets_everything_later(tmp_path: Path, port: FakePort) -> None:
    address = ["http://127.0.0.1:9"]

    async def scenario(b: Bench) -> None:
        for number in range(3):
            await b.accept(f"r_{number}")
            b.ledger.report(f"r_{number}", "log", {"message": "kept"})
            await b.finish(f"r_{number}")
        assert not await b.outbox.flush(0.5)
        assert b.port.calls == []
        address[0] = b.port.url
        assert await b.outbox.flush(10)
        for number in range(3):
            assert b.port.ended(f"r_{number}")
            assert b.port.logs[f"r_{number}"] == ["kept"], "logs are not lost to an outage"

    run(tmp_path, port, scenario, lambda: address[0])


@pytest.mark.parametrize("status", [400, 403, 404, 409, 413, 422])
def test_a_refused_report_is_noted_and_does_not_block_the_end(
    tmp_path: Path, port: FakePort, status: int
) -> None:
    async def scenario(b: Bench) -> None:
        b.port.fault = lambda method, path: (
            (status, {}, {"ok": False, "error": "some_code", "message": "no"}) if method == "POST" else None
        )
        await b.accept("r_1")
        b.ledger.report("r_1", "log", {"message": "a"})
        entity = {"op": "upsert", "blueprint": "thing", "body": {"identifier": "e"}, "ref": 1}
        b.ledger.report("r_1", "entity", entity)
        await b.finish("r_1", summary="done")
        assert await b.outbox.flush(10)
        run = b.port.ended("r_1")
        assert run is not None
        assert run["summary"].startswith("done\n\n")
        assert "log lines: Port answered some_code" in run["summary"]
        assert "entity thing/e: Port answered some_code" in run["summary"]

    run(tmp_path, port, scenario)


def test_a_report_that_always_fails_does_not_block_the_end(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        b.port.fault = fail_times(1000, 500, "POST /v1/actions/runs/r_1/logs")
        await b.accept("r_1")
        b.ledger.report("r_1", "log", {"message": "a"})
        await b.finish("r_1")
        assert await b.outbox.flush(20)
        run = b.port.ended("r_1")
        assert run is not None
        assert "log lines" in run["summary"]

    run(tmp_path, port, scenario)


@pytest.mark.parametrize(("known", "kept"), [("SUCCESS", "SUCCESS"), ("FAILURE", "FAILURE")])
def test_a_run_that_has_ended_already_is_left_alone(
    tmp_path: Path, port: FakePort, known: str, kept: str
) -> None:
    async def scenario(b: Bench) -> None:
        b.port.runs["r_1"] = {"id": "r_1", "status": known}
        await b.accept("r_1")
        await b.finish("r_1")
        assert await b.outbox.flush(10)
        assert b.port.runs["r_1"]["status"] == kept
        assert await b.state("r_1") == "done"
        assert [method for method, _, _ in b.port.calls] == ["PATCH", "GET"]

    run(tmp_path, port, scenario)
    assert ("ended otherwise" in (tmp_path / "log").read_text()) == (known == "FAILURE")


def test_a_summary_that_port_dislikes_does_not_keep_the_run_open(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        b.port.fault = fail_times(1, 422, "PATCH")
        await b.accept("r_1")
        await b.finish("r_1", summary="x", link="not a link")
        assert await b.outbox.flush(10)
        run = b.port.ended("r_1")
        assert run is not None
        assert run["status"] == "SUCCESS"

    run(tmp_path, port, scenario)


def test_a_forbidden_end_is_tried_again(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        b.port.fault = fail_times(3, 403)
        await b.accept("r_1")
        await b.finish("r_1")
        assert await b.outbox.flush(10)
        assert b.port.ended("r_1")

    run(tmp_path, port, scenario)


def test_a_run_that_is_gone_is_given_up(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        b.port.fault = fail_times(1000, 404)
        await b.accept("r_1")
        await b.finish("r_1")
        assert await b.outbox.flush(10)
        assert await b.state("r_1") == "done"

    run(tmp_path, port, scenario)


def test_an_entity_is_written_even_after_the_run_ended(tmp_path: Path, port: FakePort) -> None:
    def fault(method: str, path: str) -> Fault | None:
        if "blueprints" in path and "run_id" in port.queries[-1]:
            return 400, {}, {"ok": False, "error": "run_exhausted", "message": "over"}
        return None

    async def scenario(b: Bench) -> None:
        b.port.fault = fault
        await b.accept("s_1", "sync")
        b.ledger.report("s_1", "entity", {"op": "upsert", "blueprint": "t", "body": {"identifier": "e"}})
        b.ledger.report("s_1", "entity", {"op": "delete", "blueprint": "t", "body": {"identifier": "f g"}})
        b.outbox.wake("s_1")
        assert await b.outbox.flush(10)
        assert [(item["method"], item["path"], item["query"]) for item in b.port.entities] == [
            ("POST", "/v1/blueprints/t/entities", "upsert=true&merge=true"),
            ("DELETE", "/v1/blueprints/t/entities/f%20g", ""),
        ]
        assert await b.ledger.notes("s_1") == []

    run(tmp_path, port, scenario)


def test_new_credentials_are_used_at_once(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        b.store.write(StoredSecrets(b.store.read().signing, None))
        await b.accept("r_1")
        await b.finish("r_1")
        assert not await b.outbox.flush(0.2)
        b.store.write(StoredSecrets(b.store.read().signing, ApiCredentials("id", "secret")))
        assert await b.outbox.flush(10)
        assert b.port.ended("r_1")

    run(tmp_path, port, scenario)


def test_undelivered_reports_are_found_by_a_scan(tmp_path: Path, port: FakePort) -> None:
    async def before(b: Bench) -> None:
        await b.accept("r_1")
        await b.ledger.finish("r_1", {"status": "SUCCESS"})
        await b.ledger.release()

    async def after(b: Bench) -> None:
        await b.outbox.scan()
        assert await b.outbox.flush(10)
        assert b.port.ended("r_1")

    run(tmp_path, port, before)
    run(tmp_path, port, after)


def test_a_failure_past_the_ledger(tmp_path: Path, port: FakePort) -> None:
    async def scenario(b: Bench) -> None:
        await b.outbox.fail_now("r_1", "why")
        run = b.port.ended("r_1")
        assert run is not None
        assert (run["status"], run["summary"]) == ("FAILURE", "why")
        b.port.fault = fail_times(1000, 500)
        await b.outbox.fail_now("r_2", "why")

    run(tmp_path, port, scenario)
