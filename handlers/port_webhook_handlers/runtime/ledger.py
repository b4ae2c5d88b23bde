"""The durable record of runs, in SQLite.

One connection writes in groups, so that many claims share one `fdatasync`; a caller gets its result only after that.
What is asked within one turn of the event loop is one group. Its claims are one statement, and so are its answers.
These two are executed where they are asked for, since waking a thread and getting the interpreter back from it costs
more than they do; a thread waits for the disk and executes everything else. An answer does not wait for the disk: its
claim is there, so a loss of power can take the answer to a repeat within that moment, never the knowledge that the run
was started. Bodies, answers and reports are encrypted at rest.
Several server processes may use one ledger at a time, as during an exchange of servers: whatever must happen
once is a conditional statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import hmac
import itertools
import json
import os
import queue
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from port_webhook_handlers.port.compact_json import compact
from port_webhook_handlers.runtime.claims import Answer, Claim, LedgerError, Report

T = TypeVar("T")

_GROUP_ROWS: Final = 256
_GROUP_SECONDS: Final = 0.002
_BULK_ROWS: Final = 64
# As many as an agent has in flight: some milliseconds of the event loop, in which the writer would have as much to do.
_ROWS_HERE: Final = 1_024
_CHECKPOINT_ROWS: Final = 4_000
_NONCE_BYTES: Final = 12
_KEY_CHECK: Final = "key"
# macOS has only the other one.
_fdatasync: Final = getattr(os, "fdatasync", os.fsync)

# Rows lie in the order of their arrival: by run id, which is random, every claim would write a page of its own. A
# synchronous run is in no index but that of run ids, because each one costs as much as the row; what must be looked
# for among them is found through their owners, or where arrival puts it. SQLite takes the index of the others only for
# queries that repeat its condition word for word.
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
CREATE INDEX IF NOT EXISTS runs_waiting ON runs(state, accepted_at) WHERE mode = 'async' AND state != 'done';
DROP INDEX IF EXISTS runs_open;
DROP INDEX IF EXISTS runs_done;
CREATE TABLE IF NOT EXISTS owners (name TEXT PRIMARY KEY) WITHOUT ROWID;
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


def _nonces() -> Iterator[bytes]:
    # Every system call gives other threads the interpreter, which costs more than the call.
    while True:
        for (nonce,) in struct.iter_unpack(f"{_NONCE_BYTES}s", os.urandom(_NONCE_BYTES * 256)):
            yield nonce


class _Sealer:
    """AES-256-GCM, bound to the run, so that rows cannot be swapped."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        # Keys of its own: nonces of the secrets store and of the ledger never meet under one key.
        self._aead = AESGCM(hmac.digest(key, b"port-webhook ledger 1", "sha256"))
        mark_key = hmac.digest(key, b"port-webhook ledger marks 1", "sha256")
        self._marker = hashlib.blake2b(key=mark_key, digest_size=32)
        self._nonces = _nonces()

    def seal(self, run_id: str, plain: bytes) -> bytes:
        nonce = next(self._nonces)
        return nonce + self._aead.encrypt(nonce, plain, run_id.encode())

    def mark(self, body_hash: bytes) -> bytes:
        """A hash that only this key can compare: from a plain one, short inputs could be guessed."""
        marker = self._marker.copy()
        marker.update(body_hash)
        return marker.digest()

    def open(self, run_id: str, sealed: bytes) -> bytes:
        return self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], run_id.encode())


Then = Callable[[Any, BaseException | None], None]


@dataclass(slots=True)
class _Operation:
    run: Callable[[sqlite3.Connection], Any]
    then: Then | None
    single: bool
    result: Any = None
    error: BaseException | None = None


@dataclass(slots=True)
class _Claim:
    """A claim; its result is None, or the row of the run that has the place."""

    row: tuple[Any, ...]
    then: Callable[[Any, LedgerError | None], None]
    result: Any = None


@dataclass(slots=True)
class _Bulk:
    """Many claims at once; its result says of each whether it was the first."""

    rows: list[tuple[Any, ...]]
    then: Then
    result: list[bool] | None = None


@dataclass(slots=True)
class _Step:
    """A step of an asynchronous run: its start, its end or its last report."""

    run_id: str
    then: Then
    final: bytes = b""
    result: Any = None


class _Group:
    """What is committed together.

    Attributes:
        parts: how many groups it is made of.
        count: how much is in it.
        rows: how much was written since the group before.
        stored, stored_bulks: claims that only wait for the disk.
        error: why the rest was not stored.
        lost: why nothing of it is on disk.
    """

    __slots__ = (
        "answers", "bulks", "claims", "count", "ends", "error", "lost", "others", "parts", "reported", "rows", "starts",
        "stored", "stored_bulks",
    )  # fmt: skip

    def __init__(self) -> None:
        self.parts = 1
        self.count = 0
        self.rows = 0
        self.stored: list[_Claim] = []
        self.stored_bulks: list[_Bulk] = []
        self.bulks: list[_Bulk] = []
        self.lost: LedgerError | None = None
        self.claims: list[_Claim] = []
        self.answers: list[tuple[tuple[Any, ...], Callable[[LedgerError | None], None]]] = []
        self.others: list[_Operation] = []
        self.starts: list[_Step] = []
        self.ends: list[_Step] = []
        self.reported: list[_Step] = []
        self.error: LedgerError | None = None

    @property
    def is_stored(self) -> bool:
        """Whether all of it only waits for the disk."""
        return self.count == len(self.stored) + sum(len(bulk.rows) for bulk in self.stored_bulks)

    def add(self, following: _Group) -> None:
        """Takes in what was asked later."""
        self.parts += following.parts
        self.count += following.count
        self.rows += following.rows
        self.stored += following.stored
        self.stored_bulks += following.stored_bulks
        self.bulks += following.bulks
        self.claims += following.claims
        self.answers += following.answers
        self.others += following.others
        self.starts += following.starts
        self.ends += following.ends
        self.reported += following.reported


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
        self._queue: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._submitted = _Group()
        # Groups that the writer has not answered yet.
        self._handed_over = 0
        # Claims of one mode that were the first look all alike.
        self._new = {
            "sync": Claim(True, True, "running", owner, None, 0),
            "async": Claim(True, True, "queued", None, None, 0),
        }
        # Nobody uses the connection without it; the event loop does not wait for it.
        self._sql = threading.Lock()
        self._unsynced = 0
        self._answers_from = 0
        self._checkpointer: threading.Thread | None = None
        self._unchecked = 0
        self._commits = 0
        self._rows = 0
        self._thread: threading.Thread | None = None
        self._closed = True

    def open(self) -> None:
        """Opens the database and starts the writer.

        Raises:
            LedgerError: it cannot be opened or is not a ledger.
        """
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        connection: sqlite3.Connection | None = None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(
                self._path, isolation_level=None, check_same_thread=False, timeout=5, cached_statements=256
            )
            connection.execute("PRAGMA journal_mode=WAL")
            # A commit survives the process; what makes it survive a loss of power is in `_sync`.
            connection.execute("PRAGMA synchronous=NORMAL")
            # Another thread does it: nobody's claim should wait for it.
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.executescript(_SCHEMA)
            self._enter(connection)
            self._check_key(connection)
            self._log_file = os.open(f"{self._path}-wal", os.O_RDWR)
        except (OSError, sqlite3.Error) as error:
            if connection is not None:
                connection.close()
            raise LedgerError(
                f"ledger {self._path}: cannot be opened ({error}); move it away to start with an empty one"
            ) from error
        self._connection = connection
        self._thread = threading.Thread(target=self._work, args=(connection,), name="ledger", daemon=True)
        self._closed = False
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
        if failure is None and refusal is None and mode != "probe":
            claimed: asyncio.Future[Claim] = self._future()
            self.claim_soon(run_id, route, mode, body_hash, payload, _into(claimed))
            return await claimed
        now = self._clock()
        state, owner = ("reporting" if failure else "done"), None if refusal is None else self.owner
        answer = None if refusal is None else self._seal_json(run_id, [refusal.status, refusal.body])
        row = (run_id, route, mode, self._sealer.mark(body_hash), state, owner, None, answer, now, now)
        report = None if failure is None else self._seal_json(run_id, failure)

        def operation(connection: sqlite3.Connection) -> Any:
            new = connection.execute(_claim_once(), row).rowcount == 1
            if new and report is not None:
                connection.execute(
                    "INSERT INTO reports(run_id, kind, body) VALUES(?,'final',?)", (run_id, report)
                )
            elif new and mode == "probe":
                # The probe's whole work: a second execution would be seen.
                connection.execute("UPDATE runs SET executions = executions + 1 WHERE run_id = ?", (run_id,))
            return new, *connection.execute(_LOOKUP, (run_id,)).fetchone()

        found = await self._submit(operation, single=False)
        return self._claim(run_id, route, body_hash, *found)

    def claim_soon(
        self,
        run_id: str,
        route: str,
        mode: str,
        body_hash: bytes,
        payload: bytes,
        then: Callable[[Claim | None, LedgerError | None], None],
    ) -> None:
        """As `claim` of a run that is to be executed, without a coroutine.

        Args:
            run_id, route, body_hash, payload: as in `claim`.
            mode: `async` or `sync`.
            then: called with the claim when it is on disk, or with the error; must not raise.
        """
        if self._closed:
            then(None, LedgerError("the ledger is closed"))
            return
        now = self._clock()
        new = self._new[mode]
        sealed = self._sealer.seal(run_id, payload) if mode == "async" else None
        mark = self._sealer.mark(body_hash)

        def claimed(found: Any, error: LedgerError | None) -> None:
            if error is not None:
                then(None, error)
            elif found is None:
                then(new, None)
            else:
                then(self._claim(run_id, route, body_hash, False, *found), None)

        row = (run_id, route, mode, mark, new.state, new.owner, sealed, None, now, now)
        self._group().claims.append(_Claim(row, claimed))

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
        seal, mark = self._sealer.seal, self._sealer.mark
        rows = [
            (run_id, route, "async", mark(body_hash), "queued", None, seal(run_id, payload), None, now, now)
            for run_id, route, body_hash, payload in claims
        ]
        claimed: asyncio.Future[list[bool]] = self._future()
        self._group(len(rows)).bulks.append(_Bulk(rows, _into(claimed)))
        return await claimed

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
        answered: asyncio.Future[None] = self._future()
        then = _into(answered)
        text = compact(answer.body).encode()
        self.answer_soon(run_id, answer.status, text, lambda error: then(None, error))
        await answered

    def answer_soon(
        self, run_id: str, status: int, text: bytes, then: Callable[[LedgerError | None], None]
    ) -> None:
        """As `answer`, without a coroutine.

        Args:
            run_id: Port's run id.
            status: HTTP status.
            text: the answer's body, JSON.
            then: called when the answer outlives this process, or with the error; must not raise.
        """
        if self._closed:
            then(LedgerError("the ledger is closed"))
            return
        row = (run_id, self._sealer.seal(run_id, b"[%d,%b]" % (status, text)), self._clock())
        self._group().answers.append((row, then))

    # Execution

    async def queued(self, limit: int = 1000) -> list[tuple[str, str]]:
        """Run id and route of accepted runs that may start now, the oldest first."""
        return await self._submit(
            lambda c: c.execute(
                "SELECT run_id, route FROM runs WHERE mode='async' AND state!='done' AND state='queued'"
                " AND not_before<=? ORDER BY accepted_at LIMIT ?",
                (self._clock(), limit),
            ).fetchall()
        )

    async def start(self, run_id: str) -> StartedRun | None:
        """Marks a run as running; None if it is not waiting any more. On disk before it returns."""
        row = await self._step("starts", run_id)
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
        return bool(await self._step("ends", run_id, self._seal_json(run_id, failure_or_success)))

    async def _step(
        self, kind: Literal["starts", "ends", "reported"], run_id: str, final: bytes = b""
    ) -> Any:
        future = self._future()
        steps: list[_Step] = getattr(self._group(), kind)
        steps.append(_Step(run_id, _into(future), final))
        return await future

    # Reports

    def report(self, run_id: str, kind: str, body: dict[str, Any]) -> None:
        """Adds something to tell Port; stored before anything that is submitted later.

        A loss is tolerated where the run's end is not: nobody waits for it.
        """
        sealed = self._seal_json(run_id, body)
        insert = "INSERT INTO reports(run_id, kind, body) VALUES(?,?,?)"
        self._put_unwatched(lambda c: c.execute(insert, (run_id, kind, sealed)).rowcount)

    def _put_unwatched(self, run: Callable[[sqlite3.Connection], int]) -> None:
        if self._closed:
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

        await self._step("reported", run_id)

    async def unreported(self) -> list[str]:
        """Runs of this process, or of none, that have something to report; ended ones become this process's."""

        def operation(connection: sqlite3.Connection) -> list[str]:
            connection.execute(
                "UPDATE runs SET owner=? WHERE mode='async' AND state!='done' AND state='reporting' AND owner IS NULL",
                (self.owner,),
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
            found: list[OpenRun] = []
            for (owner,) in connection.execute("SELECT name FROM owners").fetchall():
                if owner == self.owner or is_alive(owner):
                    continue
                # Reads the whole table, until nothing of that process is left.
                runs = [
                    OpenRun(*row)
                    for row in connection.execute(
                        "SELECT run_id, route, mode, state, attempt, owner, accepted_at FROM runs"
                        " WHERE state IN ('running','reporting') AND owner=?",
                        (owner,),
                    )
                ]
                found += runs
                if not runs:
                    connection.execute("DELETE FROM owners WHERE name=?", (owner,))
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
                    "UPDATE runs SET owner=NULL WHERE mode='async' AND state!='done' AND state='reporting' AND owner=?",
                    (self.owner,),
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
            lambda c: c.execute(
                "SELECT count(*) FROM runs WHERE mode='async' AND state!='done' AND state='queued'"
            ).fetchone()
        )
        return int(row[0])

    async def expired(self, before: float) -> list[str]:
        """Runs accepted before a time (seconds since the epoch) that Port still has not heard the end of."""
        rows = await self._submit(
            lambda c: c.execute(
                "SELECT run_id FROM runs WHERE mode='async' AND state!='done' AND state='reporting' AND accepted_at<?",
                (before,),
            ).fetchall()
        )
        return [run_id for (run_id,) in rows]

    async def purge(self, *, answers_before: float, claims_before: float) -> None:
        """Removes answers of synchronous runs, and whole claims, that ended before the given times."""

        def operation(connection: sqlite3.Connection) -> None:
            # Rows lie in the order of their arrival, so the old ones are at the beginning.
            first = self._answers_from
            last = _first_since(connection, answers_before, first)
            connection.execute(
                "UPDATE runs SET answer=NULL WHERE rowid>=? AND rowid<? AND mode='sync' AND state='done'"
                " AND answer IS NOT NULL AND updated_at<?",
                (first, last, answers_before),
            )
            (kept,) = connection.execute(
                "SELECT min(rowid) FROM runs WHERE rowid>=? AND rowid<? AND mode='sync'"
                " AND (state!='done' OR answer IS NOT NULL)",
                (first, last),
            ).fetchone()
            self._answers_from = last if kept is None else kept
            limits = (_first_since(connection, claims_before, 0), claims_before)
            connection.execute(
                "DELETE FROM reports WHERE run_id IN"
                " (SELECT run_id FROM runs WHERE rowid<? AND state='done' AND updated_at<?)",
                limits,
            )
            connection.execute("DELETE FROM runs WHERE rowid<? AND state='done' AND updated_at<?", limits)

        await self._submit(operation, single=False)

    async def gauges(self) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
        """State of the ledger as metrics."""

        def operation(connection: sqlite3.Connection) -> Any:
            states = connection.execute(
                "SELECT state, count(*) FROM runs WHERE mode='async' AND state!='done' GROUP BY state"
            ).fetchall()
            reports = connection.execute("SELECT count(*) FROM reports").fetchone()[0]
            oldest = connection.execute(
                "SELECT min(accepted_at) FROM runs WHERE mode='async' AND state!='done'"
            ).fetchone()[0]
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

    def _enter(self, connection: sqlite3.Connection) -> None:
        """Enters this process among the owners, and those that an earlier version of the ledger did not enter."""
        if connection.execute("SELECT 1 FROM owners").fetchone() is None:
            connection.execute(
                "INSERT OR IGNORE INTO owners(name) SELECT DISTINCT owner FROM runs WHERE owner IS NOT NULL"
            )
        # A server of that version may still be at work; it has no run yet perhaps, but a process for them.
        connection.execute("INSERT OR IGNORE INTO owners(name) SELECT owner FROM children")
        connection.execute("INSERT OR IGNORE INTO owners(name) VALUES(?)", (self.owner,))

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

    def _future(self) -> asyncio.Future[Any]:
        if self._closed:
            raise LedgerError("the ledger is closed")
        return self._loop.create_future()

    async def _submit(self, run: Callable[[sqlite3.Connection], T], *, single: bool = True) -> T:
        future: asyncio.Future[T] = self._future()
        self._put(_Operation(run, _into(future), single))
        return await future

    def _put(self, operation: _Operation) -> None:
        self._group().others.append(operation)

    def _group(self, count: int = 1) -> _Group:
        """The group for one thing more, or for many."""
        group = self._submitted
        if not group.count:
            self._loop.call_soon(self._gather, 0, self._loop.time() + _GROUP_SECONDS)
        group.count += count
        return group

    def _gather(self, seen: int, until: float) -> None:
        """Waits for more while the writer has something to do and each turn of the event loop brings some."""
        count = self._submitted.count
        if self._handed_over and seen < count < _GROUP_ROWS and self._loop.time() < until:
            self._loop.call_soon(self._gather, count, until)
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        if not self._submitted.count:
            return
        group, self._submitted = self._submitted, _Group()
        self._unsynced += group.count
        if not self._write_here(group):
            group.rows, self._unsynced = self._unsynced, 0
            self._handed_over += 1
            self._queue.put(group)

    def _write_here(self, group: _Group) -> bool:
        """Writes claims and answers; whether nothing else is to be done, not even to wait for the disk."""
        claims, answers, bulks = group.claims, group.answers, group.bulks
        alone = len(claims) + len(answers)
        if group.count != alone + sum(len(bulk.rows) for bulk in bulks) or alone > _BULK_ROWS:
            return False
        if not self._sql.acquire(blocking=False):
            return False
        try:
            if claims and self._written(_claims, [claim.row for claim in claims]):
                group.stored, group.claims = claims, []
            room = _ROWS_HERE
            for bulk in bulks:
                room -= len(bulk.rows)
                if room >= 0 and self._written(_claims, bulk.rows):
                    bulk.result = [True] * len(bulk.rows)
                    group.stored_bulks.append(bulk)
            group.bulks = [bulk for bulk in bulks if bulk.result is None]
            answered = bool(answers) and self._written(_answers, [row for row, _ in answers])
        finally:
            self._sql.release()
        if answered:
            self._rows += len(answers)
            group.answers, group.count = [], group.count - len(answers)
            for _, then in answers:
                _tell(then, None)
        return not group.count

    def _written(self, statement: Callable[[int], str], rows: Sequence[tuple[Any, ...]]) -> bool:
        connection = self._connection
        try:
            if len(rows) <= _BULK_ROWS:
                _in_bulk(connection, statement, rows)
                return True
            connection.execute("BEGIN IMMEDIATE")
            _in_bulk(connection, statement, rows)
            connection.execute("COMMIT")
        except sqlite3.Error:
            # A repeat among the claims, or a failing disk: the writer finds out.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return False
        return True

    def _work(self, connection: sqlite3.Connection) -> None:
        running = True
        while running and (group := self._queue.get()) is not None:
            try:
                while group.count < _GROUP_ROWS:
                    following = self._queue.get_nowait()
                    if following is None:
                        running = False
                        break
                    group.add(following)
            except queue.Empty:
                pass
            with self._sql:
                if not group.is_stored:
                    self._commit(connection, group)
                self._checkpoint(connection, group.rows)
            self._sync(connection, group)
            self._deliver(group)
        if self._checkpointer is not None:
            self._checkpointer.join()
        try:
            connection.close()
        except sqlite3.Error:
            pass
        os.close(self._log_file)

    def _commit(self, connection: sqlite3.Connection, group: _Group) -> None:
        try:
            _execute(connection, group, self.owner, self._clock())
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            group.error = LedgerError(f"nothing was stored: {error}")

    def _sync(self, connection: sqlite3.Connection, group: _Group) -> None:
        """Makes what was committed survive a loss of power, which in WAL mode is up to the log's file alone."""
        if group.error is not None and not (group.stored or group.stored_bulks):
            return
        try:
            _fdatasync(self._log_file)
        except OSError as error:
            group.lost = LedgerError(
                f"nothing was stored: {error.strerror}; the disk of {self._path} fails, look at the system's log"
            )
            # Their senders are told that nothing was stored, so nothing may be left of them. Of claims that were not
            # executed nobody knows whether they are the first with their run id.
            claims, bulks = (*group.stored, *group.claims), (*group.stored_bulks, *group.bulks)
            if group.error is not None:
                claims, bulks = (*group.stored,), (*group.stored_bulks,)
            lost = [(claim.row[0],) for claim in claims if claim.result is None]
            lost += [
                (row[0],)
                for bulk in bulks
                for row, new in zip(bulk.rows, bulk.result or (), strict=True)
                if new
            ]
            with self._sql, contextlib.suppress(sqlite3.Error):
                connection.executemany("DELETE FROM runs WHERE run_id=?", lost)

    def _checkpoint(self, connection: sqlite3.Connection, rows: int) -> None:
        """Lets the log be copied into the database once it is long, and starts it anew once that has happened."""
        self._unchecked += rows
        if self._checkpointer is not None and not self._checkpointer.is_alive():
            self._checkpointer = None
            # The little that came meanwhile; a log that is copied as a whole is begun anew.
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        elif self._checkpointer is None and self._unchecked >= _CHECKPOINT_ROWS:
            self._unchecked = 0
            self._checkpointer = threading.Thread(target=self._copy, name="ledger-copy", daemon=True)
            self._checkpointer.start()

    def _copy(self) -> None:
        # If it fails the log is longer, that is all; a full disk is met by the next commit as well.
        with contextlib.suppress(sqlite3.Error):
            connection = sqlite3.connect(self._path, isolation_level=None, timeout=5)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            finally:
                connection.close()

    def _resolve(self, group: _Group) -> None:
        self._handed_over -= group.parts
        if group.error is None and group.lost is None:
            self._commits += 1
            self._rows += group.count
        _resolve(group)

    def _deliver(self, group: _Group) -> None:
        try:
            self._loop.call_soon_threadsafe(self._resolve, group)
        except RuntimeError:
            # The loop has ended; nobody waits.
            pass


_LOOKUP: Final = "SELECT route, body_hash, state, owner, answer, executions FROM runs WHERE run_id=?"


_CLAIM: Final = (
    "INSERT INTO runs(run_id, route, mode, body_hash, state, owner, payload, answer, accepted_at, updated_at)"
    " VALUES {} {}"
)
_ANSWER: Final = (
    "UPDATE runs SET state='done', owner=NULL, answer=given.column2, updated_at=given.column3"
    " FROM (VALUES {}) AS given WHERE run_id=given.column1"
)


@functools.cache
def _claims(rows: int) -> str:
    return _CLAIM.format(",".join(["(?,?,?,?,?,?,?,?,?,?)"] * rows), "")


@functools.cache
def _claim_once() -> str:
    return _CLAIM.format("(?,?,?,?,?,?,?,?,?,?)", "ON CONFLICT DO NOTHING")


@functools.cache
def _answers(rows: int) -> str:
    return _ANSWER.format(",".join(["(?,?,?)"] * rows))


def _in_bulk(
    connection: sqlite3.Connection, statement: Callable[[int], str], rows: Sequence[tuple[Any, ...]]
) -> None:
    for start in range(0, len(rows), _BULK_ROWS):
        chunk = rows[start : start + _BULK_ROWS]
        connection.execute(statement(len(chunk)), tuple(itertools.chain.from_iterable(chunk)))


def _first_since(connection: sqlite3.Connection, since: float, start: int) -> int:
    """The row, from `start` on, before which all rows arrived before a time."""
    row = connection.execute(
        "SELECT rowid FROM runs WHERE rowid>=? AND accepted_at>=? ORDER BY rowid LIMIT 1", (start, since)
    ).fetchone()
    if row is None:
        row = connection.execute("SELECT coalesce(max(rowid), 0) + 1 FROM runs").fetchone()
    return int(row[0])


def _execute(connection: sqlite3.Connection, group: _Group, owner: str, now: float) -> None:
    """Executes and commits what was asked at the same time.

    Claims come first and answers last; reports are among the others, which come before the steps that end a run.
    """
    claims, answers = group.claims, group.answers
    connection.execute("BEGIN IMMEDIATE")
    if claims:
        for claim, new in zip(claims, _claim_rows(connection, [claim.row for claim in claims]), strict=True):
            if not new:
                claim.result = connection.execute(_LOOKUP, (claim.row[0],)).fetchone()
    for bulk in group.bulks:
        bulk.result = _claim_rows(connection, bulk.rows)
    for operation in group.others:
        _apply(connection, operation)
    for start in range(0, len(group.starts), _BULK_ROWS):
        _start(connection, owner, now, group.starts[start : start + _BULK_ROWS])
    for start in range(0, len(group.ends), _BULK_ROWS):
        _end(connection, owner, now, group.ends[start : start + _BULK_ROWS])
    for start in range(0, len(group.reported), _BULK_ROWS):
        _close(connection, now, group.reported[start : start + _BULK_ROWS])
    _in_bulk(connection, _answers, [row for row, _ in answers])
    connection.execute("COMMIT")


def _start(connection: sqlite3.Connection, owner: str, now: float, steps: Sequence[_Step]) -> None:
    ids = [step.run_id for step in steps]
    rows = connection.execute(
        _among(
            "UPDATE runs SET state='running', owner=?, attempt=attempt+1, updated_at=?"
            " WHERE run_id IN ({}) AND state='queued' RETURNING run_id, route, payload, attempt",
            len(ids),
        ),
        (owner, now, *ids),
    ).fetchall()
    started = {row[0]: row[1:] for row in rows}
    for step in steps:
        # Who asks twice gets it once.
        step.result = started.pop(step.run_id, None)


def _end(connection: sqlite3.Connection, owner: str, now: float, steps: Sequence[_Step]) -> None:
    ids = [step.run_id for step in steps]
    rows = connection.execute(
        _among(
            "UPDATE runs SET state='reporting', owner=?, payload=NULL, updated_at=?"
            " WHERE run_id IN ({}) AND state IN ('queued', 'running') RETURNING run_id",
            len(ids),
        ),
        (owner, now, *ids),
    ).fetchall()
    ended = {row[0] for row in rows}
    finals: list[str | bytes] = []
    for step in steps:
        step.result = step.run_id in ended
        if step.result:
            ended.discard(step.run_id)
            finals += (step.run_id, step.final)
    if finals:
        values = ",".join(["(?,'final',?)"] * (len(finals) // 2))
        connection.execute(f"INSERT INTO reports(run_id, kind, body) VALUES {values}", finals)  # noqa: S608


def _close(connection: sqlite3.Connection, now: float, steps: Sequence[_Step]) -> None:
    ids = [step.run_id for step in steps]
    connection.execute(_among("DELETE FROM reports WHERE run_id IN ({})", len(ids)), ids)
    connection.execute(
        _among(
            "UPDATE runs SET state='done', owner=NULL, updated_at=? WHERE run_id IN ({}) AND state='reporting'",
            len(ids),
        ),
        (now, *ids),
    )


@functools.cache
def _among(statement: str, count: int) -> str:
    return statement.format(",".join("?" * count))


def _claim_rows(connection: sqlite3.Connection, rows: Sequence[tuple[Any, ...]]) -> list[bool]:
    """Claims many places; for each, whether it was free."""
    connection.execute("SAVEPOINT claims")
    try:
        _in_bulk(connection, _claims, rows)
    except sqlite3.IntegrityError:
        # There is a repeat among them; one by one it is seen which.
        connection.execute("ROLLBACK TO claims")
        free = [connection.execute(_claim_once(), row).rowcount == 1 for row in rows]
    else:
        free = [True] * len(rows)
    connection.execute("RELEASE claims")
    return free


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


def _resolve(group: _Group) -> None:
    for claim in group.stored:
        _tell(claim.then, claim.result, group.lost)
    error = group.error or group.lost
    for claim in group.claims:
        _tell(claim.then, claim.result, error)
    for bulk in group.stored_bulks:
        _tell(bulk.then, bulk.result, group.lost)
    for bulk in group.bulks:
        _tell(bulk.then, bulk.result, error)
    for _, then in group.answers:
        _tell(then, error)
    for step in (*group.starts, *group.ends, *group.reported):
        _tell(step.then, step.result, error)
    for operation in group.others:
        if operation.then is not None:
            _tell(operation.then, operation.result, error or operation.error)


def _tell(then: Callable[..., None], *result: Any) -> None:
    try:
        then(*result)
    except Exception:  # noqa: BLE001
        # One that fails must not keep the rest of its group waiting; the loop logs it.
        loop = asyncio.get_running_loop()
        loop.call_exception_handler(
            {"message": "a result of the ledger was not taken", "exception": sys.exception()}
        )


def _into(future: asyncio.Future[Any]) -> Callable[[Any, BaseException | None], None]:
    def then(result: Any, error: BaseException | None) -> None:
        if future.done():
            # Nobody waits for it any more.
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    return then
