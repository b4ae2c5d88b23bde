import asyncio
import errno
import gc
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from port_webhook_handlers.runtime import ledger as module
from port_webhook_handlers.runtime.claims import Answer, Claim, LedgerError
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


REFUSAL = Answer(202, {"accepted": False})
FAILURE = {"status": "FAILURE"}


def test_claims_tell_who_has_a_run_and_with_which_request(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        claimed = await ledger.claim("s_1", "route", "sync", b"hash", b"")
        assert claimed == Claim(True, True, "running", ledger.owner, None, 0)
        claimed = await ledger.claim("r_1", "route", "async", b"hash", b"")
        assert claimed == Claim(True, True, "queued", None, None, 0)
        claimed = await ledger.claim("s_1", "route", "sync", b"hash", b"")
        assert claimed == Claim(False, True, "running", ledger.owner, None, 0)
        assert await ledger.lookup("s_1", "route", b"hash") == claimed
        for route, body_hash in (("other", b"hash"), ("route", b"other"), ("other", b"other")):
            found = await ledger.lookup("s_1", route, body_hash)
            assert found is not None
            assert not found.same

    run(tmp_path / "ledger.db", scenario)


def test_a_refused_run_is_never_started_and_has_its_answer(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        refused = await ledger.claim("r_1", "r", "async", b"h", b"", refusal=REFUSAL, failure=FAILURE)
        assert refused == Claim(True, True, "reporting", ledger.owner, REFUSAL, 0)
        assert [(item.kind, item.body) for item in await ledger.reports("r_1")] == [("final", FAILURE)]
        refused = await ledger.claim("s_1", "r", "sync", b"h", b"", refusal=REFUSAL)
        assert refused == Claim(True, True, "done", ledger.owner, REFUSAL, 0)
        assert await ledger.reports("s_1") == []
        for run_id in ("r_1", "s_1"):
            assert await ledger.start(run_id) is None
            again = await ledger.claim(run_id, "r", "async", b"h", b"", refusal=REFUSAL, failure=FAILURE)
            assert (again.new, again.answer) == (False, REFUSAL)
        assert len(await ledger.reports("r_1")) == 1
        assert await ledger.reports("s_1") == []

    run(tmp_path / "ledger.db", scenario)


def test_the_log_is_copied_and_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("port_webhook_handlers.runtime.ledger._CHECKPOINT_ROWS", 50)

    async def scenario(ledger: Ledger) -> None:
        for number in range(600):
            assert (await ledger.claim(f"r_{number}", "r", "sync", b"h", b"")).new
        log = (tmp_path / "ledger.db-wal").stat().st_size
        # Each claim changes a page of the table and one of the index at least.
        assert log < 600 * 2 * 4096 / 2
        assert (tmp_path / "ledger.db").stat().st_size > 10 * 4096

    run(tmp_path / "ledger.db", scenario)


def test_a_probe_is_executed_once(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        assert await ledger.claim("p_1", "v", "probe", b"h", b"") == Claim(True, True, "done", None, None, 1)
        assert await ledger.claim("p_1", "v", "probe", b"h", b"") == Claim(False, True, "done", None, None, 1)

    run(tmp_path / "ledger.db", scenario)


def test_many_runs_are_claimed_and_offered_in_bounds(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        claims = [
            ("r_0", "route", b"h", b"payload"),
            ("r_1", "route", b"h", b""),
            ("r_0", "route", b"h", b""),
        ]
        assert await ledger.claim_many(claims) == [True, True, False]
        started = await ledger.start("r_0")
        assert started is not None
        assert started.payload == b"payload"
        await ledger.claim_many([(f"x_{number}", "route", b"h", b"") for number in range(1000)])
        assert len(await ledger.queued()) == 1000
        for number in range(51):
            ledger.report("r_0", "log", {"n": number})
        assert [report.body["n"] for report in await ledger.reports("r_0")] == list(range(50))

    run(tmp_path / "ledger.db", scenario)


def test_what_takes_several_statements_happens_whole_or_not_at_all(tmp_path: Path) -> None:
    async def forbid(ledger: Ledger, event: str, when: str = "1") -> None:
        text = f"CREATE TRIGGER forbid BEFORE {event} WHEN {when} BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
        await ledger._submit(lambda c: c.execute(text).rowcount)

    async def allow(ledger: Ledger) -> None:
        await ledger._submit(lambda c: c.execute("DROP TRIGGER forbid").rowcount)

    forbidden = pytest.raises((sqlite3.IntegrityError, LedgerError), match="forbidden")

    async def scenario(ledger: Ledger) -> None:
        await forbid(ledger, "INSERT ON reports")
        with forbidden:
            await ledger.claim("r_0", "r", "async", b"h", b"", refusal=REFUSAL, failure=FAILURE)
        assert await ledger.lookup("r_0", "r", b"h") is None
        await accept(ledger, "r_1")
        await ledger.start("r_1")
        with forbidden:
            await ledger.finish("r_1", FAILURE)
        found = await ledger.lookup("r_1", "route", b"payload")
        assert found is not None
        assert found.state == "running"
        await allow(ledger)

        await forbid(ledger, "INSERT ON runs", "NEW.run_id = 'bad'")
        with forbidden:
            await ledger.claim_many([("good", "r", b"h", b""), ("bad", "r", b"h", b"")])
        assert await ledger.lookup("good", "r", b"h") is None
        await allow(ledger)

        ledger.report("r_1", "log", {})
        await ledger.finish("r_1", FAILURE)
        first, _ = await ledger.reports("r_1")
        await forbid(ledger, "UPDATE ON runs")
        with forbidden:
            await ledger.reported("r_1", [first.seq], "refused")
        with forbidden:
            await ledger.close_run("r_1")
        assert len(await ledger.reports("r_1")) == 2
        await allow(ledger)
        await ledger.reported("r_1", [first.seq])
        assert [report.kind for report in await ledger.reports("r_1")] == ["final"]
        await ledger.close_run("r_1")
        found = await ledger.lookup("r_1", "route", b"payload")
        assert found is not None
        assert (found.state, found.owner) == ("done", None)

        ledger.report("r_1", "log", {"late": True})
        await forbid(ledger, "DELETE ON runs")
        with forbidden:
            await ledger.purge(answers_before=0, claims_before=time.time() + 1)
        assert len(await ledger.reports("r_1")) == 1
        await allow(ledger)
        await ledger.purge(answers_before=0, claims_before=time.time() + 1)
        assert await ledger.reports("r_1") == []

    run(tmp_path / "ledger.db", scenario)


def test_what_lost_processes_leave_is_found_and_taken(tmp_path: Path) -> None:
    async def first(ledger: Ledger) -> None:
        for run_id in ("r_1", "r_3"):
            await accept(ledger, run_id)
            await ledger.start(run_id)
        await ledger.finish("r_3", FAILURE)
        await ledger.release()
        await ledger.add_child("9:9.0")
        await ledger.add_child("8:8.0")
        ledger.forget_child("8:8.0")

    async def second(ledger: Ledger) -> None:
        assert await ledger.lost_children(lambda owner: False) == ["9:9.0"]
        await accept(ledger, "r_2")
        await ledger.start("r_2")

    async def third(ledger: Ledger) -> None:
        assert {item.run_id for item in await ledger.orphans(lambda owner: False)} == {"r_1", "r_2"}
        assert await ledger.unreported() == ["r_3"]
        found = await ledger.lookup("r_3", "route", b"payload")
        assert found is not None
        assert found.owner == ledger.owner
        await ledger.forget("r_3")
        assert await accept(ledger, "r_3")

    run(tmp_path / "ledger.db", first, second, third)


def test_gauges_count_runs_reports_and_commits(tmp_path: Path) -> None:
    now = 1000.0

    async def main() -> None:
        nonlocal now
        ledger = Ledger(tmp_path / "ledger.db", KEY, "1:1.0:x", lambda: now)
        ledger.open()
        gauges = await ledger.gauges()
        assert gauges["port_webhook_runs"] == {(("state", s),): 0 for s in ("queued", "running", "reporting")}
        assert gauges["port_webhook_oldest_unreported_seconds"] == {(): 0}
        assert (
            gauges["port_webhook_ledger_commits_total"] == gauges["port_webhook_ledger_rows_total"] == {(): 1}
        )
        await asyncio.gather(accept(ledger, "r_1"), accept(ledger, "r_2"), accept(ledger, "r_3"))
        await ledger.start("r_2")
        await ledger.start("r_3")
        await ledger.finish("r_3", FAILURE)
        now = 1030.0
        gauges = await ledger.gauges()
        assert gauges["port_webhook_runs"] == {(("state", s),): 1 for s in ("queued", "running", "reporting")}
        assert gauges["port_webhook_reports_waiting"] == {(): 1}
        assert gauges["port_webhook_oldest_unreported_seconds"] == {(): 30}
        assert gauges["port_webhook_ledger_commits_total"] == {(): 6}
        assert gauges["port_webhook_ledger_rows_total"] == {(): 8}
        await ledger.close()

    asyncio.run(main())


def test_a_lost_key_ends_synchronous_runs_too(tmp_path: Path) -> None:
    async def before(ledger: Ledger) -> None:
        await ledger.claim("s_1", "route", "sync", b"h", b"")

    async def after(ledger: Ledger) -> None:
        found = await ledger.lookup("s_1", "route", b"h")
        assert found is not None
        assert found.state == "done"

    run(tmp_path / "ledger.db", before)
    run(tmp_path / "ledger.db", after, key=bytes(32))


def test_sizes_on_disk(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await accept(ledger, "r_1", b"12345")
        text = "SELECT length(payload), length(body_hash) FROM runs"
        # A nonce of 12 bytes, the text, and a tag of 16.
        assert await ledger._submit(lambda c: c.execute(text).fetchone()) == (33, 32)

    path = tmp_path / "new" / "folder" / "ledger.db"
    run(path, scenario, scenario_of_nothing)
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def scenario_of_nothing(ledger: Ledger) -> None:
    """Opens what another one has made."""


def test_a_ledger_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)

    async def main() -> None:
        with pytest.raises(LedgerError, match="move it away"):
            Ledger(tmp_path / "file" / "ledger.db", KEY, "1:1.0:x").open()
        with pytest.raises(LedgerError, match="move it away") as caught:
            Ledger(tmp_path / "ledger.db", KEY, "1:1.0:x").open()
        assert caught.value.__cause__ is not None
        opened = {file.path for file in psutil.Process().open_files()}
        assert str(tmp_path / "ledger.db") not in opened

    asyncio.run(main())


def test_closing_stores_what_waits_and_ends_the_writer(tmp_path: Path) -> None:
    async def main() -> None:
        ledger = Ledger(tmp_path / "ledger.db", KEY, "1:1.0:x")
        ledger.report("r_1", "log", {})  # before it is open, nobody can store it
        ledger.open()
        (writer,) = (thread for thread in threading.enumerate() if thread.name == "ledger")
        assert writer.daemon
        ledger.report("r_1", "log", {"n": 1})
        ledger._put_unwatched(lambda c: time.sleep(0.1) or 0)
        await ledger.close()
        assert not writer.is_alive()
        ledger.report("r_1", "log", {"n": 2})
        await ledger.close()

    asyncio.run(main())

    async def after(ledger: Ledger) -> None:
        assert [report.body for report in await ledger.reports("r_1")] == [{"n": 1}]

    run(tmp_path / "ledger.db", after)


def test_a_report_that_cannot_be_stored_raises_nowhere(tmp_path: Path) -> None:
    complaints: list[object] = []

    async def scenario(ledger: Ledger) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        text = "CREATE TRIGGER t BEFORE INSERT ON reports BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
        await ledger._submit(lambda c: c.execute(text).rowcount)
        ledger.report("r_1", "log", {})
        assert await ledger.reports("r_1") == []
        gc.collect()

    run(tmp_path / "ledger.db", scenario)
    assert complaints == []


def test_what_is_asked_while_the_disk_is_busy_is_done_together(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        for name in ("a", "b", "c", "d"):
            await accept(ledger, name)
        for name in ("c", "d"):
            await ledger.start(name)
        for name in ("x", "y"):
            assert (await ledger.claim(name, "r", "sync", b"h", b"")).new
        for name in ("e", "f"):
            await accept(ledger, name)
            await ledger.start(name)
            await ledger.finish(name, FAILURE)
        commits, rows = ledger._commits, ledger._rows
        free = threading.Event()
        busy = asyncio.ensure_future(ledger._submit(lambda c: free.wait(20)))
        await asyncio.sleep(0.05)
        asked: list[asyncio.Future[object]] = []
        for started, waiting, ended, answered, reported in (
            ("a", "g", "c", "x", "e"),
            ("b", "h", "d", "y", "f"),
        ):
            asked += [
                asyncio.ensure_future(ledger.start(started)),
                asyncio.ensure_future(accept(ledger, waiting)),
                asyncio.ensure_future(ledger.finish(ended, FAILURE)),
                asyncio.ensure_future(ledger.answer(answered, Answer(200, {"name": answered}))),
                asyncio.ensure_future(ledger.close_run(reported)),
                asyncio.ensure_future(ledger.notes(started)),
            ]
            # A group of its own each time.
            await asyncio.sleep(0.05)
        assert not any(item.done() for item in asked)
        free.set()
        await busy
        results = await asyncio.gather(*asked)
        assert [getattr(item, "run_id", item) for item in results] == [
            *("a", True, True, None, None, []),
            *("b", True, True, None, None, []),
        ]
        assert (ledger._commits - commits, ledger._rows - rows) == (2, 13)
        for name in ("c", "d"):
            assert [report.body for report in await ledger.reports(name)] == [FAILURE]
        for name in ("x", "y"):
            found = await ledger.lookup(name, "r", b"h")
            assert found is not None
            assert found.answer == Answer(200, {"name": name})
        for name in ("e", "f"):
            found = await ledger.lookup(name, "route", b"payload")
            assert found is not None
            assert found.state == "done"

    run(tmp_path / "ledger.db", scenario)


def test_one_run_ends_once_within_a_group(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await accept(ledger, "r_1")
        started = await asyncio.gather(ledger.start("r_1"), ledger.start("r_1"))
        assert sum(item is not None for item in started) == 1
        ended = await asyncio.gather(ledger.finish("r_1", FAILURE), ledger.finish("r_1", FAILURE))
        assert sorted(ended) == [False, True]
        assert len(await ledger.reports("r_1")) == 1

    run(tmp_path / "ledger.db", scenario)


def test_who_waits_no_more_disturbs_nobody(tmp_path: Path) -> None:
    problems: list[object] = []

    async def scenario(ledger: Ledger) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        free = threading.Event()
        busy = asyncio.ensure_future(ledger._submit(lambda c: free.wait(20)))
        await asyncio.sleep(0.02)
        gone = asyncio.ensure_future(ledger.claim("r_1", "r", "sync", b"h", b""))
        failing = asyncio.ensure_future(ledger._submit(lambda c: c.execute("SELECT nothing").fetchone()))
        await asyncio.sleep(0.02)
        gone.cancel()
        failing.cancel()
        free.set()
        await busy
        # The group of what fails ends first.
        await asyncio.sleep(0.1)
        assert await ledger.lookup("r_2", "r", b"h") is None
        assert problems == []

    run(tmp_path / "ledger.db", scenario)


def test_every_way_into_a_closed_ledger_says_so(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "ledger.db"
        ledger = Ledger(path, KEY, "1:1.0:owner")
        closed = pytest.raises(LedgerError, match="the ledger is closed")
        errors: list[object] = []
        with closed:
            await ledger.waiting()
        ledger.open()
        assert await ledger.waiting() == 0
        await ledger.close()
        # The last one to close it leaves no log behind.
        assert not path.with_name("ledger.db-wal").exists()
        with closed:
            await ledger.waiting()
        with closed:
            await ledger.claim("r_1", "r", "sync", b"h", b"")
        with closed:
            await ledger.answer("r_1", Answer(200, {}))
        ledger.claim_soon("r_1", "r", "sync", b"h", b"", lambda claim, error: errors.append(error))
        ledger.answer_soon("r_1", 200, b"{}", errors.append)
        assert [str(error) for error in errors] == ["the ledger is closed"] * 2

    asyncio.run(main())


def test_an_answer_that_is_not_stored_is_said_to_be_so(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        assert (await ledger.claim("r_1", "r", "sync", b"h", b"")).new
        trigger = "CREATE TRIGGER forbid BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'forbidden'); END"
        await ledger._submit(lambda c: c.execute(trigger).rowcount)
        with pytest.raises(LedgerError, match="nothing was stored: forbidden"):
            await ledger.answer("r_1", Answer(200, {}))

    run(tmp_path / "ledger.db", scenario)


def test_a_failing_disk_concerns_all_that_was_asked_together(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        results = await asyncio.gather(
            ledger.claim("r_1", "r", "sync", b"h", b""),
            ledger._submit(lambda c: c.execute("SELECT * FROM nothing").fetchone()),
            return_exceptions=True,
        )
        assert [type(item) for item in results] == [LedgerError, LedgerError]
        assert await ledger.lookup("r_1", "r", b"h") is None

    run(tmp_path / "ledger.db", scenario)


def test_one_that_fails_keeps_nobody_waiting(tmp_path: Path) -> None:
    problems: list[str] = []
    claimed: list[object] = []

    async def scenario(ledger: Ledger) -> None:
        handler = lambda loop, context: problems.append(str(context["exception"]))  # noqa: E731
        asyncio.get_running_loop().set_exception_handler(handler)

        def failing(claim: Claim | None, error: LedgerError | None) -> None:
            raise ValueError("a mistake")

        ledger.claim_soon("r_1", "r", "sync", b"h", b"", failing)
        ledger.claim_soon("r_2", "r", "sync", b"h", b"", lambda claim, error: claimed.append(claim))
        assert await ledger.waiting() == 0
        assert problems == ["a mistake"]
        assert len(claimed) == 1

    run(tmp_path / "ledger.db", scenario)


def test_many_claims_at_once_tell_which_were_new(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        assert await ledger.claim_many([("a", "r", b"h", b""), ("b", "r", b"h", b"")]) == [True, True]
        assert await ledger.claim_many([("b", "r", b"h", b""), ("c", "r", b"h", b"")]) == [False, True]
        many = [(f"m_{number}", "r", b"h", b"") for number in range(200)]
        assert await ledger.claim_many([*many, ("a", "r", b"h", b"")]) == [True] * 200 + [False]

    run(tmp_path / "ledger.db", scenario)


def test_owners_that_an_earlier_version_did_not_enter_are_found(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    async def first(ledger: Ledger) -> None:
        await ledger.claim("r_1", "r", "sync", b"h", b"")

    run(path, first)
    connection = sqlite3.connect(path)
    connection.execute("DROP TABLE owners")
    connection.execute("INSERT INTO children(name, owner) VALUES('7:7.0', '7:1.0:owner')")
    connection.commit()
    connection.close()

    async def main() -> None:
        ledger = Ledger(path, KEY, "9:1.0:owner")
        ledger.open()
        asked: list[str] = []
        (found,) = await ledger.orphans(lambda owner: asked.append(owner) is not None)
        assert found.run_id == "r_1"
        assert sorted(asked) == ["1:1.0:owner", "7:1.0:owner"]
        await ledger.close()

    asyncio.run(main())


def test_a_process_that_has_left_nothing_is_asked_about_no_more(tmp_path: Path) -> None:
    async def first(ledger: Ledger) -> None:
        await ledger.claim("r_1", "r", "sync", b"h", b"")

    async def second(ledger: Ledger) -> None:
        asked: list[str] = []

        def is_alive(owner: str) -> bool:
            asked.append(owner)
            return False

        (run,) = await ledger.orphans(is_alive)
        assert run.run_id == "r_1"
        (again,) = await ledger.orphans(is_alive)
        assert again == run, "until somebody takes it"
        assert await ledger.adopt(run)
        assert await ledger.orphans(is_alive) == []
        count = len(asked)
        assert await ledger.orphans(is_alive) == []
        assert (count, len(asked)) == (3, 3)

    run(tmp_path / "ledger.db", first, second)


def test_an_answer_that_came_late_is_removed_late(tmp_path: Path) -> None:
    async def main() -> None:
        now = [1000.0]
        ledger = Ledger(tmp_path / "ledger.db", KEY, "1:1.0:owner", lambda: now[0])
        ledger.open()

        async def kept(run_id: str) -> bool:
            found = await ledger.lookup(run_id, "r", b"h")
            return found is not None and found.answer is not None

        for name in ("early", "late", "next"):
            await ledger.claim(name, "r", "sync", b"h", b"")
        await ledger.answer("early", Answer(200, {}))
        await ledger.answer("next", Answer(200, {}))
        now[0] = 2000.0
        await ledger.purge(answers_before=1500, claims_before=0)
        await ledger.answer("late", Answer(200, {}))
        assert [await kept(name) for name in ("early", "late", "next")] == [False, True, False]
        await ledger.purge(answers_before=1900, claims_before=0)
        assert await kept("late")
        now[0] = 3000.0
        await ledger.purge(answers_before=2500, claims_before=0)
        assert not await kept("late")
        await ledger.close()

    asyncio.run(main())


def test_a_copy_under_way_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("port_webhook_handlers.runtime.ledger._CHECKPOINT_ROWS", 2)
    begun, ended = threading.Event(), threading.Event()

    def copy(_: Ledger) -> None:
        begun.set()
        time.sleep(0.3)
        ended.set()

    monkeypatch.setattr(Ledger, "_copy", copy)

    async def scenario(ledger: Ledger) -> None:
        await ledger.waiting()
        assert not begun.is_set(), "after two rows, not after one"
        await ledger.waiting()
        # The row after which the writer looks may still be under way.
        await asyncio.to_thread(begun.wait, 5)
        assert begun.is_set()

    run(tmp_path / "ledger.db", scenario)
    assert ended.is_set()


def soon(ledger: Ledger, run_id: str) -> asyncio.Future[Claim]:
    """A claim of a synchronous run, without a coroutine."""
    claimed: asyncio.Future[Claim] = asyncio.get_running_loop().create_future()

    def then(claim: Claim | None, error: LedgerError | None) -> None:
        if error is not None:
            claimed.set_exception(error)
        else:
            assert claim is not None
            claimed.set_result(claim)

    ledger.claim_soon(run_id, "route", "sync", b"hash", b"", then)
    return claimed


def answered(ledger: Ledger, run_id: str) -> asyncio.Future[LedgerError | None]:
    told: asyncio.Future[LedgerError | None] = asyncio.get_running_loop().create_future()
    ledger.answer_soon(run_id, 200, b"{}", told.set_result)
    return told


def test_only_what_is_out_of_the_ordinary_is_executed_by_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executed: list[int] = []
    execute = module._execute

    def recording(connection: sqlite3.Connection, group: module._Group, *rest: Any) -> None:
        executed.append(group.count)
        execute(connection, group, *rest)

    monkeypatch.setattr(module, "_execute", recording)

    async def scenario(ledger: Ledger) -> None:
        assert (await soon(ledger, "r_1")).new
        assert await answered(ledger, "r_1") is None
        claims = await asyncio.gather(*(soon(ledger, f"m_{number}") for number in range(64)))
        assert all(claim.new for claim in claims)
        assert executed == []
        again, other = soon(ledger, "r_1"), soon(ledger, "r_2")
        claim = await again
        assert (claim.new, claim.same, claim.answer) == (False, True, Answer(200, {}))
        assert (await other).new
        assert executed == [2], "a repeat among them"
        mixed = [answered(ledger, "m_0"), answered(ledger, "r_2")]
        more = [soon(ledger, f"n_{number}") for number in range(3)]
        assert await asyncio.gather(*mixed) == [None, None]
        assert all(claim.new for claim in await asyncio.gather(*more))
        assert executed == [2]
        await ledger.queued()
        assert executed == [2, 1]
        del executed[:]
        many = await asyncio.gather(*(soon(ledger, f"o_{number}") for number in range(65)))
        assert all(claim.new for claim in many)
        assert executed == [65], "too many for one statement"
        gauges = await ledger.gauges()
        # The question itself is counted as well.
        assert gauges["port_webhook_ledger_rows_total"][()] == 1 + 1 + 64 + 2 + 5 + 1 + 65 + 1
        assert gauges["port_webhook_ledger_commits_total"][()] == 1 + 1 + 1 + 1 + 1 + 1 + 1

    run(tmp_path / "ledger.db", scenario)


def test_an_answer_does_not_wait_for_the_disk_and_a_claim_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, waiting = threading.Event(), threading.Event()
    go.set()
    fdatasync = module._fdatasync

    def blocking(descriptor: int) -> None:
        waiting.set()
        assert go.wait(20)
        fdatasync(descriptor)

    monkeypatch.setattr(module, "_fdatasync", blocking)

    async def scenario(ledger: Ledger) -> None:
        assert (await soon(ledger, "r_1")).new
        go.clear()
        waiting.clear()
        claimed = soon(ledger, "r_2")
        await asyncio.to_thread(waiting.wait, 20)
        assert await asyncio.wait_for(answered(ledger, "r_1"), 5) is None
        other = soon(ledger, "r_3")
        await asyncio.sleep(0.05)
        both = soon(ledger, "r_4"), answered(ledger, "r_1")
        assert await asyncio.wait_for(both[1], 5) is None
        await asyncio.sleep(0.05)
        assert ledger._handed_over == 3
        assert not any(claim.done() for claim in (claimed, other, both[0]))
        go.set()
        assert (await claimed).new
        assert (await other).new
        assert (await both[0]).new
        assert ledger._handed_over == 0
        # Of the second answer nothing was handed over yet.
        assert (ledger._unchecked, ledger._unsynced) == (6, 0)
        assert await answered(ledger, "r_2") is None
        assert (ledger._unchecked, ledger._unsynced) == (6, 1)

    run(tmp_path / "ledger.db", scenario)


def test_a_commit_waits_for_the_disk_by_itself_only(tmp_path: Path) -> None:
    descriptors = psutil.Process().num_fds()

    async def scenario(ledger: Ledger) -> None:
        # The writer does it; SQLite would do it again.
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (1,)
        assert (await soon(ledger, "r_1")).new

    run(tmp_path / "ledger.db", scenario)
    assert psutil.Process().num_fds() == descriptors


def test_the_writer_survives_a_database_that_somebody_else_holds(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        ledger._connection.execute("PRAGMA busy_timeout=10")
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(LedgerError, match="locked"):
                await soon(ledger, "r_1")
            assert "locked" in str(await answered(ledger, "r_1"))
        finally:
            other.execute("ROLLBACK")
            other.close()
        assert (await soon(ledger, "r_1")).new

    run(tmp_path / "ledger.db", scenario)


def failing_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """While its only item is true, nothing can be made to survive a loss of power."""
    fails = [False]
    fdatasync = module._fdatasync

    def failing(descriptor: int) -> None:
        if fails[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fdatasync(descriptor)

    monkeypatch.setattr(module, "_fdatasync", failing)
    return fails


def test_claims_that_the_disk_does_not_keep_are_not_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = failing_disk(monkeypatch)

    async def scenario(ledger: Ledger) -> None:
        assert (await soon(ledger, "r_1")).new
        fails[0] = True
        lost = [soon(ledger, "r_2"), soon(ledger, "r_3")]
        for claim in lost:
            with pytest.raises(LedgerError, match="nothing was stored: Input/output error"):
                await claim
        with pytest.raises(LedgerError, match="nothing was stored"):
            await accept(ledger, "r_4")
        # The repeat lets the writer execute both.
        both = [soon(ledger, "r_1"), soon(ledger, "r_5")]
        for claim in both:
            with pytest.raises(LedgerError, match="nothing was stored"):
                await claim
        with pytest.raises(LedgerError):
            await ledger.finish("r_1", {"status": "SUCCESS"})
        rows = (ledger._rows, ledger._commits)
        fails[0] = False
        assert (ledger._rows, ledger._commits) == rows == (1, 1)
        assert not (await soon(ledger, "r_1")).new, "what was there before stays"
        for name in ("r_2", "r_3", "r_5"):
            assert (await soon(ledger, name)).new
        assert await accept(ledger, "r_4")

    run(tmp_path / "ledger.db", scenario)


def test_a_disk_that_fails_takes_no_earlier_run_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = failing_disk(monkeypatch)
    execute = module._execute

    def refusing(*arguments: Any) -> None:
        if fails[0]:
            raise sqlite3.OperationalError("disk I/O error")
        execute(*arguments)

    monkeypatch.setattr(module, "_execute", refusing)

    async def scenario(ledger: Ledger) -> None:
        assert (await soon(ledger, "r_1")).new
        fails[0] = True
        # A claim that only waits for the disk, and a repeat that the writer has to execute.
        told: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in range(2)]
        group = module._Group()
        group.stored = [module._Claim(("r_2",), lambda _, error: told[0].set_result(error))]
        group.claims = [module._Claim(("r_1",), lambda _, error: told[1].set_result(error))]
        group.count = 2
        ledger._handed_over += 1
        ledger._queue.put(group)
        assert "Input/output error" in str(await told[0])
        assert "disk I/O error" in str(await told[1])
        fails[0] = False
        assert not (await soon(ledger, "r_1")).new, "it would run twice"

    run(tmp_path / "ledger.db", scenario)


def test_what_cannot_be_written_at_once_is_left_to_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.get_ident()
    in_bulk, refused = module._in_bulk, [False]

    def refusing(*arguments: Any) -> None:
        if refused[0] and threading.get_ident() == here:
            raise sqlite3.OperationalError("database is locked")
        in_bulk(*arguments)

    monkeypatch.setattr(module, "_in_bulk", refusing)

    async def scenario(ledger: Ledger) -> None:
        refused[0] = True
        assert (await soon(ledger, "r_1")).new
        assert await answered(ledger, "r_1") is None
        refused[0] = False
        with ledger._sql:
            claimed = soon(ledger, "r_2")
            await asyncio.sleep(0.05)
            assert not claimed.done(), "somebody else uses the connection"
        assert (await claimed).new
        assert (await soon(ledger, "r_1")).answer == Answer(200, {})

    run(tmp_path / "ledger.db", scenario)


def test_an_answer_that_cannot_be_stored_says_so_and_claims_beside_it_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fdatasync = module._fdatasync

    def recording(descriptor: int) -> None:
        synced.append(descriptor)
        fdatasync(descriptor)

    monkeypatch.setattr(module, "_fdatasync", recording)

    async def scenario(ledger: Ledger) -> None:
        assert (await soon(ledger, "r_1")).new
        with ledger._sql:
            ledger._connection.execute(
                "CREATE TRIGGER full BEFORE UPDATE ON runs BEGIN SELECT raise(ABORT, 'disk is full'); END"
            )
        del synced[:]
        claimed, told = soon(ledger, "r_2"), answered(ledger, "r_1")
        assert (await claimed).new
        assert len(synced) == 1
        assert "disk is full" in str(await told)
        assert "disk is full" in str(await answered(ledger, "r_1"))
        with ledger._sql:
            ledger._connection.execute("DROP TRIGGER full")
        assert not (await soon(ledger, "r_2")).new
        assert await answered(ledger, "r_1") is None

    run(tmp_path / "ledger.db", scenario)


def test_the_log_is_copied_also_where_answers_pass_the_writer_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHECKPOINT_ROWS", 30)

    async def scenario(ledger: Ledger) -> None:
        for number in range(10):
            await soon(ledger, f"r_{number}")
        assert ledger._checkpointer is None
        for number in range(19):
            await answered(ledger, f"r_{number % 10}")
        await soon(ledger, "last")
        copying = ledger._checkpointer
        assert copying is not None
        await asyncio.to_thread(copying.join)
        await soon(ledger, "later")
        assert ledger._checkpointer is None
        assert ledger._unchecked == 1

    run(tmp_path / "ledger.db", scenario)


@pytest.mark.parametrize("count", [3, 100, 1_100])
def test_many_claims_on_a_disk_that_fails_leave_nothing_but_the_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    fails = failing_disk(monkeypatch)
    claims = [(f"r_{number}", "r", b"h", b"") for number in range(count)]

    async def known(ledger: Ledger) -> list[bool]:
        return [await ledger.lookup(run_id, "r", b"h") is not None for run_id, *_ in claims]

    async def scenario(ledger: Ledger) -> None:
        fails[0] = True
        with pytest.raises(LedgerError, match="Input/output error"):
            await ledger.claim_many(claims)
        fails[0] = False
        assert await known(ledger) == [False] * count
        assert await ledger.claim_many(claims[:1]) == [True]
        fails[0] = True
        # A repeat among them takes all of them to the writer.
        with pytest.raises(LedgerError, match="Input/output error"):
            await ledger.claim_many(claims)
        fails[0] = False
        assert await known(ledger) == [True] + [False] * (count - 1)
        assert await ledger.claim_many(claims) == [False] + [True] * (count - 1)

    run(tmp_path / "ledger.db", scenario)


def test_many_claims_are_written_on_the_event_loop_unless_they_would_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_writer: list[int] = []
    execute = module._execute

    def noting(connection: Any, group: Any, *rest: Any) -> None:
        by_writer.append(sum(len(bulk.rows) for bulk in group.bulks))
        execute(connection, group, *rest)

    monkeypatch.setattr(module, "_execute", noting)

    async def scenario(ledger: Ledger) -> None:
        by_writer.clear()
        for name, count in (("a", 1), ("b", 1_024), ("c", 1_025)):
            claims = [(f"{name}_{number}", "r", b"h", b"") for number in range(count)]
            assert await ledger.claim_many(claims) == [True] * count
        assert by_writer == [1_025]
        # Asked for at once: what fits is written here, the rest by the writer.
        both = [[(f"{name}_{number}", "r", b"h", b"") for number in range(600)] for name in ("d", "e")]
        assert await asyncio.gather(*map(ledger.claim_many, both)) == [[True] * 600] * 2
        assert by_writer == [1_025, 600]
        assert await ledger.waiting() == 3_250

    run(tmp_path / "ledger.db", scenario)


@pytest.mark.parametrize("repeats", [[], [("first", "r", b"h", b"")]], ids=["new", "with a repeat"])
def test_many_claims_that_wait_for_the_writer_share_its_next_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats: list[tuple[str, str, bytes, bytes]]
) -> None:
    slow, go_on, syncs = threading.Event(), threading.Event(), [0]
    fdatasync = module._fdatasync

    def waiting(descriptor: int) -> None:
        syncs[0] += 1
        if slow.is_set():
            go_on.wait(10)
        fdatasync(descriptor)

    monkeypatch.setattr(module, "_fdatasync", waiting)

    async def scenario(ledger: Ledger) -> None:
        slow.set()
        first = asyncio.ensure_future(ledger.claim_many([("first", "r", b"h", b"")]))
        before = syncs[0]
        while syncs[0] == before:
            await asyncio.sleep(0.001)
        others = []
        for name in ("a", "b", "c"):
            claims = [(f"{name}_{number}", "r", b"h", b"") for number in range(10)]
            others.append(asyncio.ensure_future(ledger.claim_many([*claims, *repeats])))
            # A group of its own.
            await asyncio.sleep(0.02)
        slow.clear()
        go_on.set()
        async with asyncio.timeout(10):
            expected = [True] * 10 + [False] * len(repeats)
            assert await asyncio.gather(first, *others) == [[True], expected, expected, expected]
        assert await ledger.waiting() == 31
        assert syncs[0] == before + 3, "the first, the three, and the question how many wait"

    run(tmp_path / "ledger.db", scenario)
