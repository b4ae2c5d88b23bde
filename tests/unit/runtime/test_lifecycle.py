"""The ledger against a model: whatever happens in whatever order, a run's life is as the model says."""

import asyncio
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from port_webhook_handlers.runtime.ledger import Ledger

RUNS = st.sampled_from(["r_1", "r_2", "r_3", "r_4"])
BODIES = st.sampled_from([b"a" * 32, b"b" * 32])
END = {"status": "SUCCESS"}


@dataclass
class Model:
    """What is known about one run."""

    body: bytes
    state: str = "queued"
    owner: str | None = None
    starts: int = 0
    reports: list[str] = field(default_factory=list)


class Lifecycle(RuleBasedStateMachine):
    """One process at a time works on the ledger; a crash is a new process with the same file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.model: dict[str, Model] = {}
        self.process = 0
        self.open()

    def open(self) -> None:
        self.process += 1
        self.owner = f"{self.process}:1.0:x"
        self.ledger = Ledger(self.folder / "ledger.db", b"k" * 32, self.owner)

        async def open_it() -> None:
            self.ledger.open()

        self.runner.run(open_it())

    def teardown(self) -> None:
        self.runner.run(self.ledger.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    @rule(run=RUNS, body=BODIES)
    def claim(self, run: str, body: bytes) -> None:
        known = self.model.get(run)
        claim = self.runner.run(self.ledger.claim(run, "route", "async", body, body))
        assert claim.new == (known is None)
        assert claim.same == (known is None or known.body == body)
        self.model.setdefault(run, Model(body))
        assert claim.state == self.model[run].state

    @rule(runs=st.lists(st.tuples(RUNS, BODIES), min_size=2, max_size=8))
    def claims_at_once(self, runs: list[tuple[str, bytes]]) -> None:
        async def all_of_them() -> Any:
            return await asyncio.gather(
                *(self.ledger.claim(run, "route", "async", body, body) for run, body in runs)
            )

        for (run, body), claim in zip(runs, self.runner.run(all_of_them()), strict=True):
            known = self.model.get(run)
            assert claim.new == (known is None)
            assert claim.same == (known is None or known.body == body)
            self.model.setdefault(run, Model(body))

    @rule(run=RUNS)
    def start(self, run: str) -> None:
        known = self.model.get(run)
        started = self.runner.run(self.ledger.start(run))
        if known is None or known.state != "queued":
            assert started is None
            return
        known.state, known.owner = "running", self.owner
        known.starts += 1
        assert started is not None
        assert (started.payload, started.attempt) == (known.body, known.starts)

    @rule(run=RUNS)
    def requeue(self, run: str) -> None:
        self.runner.run(self.ledger.requeue(run, 0))
        if run in self.model and self.model[run].state == "running":
            self.model[run].state, self.model[run].owner = "queued", None

    @rule(run=RUNS, text=st.sampled_from(["x", "y"]))
    def report(self, run: str, text: str) -> None:
        known = self.model.get(run)
        if known is not None and known.state == "running":
            self.ledger.report(run, "log", {"message": text})
            known.reports.append("log")

    @rule(run=RUNS)
    def finish(self, run: str) -> None:
        known = self.model.get(run)
        ends = known is not None and known.state in ("queued", "running")
        assert self.runner.run(self.ledger.finish(run, END)) == ends
        if known is not None and ends:
            known.state, known.owner = "reporting", self.owner
            known.reports.append("final")

    @rule(run=RUNS)
    def close(self, run: str) -> None:
        known = self.model.get(run)
        if known is not None and known.state == "reporting":
            self.runner.run(self.ledger.close_run(run))
            known.state, known.owner, known.reports = "done", None, []

    @rule(retry=st.booleans())
    def crash(self, retry: bool) -> None:
        self.runner.run(self.ledger.close())
        self.open()

        async def recover() -> list[str]:
            names = []
            for orphan in await self.ledger.orphans(lambda owner: False):
                assert await self.ledger.adopt(orphan)
                assert not await self.ledger.adopt(orphan)
                names.append(orphan.run_id)
                if orphan.state == "running" and retry:
                    await self.ledger.requeue(orphan.run_id, 0)
                elif orphan.state == "running":
                    await self.ledger.finish(orphan.run_id, {"status": "FAILURE"})
            return names

        lost = [run for run, known in self.model.items() if known.state in ("running", "reporting")]
        assert sorted(self.runner.run(recover())) == sorted(lost)
        for run in lost:
            known = self.model[run]
            known.owner = self.owner
            if known.state == "running" and retry:
                known.state, known.owner = "queued", None
            elif known.state == "running":
                known.state = "reporting"
                known.reports.append("final")

    @invariant()
    def as_the_model_says(self) -> None:
        async def look() -> None:
            waiting = {run for run, _ in await self.ledger.queued()}
            assert waiting == {run for run, known in self.model.items() if known.state == "queued"}
            for run, known in self.model.items():
                found = await self.ledger.lookup(run, "route", known.body)
                assert found is not None
                assert (found.state, found.owner, found.same) == (known.state, known.owner, True)
                assert [report.kind for report in await self.ledger.reports(run)] == known.reports

        self.runner.run(look())


Lifecycle.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLifecycle = Lifecycle.TestCase
