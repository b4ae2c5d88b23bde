"""Children that have many requests ahead of them: nothing runs twice, nothing waits behind what is slow."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.unit.runtime.kit import route, write_bundle

from port_webhook_handlers.runtime import children
from port_webhook_handlers.runtime.children import ChildPool, NotStartedError
from port_webhook_handlers.runtime.execution import Outcome
from port_webhook_handlers.runtime.logs import Log

SOURCE = """
import os, time
from pathlib import Path
from port_webhook_handlers.sdk import Inputs, Run, Success, action

class Form(Inputs):
    text: str = ""

@action("ask", title="Ask", operation="CREATE", mode="sync")
def ask(inputs: Form, run: Run) -> Success:
    with open(Path(run.settings["state_dir"]) / "marks", "a") as stream:
        stream.write(f"{run.id}\\n")
    if inputs.text == "slow":
        time.sleep(1)
    if inputs.text == "hang":
        time.sleep(60)
    if inputs.text == "die":
        os._exit(3)
    return Success(response={"pid": os.getpid()})
"""


class Bench:
    def __init__(self, folder: Path, pool: ChildPool) -> None:
        self.folder = folder
        self.pool = pool

    async def ask(self, run_id: str, text: str = "", seconds: float = 20, limit: int = 10) -> Outcome:
        request = {
            "run": {"id": run_id, "action": "ask", "attempt": 1, "deadline": 2e9},
            "handler": "app:ask",
            "secrets": {},
            "settings": {"state_dir": str(self.folder)},
            "inputs": {"text": text},
        }
        line = json.dumps(request).encode() + b"\n"
        return await self.pool.run_shared(
            run_id, "ask", "app:ask", line, seconds, limit, lambda message: None
        )

    async def ask_as(self, name: str) -> Outcome:
        """As `ask`, as if it were another route."""
        run = {"id": f"r_{name}", "action": "ask", "attempt": 1, "deadline": 2e9}
        request = {"run": run, "handler": "app:ask", "secrets": {}, "inputs": {}}
        request["settings"] = {"state_dir": str(self.folder)}
        line = json.dumps(request).encode() + b"\n"
        return await self.pool.run_shared(f"r_{name}", name, "app:ask", line, 20, 10, lambda message: None)

    async def warm(self) -> None:
        """From here on the pool knows that the handler is quick."""
        for number in range(60):
            await self.ask(f"w_{number}")

    def marks(self) -> Counter[str]:
        return Counter((self.folder / "marks").read_text().split())


def run(folder: Path, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    manifest = write_bundle(folder / "bundle", (route("ask", mode="sync"),), SOURCE)
    (folder / "work").mkdir()

    async def main() -> None:
        with (folder / "log").open("ab") as stream:
            pool = ChildPool(folder / "bundle", manifest.digest, folder / "work", Log(stream.fileno()))
            try:
                await scenario(Bench(folder, pool))
            finally:
                await pool.close()

    asyncio.run(main())


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything quick goes to one child."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})


def test_quick_requests_share_a_child(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        await b.warm()
        outcomes = await asyncio.gather(*(b.ask(f"r_{number}") for number in range(200)))
        assert {outcome.status for outcome in outcomes} == {"SUCCESS"}
        assert len({outcome.response["pid"] for outcome in outcomes}) == 1
        assert set(b.marks().values()) == {1}

    run(tmp_path, scenario)


def test_nothing_waits_behind_what_is_slow(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        await b.warm()
        slow = asyncio.ensure_future(b.ask("r_slow", "slow"))
        outcomes = await asyncio.gather(*(b.ask(f"r_{number}") for number in range(20)))
        assert {outcome.status for outcome in outcomes} == {"SUCCESS"}
        assert not slow.done()
        assert (await slow).status == "SUCCESS"
        assert set(b.marks().values()) == {1}

    run(tmp_path, scenario)


def test_what_waits_behind_one_that_dies_runs_elsewhere_and_once(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        await b.warm()
        fatal, *others = await asyncio.gather(
            b.ask("r_fatal", "die"), *(b.ask(f"r_{number}") for number in range(30))
        )
        assert fatal.interrupted
        assert "code 3" in (fatal.summary or "")
        assert {outcome.status for outcome in others} == {"SUCCESS"}
        assert set(b.marks().values()) == {1}

    run(tmp_path, scenario)


def test_the_time_limit_ends_only_the_one_that_runs(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        await b.warm()
        late, *others = await asyncio.gather(
            b.ask("r_late", "hang", 0.3), *(b.ask(f"r_{number}") for number in range(5))
        )
        assert late.timed_out
        assert "0.3 s" in (late.summary or "")
        assert {outcome.status for outcome in others} == {"SUCCESS"}
        assert set(b.marks().values()) == {1}

    run(tmp_path, scenario)


def test_who_waits_too_long_is_not_started(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        busy = asyncio.ensure_future(b.ask("r_busy", "slow", limit=1))
        await asyncio.sleep(0)
        with pytest.raises(NotStartedError):
            await b.ask("r_waiting", seconds=0.1, limit=1)
        assert (await busy).status == "SUCCESS"
        assert b.marks() == {"r_busy": 1}

    run(tmp_path, scenario)


def test_a_child_that_grows_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: dict[int, int] = {}

    async def scenario(b: Bench) -> None:
        monkeypatch.setattr(children, "_SETTLED_RUNS", 10)
        monkeypatch.setattr(children, "resident_bytes", lambda pid: sizes.get(pid, 2**20))
        await b.warm()
        first = (await b.ask("r_1")).response["pid"]
        await b.pool.trim()
        assert (await b.ask("r_2")).response["pid"] == first
        sizes[first] = 2**20 + children._MAX_GROWTH_BYTES + 1
        await b.pool.trim()
        for number in range(200):
            if (await b.ask(f"r_3_{number}")).response["pid"] != first:
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the child is still used")
        assert set(b.marks().values()) == {1}

    run(tmp_path, scenario)


def test_children_that_are_idle_make_room_for_other_routes(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        b.pool._max_shared = 2
        async with asyncio.timeout(20):
            for number in range(5):
                assert (await b.ask_as(f"route_{number}")).status == "SUCCESS"
        assert sum(len(route.children) for route in b.pool._routes.values()) <= 2

    run(tmp_path, scenario)


def test_no_more_children_are_started_at_once_than_there_are_cores(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        starting, most = [0], [0]
        spawn = b.pool._spawn

        async def recording() -> children._Child:
            starting[0] += 1
            most[0] = max(most[0], starting[0])
            try:
                return await spawn()
            finally:
                starting[0] -= 1

        b.pool._spawn = recording  # type: ignore[method-assign]
        many = [b.ask(f"r_{number}", "slow") for number in range(4)]
        outcomes = await asyncio.gather(b.ask_as("other"), *many)
        assert {outcome.status for outcome in outcomes} == {"SUCCESS"}
        # One of them is made ahead, for whoever comes next.
        assert most[0] <= 2, "of one core"
        assert len({json.dumps(outcome.response) for outcome in outcomes}) == 5, "slow ones get one each"

    run(tmp_path, scenario)


def test_what_is_being_started_ends_with_the_pool(tmp_path: Path) -> None:
    started: list[str] = []
    ended: list[str] = []

    async def scenario(b: Bench) -> None:
        async def spawned(name: str) -> None:
            started.append(name)

        b.pool._on_spawn, b.pool._on_end = spawned, ended.append
        asked = [asyncio.ensure_future(b.ask_as(f"route_{number}")) for number in range(4)]
        # They are somewhere between a request and a process.
        await asyncio.sleep(0.03)
        async with asyncio.timeout(20):
            await b.pool.close()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert all(
            isinstance(item, NotStartedError) or (isinstance(item, Outcome) and item.interrupted)
            for item in outcomes
        )
        assert sorted(started) == sorted(ended)
        assert started

    run(tmp_path, scenario)


def test_a_pool_that_is_closed_starts_nothing_more(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        await b.pool.close()
        async with asyncio.timeout(5):
            with pytest.raises(NotStartedError):
                await b.ask_as("late")
        assert not b.pool._alive
        assert not b.pool._tasks

    run(tmp_path, scenario)


def test_children_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "_PREPARE_RUNS", 80)
    monkeypatch.setattr(children, "_MAX_RUNS", 120)

    async def scenario(b: Bench) -> None:
        await b.warm()
        pids = set()
        for start in range(0, 600, 20):
            outcomes = await asyncio.gather(*(b.ask(f"r_{start + n}") for n in range(20)))
            pids |= {outcome.response["pid"] for outcome in outcomes}
        assert len(pids) > 2
        assert set(b.marks().values()) == {1}

    run(tmp_path, scenario)
