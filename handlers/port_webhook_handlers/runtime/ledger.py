"""The durable record of runs, in SQLite.

Everything goes through one thread with one connection. It commits in groups, so that many claims share one
`fdatasync`; a caller gets its result only after the commit. What is asked within one turn of the event loop is
handed over together, and equal statements of a group are one statement: each statement lets go of the
interpreter, and to get it back while the event loop is busy costs far more than the statement. Bodies, answers and reports are encrypted at rest.
Several server processes may use one ledger at a time, as during an exchange of servers: whatever must happen
once is a conditional statement.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import itertools
import json
import os
import queue
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.runtime.claims import Answer, Claim, LedgerError, Report

T = TypeVar("T")

_GROUP_ROWS: Final = 256
_GROUP_SECONDS: Final = 0.002
_BULK_ROWS: Final = 64
_NONCE_BYTES: Final = 12
_KEY_CHECK: Final = "key"

# Rows lie in the order of their arrival: by run id, which is random, every claim would write a page of its own.
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS runs (
  run_id TEXT NOT NULL PRIMARY KEY,
  route TEXT NOT NULL,
  mode TEXT NOT NULL,
  body_hash BLOB NOT NULL,
  state TEXT NOT NULL,
  attempt INTEGER NOT NULL DEFAULT 0,
  executions INTEGER NOT NULL DEFAULT 0,
  owner TEXT,
  payload BLOB,
  answer BLOB,
  notes TEXT NOT NULL DEFAULT '',
  not_before REAL NOT NULL DEFAULT 0,
  accepted_at REAL NOT NULL,
  updated_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS runs_open ON runs(state, accepted_at) WHERE state != 'done';
CREATE INDEX IF NOT EXISTS runs_done ON runs(updated_at) WHERE state = 'done';
CREATE TABLE IF NOT EXISTS reports (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS reports_run ON reports(run_id, seq);
CREATE TABLE IF NOT EXISTS children (name TEXT PRIMARY KEY, owner TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class StartedRun:
    """A run that this process may execute now, once."""

    run_id: str
    route: str
    payload: bytes
    attempt: int


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run that has not come to its end."""

    run_id: str
    route: str
    mode: str
    state: str
    attempt: int
    owner: str | None
    accepted_at: float


class _Sealer:
    """AES-256-GCM, bound to the run, so that rows cannot be swapped."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        # Keys of its own: nonces of the secrets store and of the ledger never meet under one key.
        self._aead = AESGCM(hmac.digest(key, b"port-webhook ledger 1", "sha256"))
        self._mark_key = hmac.digest(key, b"port-webhook ledger marks 1", "sha256")
        self._random = b""

    def seal(self, run_id: str, plain: bytes) -> bytes:
        # Every system call gives other threads the interpreter, which costs more than the call.
        if not self._random:
            self._random = os.urandom(_NONCE_BYTES * 256)
        nonce, self._random = self._random[:_NONCE_BYTES], self._random[_NONCE_BYTES:]
        return nonce + self._aead.encrypt(nonce, plain, run_id.encode())

    def mark(self, body_hash: bytes) -> bytes:
        """A hash that only this key can compare: from a plain one, short inputs could be guessed."""
        return hashlib.blake2b(body_hash, key=self._mark_key, digest_size=32).digest()

    def open(self, run_id: str, sealed: bytes) -> bytes:
        return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], run_id.encode())


Then = Callable[[Any, BaseException | None], None]


@dataclass(slots=True)
class _Operation:
    run: Callable[[sqlite3.Connection], Any]
    then: Then | None
    single: bool
    bulk: str = ""
    row: tuple[Any, ...] = ()
    result: Any = None
    error: BaseException | None = None


class Ledger:
    """The ledger of a listener. Methods are called on the event loop that was running at `open`.

    Args:
        path: the database; made if missing, mode 0600.
        key: 32 bytes; a ledger opens only with the key it was written with.
        owner: name of this process in the ledger.
        clock: seconds since the epoch.
    """

    def __init__(self, path: Path, key: bytes, owner: str, clock: Callable[[], float] = time.time) -> None:
        self.owner = owner
        self._path = path
        self._sealer = _Sealer(key)
        self._clock = clock
        self._queue: queue.SimpleQueue[list[_Operation] | None] = queue.SimpleQueue()
        self._submitted: list[_Operation] = []
        self._commits = 0
        self._rows = 0
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    def open(self) -> None:
        """Opens the database and starts the writer.

        Raises:
            LedgerError: it cannot be opened or is not a ledger.
        """
        self._loop = asyncio.get_running_loop()
        connection: sqlite3.Connection | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=5, cached_statements=256
            )
            connection.execute("PRAGMA journal_mode=WAL")
            # In WAL mode FULL is what makes a commit survive a loss of power, not just of the process.
            connection.execute("PRAGMA synchronous=FULL")
            # Pages that change again and again are copied less often.
            connection.execute("PRAGMA wal_autocheckpoint=4000")
            connection.executescript(_SCHEMA)
            self._check_key(connection)
        except (OSError, sqlite3.Error) as error:
            if connection is not None:
                connection.close()
            raise LedgerError(
                f"ledger {self._path}: cannot be opened ({error}); move it away to start with an empty one"
            ) from error
        self._thread = threading.Thread(target=self._work, args=(connection,), name="ledger", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Commits what is waiting and closes the database; later calls raise `LedgerError`."""
        thread, self._thread = self._thread, None
        self._closed = True
        if thread is not None:
            self._hand_over()
            self._queue.put(None)
            await asyncio.to_thread(thread.join)

    # Claims

    async def claim(
        self,
        run_id: str,
        route: str,
        mode: str,
        body_hash: bytes,
        payload: bytes,
        *,
        refusal: Answer | None = None,
        failure: dict[str, Any] | None = None,
    ) -> Claim:
        """Takes the place of a run, or tells who has it. When it returns, the claim is on disk.

        Args:
            run_id: Port's run id.
            route: name of the route.
            mode: `async`, `sync` or `probe`.
            body_hash: hash of the canonical body.
            payload: the body.
            refusal: the run is not to be executed; this is its answer.
            failure: the report that ends a refused run.

        Raises:
            LedgerError: nothing was stored.
        """
        now = self._clock()
        state = {"sync": "running", "probe": "done"}.get(mode, "queued")
        owner: str | None = self.owner if mode == "sync" else None
        sealed: bytes | None = self._sealer.seal(run_id, payload) if mode == "async" else None
        answer: bytes | None = None
        if refusal is not None:
            state, owner, sealed = "reporting" if failure else "done", self.owner, None
            answer = self._seal_json(run_id, [refusal.status, refusal.body])
        row = (run_id, route, mode, self._sealer.mark(body_hash), state, owner, sealed, answer, now, now)
        report = None if failure is None else self._seal_json(run_id, failure)

        def operation(connection: sqlite3.Connection) -> Any:
            new = connection.execute(_bulk("claim", 1), row).rowcount == 1
            if new and mode != "probe":
                if report is not None:
                    connection.execute(
                        "INSERT INTO reports(run_id, kind, body) VALUES(?,'final',?)", (run_id, report)
                    )
                return None
            if new:
                # The probe's whole work: a second execution would be seen.
                connection.execute("UPDATE runs SET executions = executions + 1 WHERE run_id = ?", (run_id,))
            return new, *connection.execute(_LOOKUP, (run_id,)).fetchone()

        if report is not None or mode == "probe":
            found = await self._submit(operation, single=False)
        else:
            found = await self._submit(operation, bulk="claim", row=row)
        if found is None:
            return Claim(True, True, state, owner, refusal, 0)
        return self._claim(run_id, route, body_hash, *found)

    def claim_soon(
        self,
        run_id: str,
        route: str,
        body_hash: bytes,
        then: Callable[[Claim | None, LedgerError | None], None],
    ) -> None:
        """As `claim` of a synchronous run, without a coroutine.

        Args:
            run_id, route, body_hash: as in `claim`.
            then: called with the claim when it is on disk, or with the error; must not raise.
        """
        now = self._clock()
        row = (
            *(run_id, route, "sync", self._sealer.mark(body_hash), "running"),
            *(self.owner, None, None, now, now),
        )

        def operation(connection: sqlite3.Connection) -> Any:
            if connection.execute(_bulk("claim", 1), row).rowcount == 1:
                return None
            return False, *connection.execute(_LOOKUP, (run_id,)).fetchone()

        def claimed(found: Any, error: BaseException | None) -> None:
            if error is not None:
                then(None, _ledger_error(error))
            elif found is None:
                then(Claim(True, True, "running", self.owner, None, 0), None)
            else:
                then(self._claim(run_id, route, body_hash, *found), None)

        if self._closed:
            then(None, LedgerError("the ledger is closed"))
        else:
            self._put(_Operation(operation, claimed, True, "claim", row))

    async def claim_many(self, claims: Sequence[tuple[str, str, bytes, bytes]]) -> list[bool]:
        """Claims many asynchronous runs at once, which costs a fraction of as many single claims.

        Args:
            claims: run id, route, hash of the canonical body, and the body, of each.

        Returns:
            for each whether it was the first with its run id; of the others nothing is known.

        Raises:
            LedgerError: nothing was stored.
        """
        now = self._clock()
        rows = [
            (
                *(run_id, route, "async", self._sealer.mark(body_hash), "queued"),
                *(None, self._sealer.seal(run_id, payload), None, now, now),
            )
            for run_id, route, body_hash, payload in claims
        ]

        def operation(connection: sqlite3.Connection) -> list[bool]:
            insert = _bulk("claim", 1)
            return [connection.execute(insert, row).rowcount == 1 for row in rows]

        return await self._submit(operation, single=False)

    async def lookup(self, run_id: str, route: str, body_hash: bytes) -> Claim | None:
        """The claim that a request would meet; None if the run id is unknown."""
        found = await self._submit(lambda c: c.execute(_LOOKUP, (run_id,)).fetchone())
        return None if found is None else self._claim(run_id, route, body_hash, False, *found)

    def _claim(self, run_id: str, route: str, body_hash: bytes, new: bool, *row: Any) -> Claim:
        known_route, known_hash, state, owner, answer, executions = row
        known = None if answer is None else Answer(*self._open_json(run_id, answer))
        same = known_route == route and known_hash == self._sealer.mark(body_hash)
        return Claim(new, same, state, owner, known, executions)

    async def answer(self, run_id: str, answer: Answer) -> None:
        """Ends a synchronous run with its answer."""
        row = self._answer_row(run_id, answer.status, compact(answer.body).encode())
        await self._submit(lambda c: c.execute(_bulk("answer", 1), row).rowcount, bulk="answer", row=row)

    def answer_soon(
        self, run_id: str, status: int, text: bytes, then: Callable[[LedgerError | None], None]
    ) -> None:
        """As `answer`, without a coroutine.

        Args:
            run_id: Port's run id.
            status: HTTP status.
            text: the answer's body, JSON.
            then: called when the answer is on disk, or with the error; must not raise.
        """
        if self._closed:
            then(LedgerError("the ledger is closed"))
            return
        row = self._answer_row(run_id, status, text)
        self._put(
            _Operation(
                lambda c: c.execute(_bulk("answer", 1), row).rowcount,
                lambda _, error: then(None if error is None else _ledger_error(error)),
                True,
                "answer",
                row,
            )
        )

    def _answer_row(self, run_id: str, status: int, text: bytes) -> tuple[Any, ...]:
        return run_id, self._sealer.seal(run_id, b"[%d,%b]" % (status, text)), self._clock()

    # Execution

    async def queued(self, limit: int = 1000) -> list[tuple[str, str]]:
        """Run id and route of accepted runs that may start now, the oldest first."""
        return await self._submit(
            lambda c: c.execute(
                "SELECT run_id, route FROM runs WHERE state='queued' AND not_before<=? ORDER BY accepted_at LIMIT ?",
                (self._clock(), limit),
            ).fetchall()
        )

    async def start(self, run_id: str) -> StartedRun | None:
        """Marks a run as running; None if it is not waiting any more. On disk before it returns."""
        row = await self._submit(
            lambda c: c.execute(
                "UPDATE runs SET state='running', owner=?, attempt=attempt+1, updated_at=?"
                " WHERE run_id=? AND state='queued' RETURNING route, payload, attempt",
                (self.owner, self._clock(), run_id),
            ).fetchone()
        )
        if row is None:
            return None
        route, payload, attempt = row
        return StartedRun(run_id, route, self._sealer.open(run_id, payload), attempt)

    async def add_child(self, name: str) -> None:
        """Records a process that will execute runs of this one, so that a later server can end it."""
        await self._submit(
            lambda c: (
                c.execute(
                    "INSERT OR REPLACE INTO children(name, owner) VALUES(?,?)", (name, self.owner)
                ).rowcount
            )
        )

    async def remove_children(self, names: Sequence[str]) -> None:
        """Forgets processes that have ended."""
        await self._submit(
            lambda c: c.executemany("DELETE FROM children WHERE name=?", [(name,) for name in names]).rowcount
        )

    def forget_child(self, name: str) -> None:
        """As `remove_children`, for one process and without waiting."""
        self._put_unwatched(lambda c: c.execute("DELETE FROM children WHERE name=?", (name,)).rowcount)

    async def lost_children(self, is_alive: Callable[[str], bool]) -> list[str]:
        """Processes whose owner has ended.

        Args:
            is_alive: whether the process that an owner names still runs.
        """

        def operation(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT name, owner FROM children ORDER BY owner").fetchall()
            alive = {owner: owner == self.owner or is_alive(owner) for owner in {row[1] for row in rows}}
            return [name for name, owner in rows if not alive[owner]]

        return await self._submit(operation)

    async def requeue(self, run_id: str, not_before: float) -> None:
        """Lets a running run start again, not before the given time (seconds since the epoch)."""
        await self._submit(
            lambda c: (
                c.execute(
                    "UPDATE runs SET state='queued', owner=NULL, not_before=?, updated_at=?"
                    " WHERE run_id=? AND state='running'",
                    (not_before, self._clock(), run_id),
                ).rowcount
            )
        )

    async def finish(self, run_id: str, failure_or_success: dict[str, Any]) -> bool:
        """Ends an asynchronous run: its last report is stored and the payload is gone.

        Returns:
            False if it had ended before.
        """
        sealed = self._seal_json(run_id, failure_or_success)

        def operation(connection: sqlite3.Connection) -> bool:
            changed = connection.execute(
                "UPDATE runs SET state='reporting', owner=?, payload=NULL, updated_at=?"
                " WHERE run_id=? AND state IN ('queued', 'running')",
                (self.owner, self._clock(), run_id),
            ).rowcount
            if changed:
                connection.execute(
                    "INSERT INTO reports(run_id, kind, body) VALUES(?,'final',?)", (run_id, sealed)
                )
            return changed == 1

        return await self._submit(operation, single=False)

    # Reports

    def report(self, run_id: str, kind: str, body: dict[str, Any]) -> None:
        """Adds something to tell Port; stored before anything that is submitted later.

        A loss is tolerated where the run's end is not: nobody waits for it.
        """
        sealed = self._seal_json(run_id, body)
        insert = "INSERT INTO reports(run_id, kind, body) VALUES(?,?,?)"
        self._put_unwatched(lambda c: c.execute(insert, (run_id, kind, sealed)).rowcount)

    def _put_unwatched(self, run: Callable[[sqlite3.Connection], int]) -> None:
        if self._closed or self._loop is None:
            return
        self._put(_Operation(run, None, True))

    async def reports(self, run_id: str, limit: int = 50) -> list[Report]:
        """The next reports of a run, in order."""
        rows = await self._submit(
            lambda c: c.execute(
                "SELECT seq, kind, body FROM reports WHERE run_id=? ORDER BY seq LIMIT ?", (run_id, limit)
            ).fetchall()
        )
        return [Report(seq, kind, self._open_json(run_id, body)) for seq, kind, body in rows]

    async def reported(self, run_id: str, seqs: Sequence[int], note: str = "") -> None:
        """Removes reports that Port took or refused for good, and notes a refusal."""

        def operation(connection: sqlite3.Connection) -> None:
            connection.executemany("DELETE FROM reports WHERE seq=?", [(seq,) for seq in seqs])
            if note:
                connection.execute(
                    "UPDATE runs SET notes = substr(notes || ?, 1, 500) WHERE run_id=?", (note + "\n", run_id)
                )

        await self._submit(operation, single=False)

    async def notes(self, run_id: str) -> list[str]:
        """Refusals noted for a run."""
        row = await self._submit(
            lambda c: c.execute("SELECT notes FROM runs WHERE run_id=?", (run_id,)).fetchone()
        )
        return [] if row is None else [line for line in row[0].splitlines() if line]

    async def close_run(self, run_id: str) -> None:
        """A reported run has ended: nothing is left to do for it."""

        def operation(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM reports WHERE run_id=?", (run_id,))
            connection.execute(
                "UPDATE runs SET state='done', owner=NULL, updated_at=? WHERE run_id=? AND state='reporting'",
                (self._clock(), run_id),
            )

        await self._submit(operation, single=False)

    async def unreported(self) -> list[str]:
        """Runs of this process, or of none, that have something to report; ended ones become this process's."""

        def operation(connection: sqlite3.Connection) -> list[str]:
            connection.execute(
                "UPDATE runs SET owner=? WHERE state='reporting' AND owner IS NULL", (self.owner,)
            )
            rows = connection.execute(
                "SELECT run_id, min(r.seq) FROM reports r JOIN runs USING(run_id)"
                " WHERE runs.owner=? OR runs.owner IS NULL GROUP BY run_id ORDER BY 2 LIMIT 1000",
                (self.owner,),
            )
            return [run_id for run_id, _ in rows]

        return await self._submit(operation, single=False)

    # Other processes

    async def orphans(self, is_alive: Callable[[str], bool]) -> list[OpenRun]:
        """Open runs whose process has ended.

        Args:
            is_alive: whether the process that an owner names still runs.
        """

        def operation(connection: sqlite3.Connection) -> list[OpenRun]:
            owners = [
                owner
                for (owner,) in connection.execute(
                    "SELECT DISTINCT owner FROM runs WHERE state IN ('running','reporting') AND owner IS NOT NULL"
                )
                if owner != self.owner and not is_alive(owner)
            ]
            found: list[OpenRun] = []
            for owner in owners:
                found += [
                    OpenRun(*row)
                    for row in connection.execute(
                        "SELECT run_id, route, mode, state, attempt, owner, accepted_at FROM runs"
                        " WHERE state IN ('running','reporting') AND owner=?",
                        (owner,),
                    )
                ]
            return found

        return await self._submit(operation)

    async def adopt(self, run: OpenRun) -> bool:
        """Takes over an orphan; False if another process did."""
        changed = await self._submit(
            lambda c: (
                c.execute(
                    "UPDATE runs SET owner=? WHERE run_id=? AND owner=? AND state=?",
                    (self.owner, run.run_id, run.owner, run.state),
                ).rowcount
            )
        )
        return changed == 1

    async def release(self) -> None:
        """Gives the reports of this process to whoever comes next."""
        await self._submit(
            lambda c: (
                c.execute(
                    "UPDATE runs SET owner=NULL WHERE owner=? AND state='reporting'", (self.owner,)
                ).rowcount
            )
        )

    async def forget(self, run_id: str) -> None:
        """Removes a claim, so that a repeat of the request is executed."""
        await self._submit(lambda c: c.execute("DELETE FROM runs WHERE run_id=?", (run_id,)).rowcount)

    # Housekeeping

    async def waiting(self) -> int:
        """How many accepted runs have not started."""
        row = await self._submit(
            lambda c: c.execute("SELECT count(*) FROM runs WHERE state='queued'").fetchone()
        )
        return int(row[0])

    async def expired(self, before: float) -> list[str]:
        """Runs accepted before a time (seconds since the epoch) that Port still has not heard the end of."""
        rows = await self._submit(
            lambda c: c.execute(
                "SELECT run_id FROM runs WHERE state='reporting' AND accepted_at<?", (before,)
            ).fetchall()
        )
        return [run_id for (run_id,) in rows]

    async def purge(self, *, answers_before: float, claims_before: float) -> None:
        """Removes answers of synchronous runs, and whole claims, that ended before the given times."""

        def operation(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE runs SET answer=NULL WHERE state='done' AND mode='sync' AND answer IS NOT NULL"
                " AND updated_at<?",
                (answers_before,),
            )
            connection.execute(
                "DELETE FROM reports WHERE run_id IN (SELECT run_id FROM runs WHERE state='done' AND updated_at<?)",
                (claims_before,),
            )
            connection.execute("DELETE FROM runs WHERE state='done' AND updated_at<?", (claims_before,))

        await self._submit(operation, single=False)

    async def gauges(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """State of the ledger as metrics."""

        def operation(connection: sqlite3.Connection) -> Any:
            states = connection.execute(
                "SELECT state, count(*) FROM runs WHERE state!='done' GROUP BY state"
            ).fetchall()
            reports = connection.execute("SELECT count(*) FROM reports").fetchone()[0]
            oldest = connection.execute("SELECT min(accepted_at) FROM runs WHERE state!='done'").fetchone()[0]
            return states, reports, oldest

        states, reports, oldest = await self._submit(operation)
        counts = {"queued": 0, "running": 0, "reporting": 0, **dict(states)}
        return {
            "port_webhook_runs": {(("state", state),): count for state, count in counts.items()},
            "port_webhook_reports_waiting": {(): reports},
            "port_webhook_ledger_commits_total": {(): self._commits},
            "port_webhook_ledger_rows_total": {(): self._rows},
            "port_webhook_oldest_unreported_seconds": {(): max(0.0, self._clock() - oldest) if oldest else 0},
        }

    # The writer

    def _check_key(self, connection: sqlite3.Connection) -> None:
        """Ends what an earlier key encrypted: nobody can run or answer it any more."""
        from cryptography.exceptions import InvalidTag

        connection.execute("BEGIN IMMEDIATE")
        row = connection.execute("SELECT value FROM meta WHERE name='key'").fetchone()
        try:
            if row is not None:
                self._sealer.open(_KEY_CHECK, row[0])
        except InvalidTag:
            row = None
            open_runs = connection.execute(
                "SELECT run_id FROM runs WHERE mode='async' AND state!='done'"
            ).fetchall()
            connection.execute("DELETE FROM reports")
            connection.execute("UPDATE runs SET payload=NULL, answer=NULL, owner=NULL")
            connection.execute("UPDATE runs SET state='reporting' WHERE mode='async' AND state!='done'")
            connection.execute("UPDATE runs SET state='done' WHERE mode!='async'")
            lost = {
                "status": "FAILURE",
                "summary": "The run's data cannot be read: the key of the ledger was replaced.",
            }
            connection.executemany(
                "INSERT INTO reports(run_id, kind, body) VALUES(?,'final',?)",
                [(run_id, self._seal_json(run_id, lost)) for (run_id,) in open_runs],
            )
        if row is None:
            connection.execute(
                "INSERT OR REPLACE INTO meta(name, value) VALUES('key', ?)",
                (self._sealer.seal(_KEY_CHECK, b""),),
            )
        connection.execute("COMMIT")

    def _seal_json(self, run_id: str, value: Any) -> bytes:
        return self._sealer.seal(run_id, compact(value).encode())

    def _open_json(self, run_id: str, sealed: bytes) -> Any:
        return json.loads(self._sealer.open(run_id, sealed))

    async def _submit(
        self,
        run: Callable[[sqlite3.Connection], T],
        *,
        single: bool = True,
        bulk: str = "",
        row: tuple[Any, ...] = (),
    ) -> T:
        if self._closed or self._loop is None:
            raise LedgerError("the ledger is closed")
        future: asyncio.Future[T] = self._loop.create_future()

        def then(result: T, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._put(_Operation(run, then, single, bulk, row))
        return await future

    def _put(self, operation: _Operation) -> None:
        if not self._submitted and self._loop is not None:
            self._loop.call_soon(self._gather, 0, self._loop.time() + _GROUP_SECONDS)
        self._submitted.append(operation)

    def _gather(self, seen: int, until: float) -> None:
        """Waits for more as long as each turn of the event loop brings some."""
        count = len(self._submitted)
        if self._loop is not None and seen < count < _GROUP_ROWS and self._loop.time() < until:
            self._loop.call_soon(self._gather, count, until)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._submitted:
            submitted, self._submitted = self._submitted, []
            self._queue.put(submitted)

    def _work(self, connection: sqlite3.Connection) -> None:
        running = True
        while running and (group := self._queue.get()) is not None:
            try:
                while len(group) < _GROUP_ROWS:
                    following = self._queue.get_nowait()
                    if following is None:
                        running = False
                        break
                    group += following
            except queue.Empty:
                pass
            try:
                _execute(connection, group)
                self._commits += 1
                self._rows += len(group)
            except sqlite3.Error as error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                for operation in group:
                    operation.error = LedgerError(f"nothing was stored: {error}")
            self._deliver(group)
        try:
            connection.close()
        except sqlite3.Error:
            pass

    def _deliver(self, group: list[_Operation]) -> None:
        assert self._loop is not None  # noqa: S101
        try:
            self._loop.call_soon_threadsafe(_resolve, group)
        except RuntimeError:
            # The loop has ended; nobody waits.
            pass


_LOOKUP: Final = "SELECT route, body_hash, state, owner, answer, executions FROM runs WHERE run_id=?"


_BULK: Final = {
    "claim": (
        "INSERT INTO runs(run_id, route, mode, body_hash, state, owner, payload, answer, accepted_at, updated_at)"
        " VALUES {} ON CONFLICT DO NOTHING",
        "(?,?,?,?,?,?,?,?,?,?)",
    ),
    "answer": (
        "UPDATE runs SET state='done', owner=NULL, answer=given.column2, updated_at=given.column3"
        " FROM (VALUES {}) AS given WHERE run_id=given.column1",
        "(?,?,?)",
    ),
}


@functools.cache
def _bulk(name: str, rows: int) -> str:
    statement, values = _BULK[name]
    return statement.format(",".join([values] * rows))


def _execute_bulk(connection: sqlite3.Connection, name: str, rows: list[tuple[Any, ...]]) -> int:
    """Executes one statement for many rows; returns how many it changed."""
    changed = 0
    while rows:
        # Few different sizes, so that statements stay prepared.
        size = min(_BULK_ROWS, 1 << (len(rows).bit_length() - 1))
        chunk, rows = rows[:size], rows[size:]
        changed += connection.execute(_bulk(name, size), tuple(itertools.chain.from_iterable(chunk))).rowcount
    return changed


def _execute(connection: sqlite3.Connection, group: list[_Operation]) -> None:
    """Executes and commits what was asked at the same time: claims, then the rest in order, then answers."""
    claims = [operation for operation in group if operation.bulk == "claim"]
    answers = [operation for operation in group if operation.bulk == "answer"]
    connection.execute("BEGIN IMMEDIATE")
    if claims and _execute_bulk(connection, "claim", [claim.row for claim in claims]) != len(claims):
        # There is a repeat among them; one by one it is seen which.
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        for operation in claims:
            _apply(connection, operation)
    for operation in group:
        if not operation.bulk:
            _apply(connection, operation)
    _execute_bulk(connection, "answer", [answer.row for answer in answers])
    connection.execute("COMMIT")


def _apply(connection: sqlite3.Connection, operation: _Operation) -> None:
    try:
        if operation.single:
            operation.result = operation.run(connection)
            return
        connection.execute("SAVEPOINT operation")
        operation.result = operation.run(connection)
        connection.execute("RELEASE operation")
    except sqlite3.OperationalError:
        # A failing disk concerns the whole group.
        raise
    except Exception as error:  # noqa: BLE001
        operation.error = error
        if not operation.single:
            connection.execute("ROLLBACK TO operation")
            connection.execute("RELEASE operation")


def _resolve(group: Iterable[_Operation]) -> None:
    for operation in group:
        if operation.then is not None:
            try:
                operation.then(operation.result, operation.error)
            except Exception:  # noqa: BLE001
                # One that fails must not keep the rest of its group waiting; the loop logs it.
                loop = asyncio.get_running_loop()
                loop.call_exception_handler(
                    {"message": "a result of the ledger was not taken", "exception": sys.exception()}
                )


def _ledger_error(error: BaseException) -> LedgerError:
    return error if isinstance(error, LedgerError) else LedgerError(f"nothing was stored: {error}")
