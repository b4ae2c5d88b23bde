import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.claims import Answer, LedgerError
from port_webhook_handlers.runtime.ledger import Ledger

KEY = bytes(range(32))


def run(path: Path, *scenarios: Callable[[Ledger], Awaitable[None]], key: bytes = KEY) -> None:
    """Each scenario with a ledger that is opened anew, as by another process."""

    async def main() -> None:
        for number, scenario in enumerate(scenarios):
            ledger = Ledger(path, key, f"{number + 1}:1.0:owner")
            ledger.open()
            try:
                await scenario(ledger)
            finally:
                await ledger.close()

    asyncio.run(main())


async def accept(ledger: Ledger, run_id: str, payload: bytes = b"payload") -> bool:
    return (await ledger.claim(run_id, "route", "async", payload, payload)).new


def test_a_run_from_claim_to_end(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        assert await accept(ledger, "r_1")
        assert not await accept(ledger, "r_1")
        started = await ledger.start("r_1")
        assert started is not None
        assert (started.payload, started.attempt) == (b"payload", 1)
        assert await ledger.start("r_1") is None
        ledger.report("r_1", "log", {"message": "one"})
        ledger.report("r_1", "log", {"message": "two"})
        assert await ledger.finish("r_1", {"status": "SUCCESS"})
        assert not await ledger.finish("r_1", {"status": "FAILURE"}), "a run ends once"
        reports = await ledger.reports("r_1")
        assert [(item.kind, item.body) for item in reports] == [
            ("log", {"message": "one"}),
            ("log", {"message": "two"}),
            ("final", {"status": "SUCCESS"}),
        ]
        assert await ledger.unreported() == ["r_1"]
        await ledger.reported("r_1", [reports[0].seq], "log lines: Port answered 400")
        assert await ledger.notes("r_1") == ["log lines: Port answered 400"]
        await ledger.close_run("r_1")
        assert await ledger.reports("r_1") == []
        assert await ledger.unreported() == []
        assert not await accept(ledger, "r_1"), "an ended run is still known"

    run(tmp_path / "ledger.db", scenario)


def test_claims_survive_and_open_only_with_their_key(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    async def before(ledger: Ledger) -> None:
        assert await accept(ledger, "r_1", b"confidential")

    async def after(ledger: Ledger) -> None:
        assert await ledger.queued() == [("r_1", "route")]
        started = await ledger.start("r_1")
        assert started is not None
        assert started.payload == b"confidential"

    run(path, before, after)
    assert path.stat().st_mode & 0o077 == 0
    for file in tmp_path.iterdir():
        assert b"confidential" not in file.read_bytes()


def test_a_lost_key_ends_what_cannot_be_read(tmp_path: Path) -> None:
    async def before(ledger: Ledger) -> None:
        await accept(ledger, "r_1")
        await accept(ledger, "r_2")
        await ledger.start("r_2")
        ledger.report("r_2", "log", {"message": "x"})
        await ledger.claim("s_1", "route", "sync", b"h", b"")
        await ledger.answer("s_1", Answer(200, {}))

    async def after(ledger: Ledger) -> None:
        assert await ledger.queued() == []
        assert sorted(await ledger.unreported()) == ["r_1", "r_2"]
        for run_id in ("r_1", "r_2"):
            (report,) = await ledger.reports(run_id)
            assert report.body["status"] == "FAILURE"
            assert "key" in report.body["summary"]
        found = await ledger.lookup("s_1", "route", b"h")
        assert found is not None
        assert found.answer is None

    run(tmp_path / "ledger.db", before)
    run(tmp_path / "ledger.db", after, key=bytes(32))


def test_many_claims_share_commits(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        connection = sqlite3.connect(tmp_path / "ledger.db")
        claims = await asyncio.gather(*(accept(ledger, f"r_{number % 300}") for number in range(600)))
        assert sum(claims) == 300
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (300,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()

    run(tmp_path / "ledger.db", scenario)


def test_a_claim_is_on_disk_before_it_is_answered(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        with sqlite3.connect(tmp_path / "ledger.db") as other:
            for number in range(20):
                await accept(ledger, f"r_{number}")
                assert other.execute("SELECT count(*) FROM runs").fetchone() == (number + 1,)
        other.close()

    run(tmp_path / "ledger.db", scenario)


def test_two_processes_start_a_run_once(tmp_path: Path) -> None:
    async def main() -> None:
        ledgers = [Ledger(tmp_path / "ledger.db", KEY, f"{number}:1.0:x") for number in (1, 2)]
        for ledger in ledgers:
            ledger.open()
        for number in range(30):
            await accept(ledgers[0], f"r_{number}")
        started = await asyncio.gather(
            *(ledger.start(f"r_{number}") for number in range(30) for ledger in ledgers)
        )
        assert sum(item is not None for item in started) == 30
        for ledger in ledgers:
            await ledger.close()

    asyncio.run(main())


def test_orphans_are_adopted_once(tmp_path: Path) -> None:
    async def before(ledger: Ledger) -> None:
        for run_id in ("r_1", "r_2", "r_3"):
            await accept(ledger, run_id)
        await ledger.start("r_1")
        await ledger.add_child("9:9.0")
        await ledger.start("r_2")
        await ledger.finish("r_2", {"status": "SUCCESS"})

    async def after(ledger: Ledger) -> None:
        assert await ledger.orphans(lambda owner: True) == []
        assert await ledger.lost_children(lambda owner: True) == []
        assert await ledger.lost_children(lambda owner: False) == ["9:9.0"]
        await ledger.remove_children(["9:9.0"])
        assert await ledger.lost_children(lambda owner: False) == []
        first, second = sorted(await ledger.orphans(lambda owner: False), key=lambda item: item.run_id)
        assert (first.run_id, first.state) == ("r_1", "running")
        assert (second.run_id, second.state) == ("r_2", "reporting")
        assert await ledger.adopt(first)
        assert not await ledger.adopt(first)
        assert await ledger.unreported() == []
        assert await ledger.adopt(second)
        assert await ledger.unreported() == ["r_2"]

    run(tmp_path / "ledger.db", before, after)


def test_released_reports_go_to_the_next(tmp_path: Path) -> None:
    async def before(ledger: Ledger) -> None:
        await accept(ledger, "r_1")
        await ledger.start("r_1")
        await ledger.finish("r_1", {"status": "SUCCESS"})
        await ledger.release()

    async def after(ledger: Ledger) -> None:
        assert await ledger.unreported() == ["r_1"]

    run(tmp_path / "ledger.db", before, after)


def test_a_requeued_run_waits_for_its_time(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await accept(ledger, "r_1")
        await ledger.start("r_1")
        await ledger.requeue("r_1", time.time() + 100)
        assert await ledger.queued() == []
        assert await ledger.waiting() == 1
        await ledger.start("r_1")
        await ledger.requeue("r_1", time.time())
        started = await ledger.start("r_1")
        assert started is not None
        assert started.attempt == 3

    run(tmp_path / "ledger.db", scenario)


def test_old_claims_are_purged(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.claim("s_1", "route", "sync", b"h", b"")
        await ledger.answer("s_1", Answer(200, {"a": 1}))
        await accept(ledger, "r_1")
        found = await ledger.lookup("s_1", "route", b"h")
        assert found is not None
        assert found.answer == Answer(200, {"a": 1})
        await ledger.purge(answers_before=time.time() + 1, claims_before=0)
        found = await ledger.lookup("s_1", "route", b"h")
        assert found is not None
        assert (found.state, found.answer) == ("done", None)
        await ledger.purge(answers_before=0, claims_before=time.time() + 1)
        assert await ledger.lookup("s_1", "route", b"h") is None
        assert await ledger.lookup("r_1", "route", b"payload") is not None, "open runs stay"

    run(tmp_path / "ledger.db", scenario)


def test_a_failed_group_stores_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await accept(ledger, "r_1")
        locker = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        size = locker.execute("PRAGMA page_count").fetchone()[0]
        await ledger._submit(lambda c: c.execute(f"PRAGMA max_page_count={size}").fetchone())
        with pytest.raises(LedgerError, match="full"):
            await asyncio.gather(*(accept(ledger, f"x_{number}", b"x" * 9000) for number in range(5)))
        assert await ledger.lookup("r_1", "route", b"payload") is not None, "reading still works"
        await ledger._submit(lambda c: c.execute("PRAGMA max_page_count=1000000").fetchone())
        assert locker.execute("SELECT count(*) FROM runs").fetchone() == (1,)
        locker.close()
        assert await accept(ledger, "r_2")

    run(tmp_path / "ledger.db", scenario)


def test_a_closed_ledger_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.db", KEY, "1:1.0:x")
        ledger.open()
        await ledger.close()
        with pytest.raises(LedgerError, match="closed"):
            await accept(ledger, "r_1")

    asyncio.run(main())


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)

    async def main() -> None:
        with pytest.raises(LedgerError, match=r"ledger\.db"):
            Ledger(tmp_path / "ledger.db", KEY, "1:1.0:x").open()

    asyncio.run(main())
