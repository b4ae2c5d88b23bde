"""State in SQLite.

Used from the event loop's thread only: a statement takes microseconds, and between two awaits nobody else
sees a half-made change. WAL with `synchronous=NORMAL` survives the end of the process, not of the machine.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from port_webhook_localport.web import compact

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS blueprints (identifier TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS entities (
    blueprint TEXT NOT NULL, identifier TEXT NOT NULL, doc TEXT NOT NULL, PRIMARY KEY (blueprint, identifier));
CREATE TABLE IF NOT EXISTS relations (
    blueprint TEXT NOT NULL, identifier TEXT NOT NULL, relation TEXT NOT NULL,
    target_blueprint TEXT NOT NULL, target TEXT NOT NULL,
    PRIMARY KEY (blueprint, identifier, relation, target)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS relations_target ON relations (target_blueprint, target);
CREATE TABLE IF NOT EXISTS timers (
    blueprint TEXT NOT NULL, identifier TEXT NOT NULL, property TEXT NOT NULL, due REAL NOT NULL,
    PRIMARY KEY (blueprint, identifier, property)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS timers_due ON timers (due);
CREATE TABLE IF NOT EXISTS actions (identifier TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS actions_trigger ON actions (json_extract(doc, '$.trigger.type'));
CREATE TABLE IF NOT EXISTS permissions (action TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS webhooks (identifier TEXT PRIMARY KEY, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, action TEXT NOT NULL,
    status TEXT NOT NULL, delivery TEXT NOT NULL, doc TEXT NOT NULL, internal TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS runs_action ON runs (action);
CREATE INDEX IF NOT EXISTS runs_delivery ON runs (delivery) WHERE delivery <> 'none';
CREATE TABLE IF NOT EXISTS run_logs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT NOT NULL, doc TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS run_logs_run ON run_logs (run);
CREATE TABLE IF NOT EXISTS changes (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, doc TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS migrations (id TEXT PRIMARY KEY, doc TEXT NOT NULL);
"""
_TABLES = [
    "meta",
    "blueprints",
    "entities",
    "relations",
    "timers",
    "actions",
    "permissions",
    "webhooks",
    "secrets",
    "runs",
    "run_logs",
    "changes",
    "migrations",
]


class Store:
    """One SQLite database; every document is JSON text."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=512)
        path.chmod(0o600)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA secure_delete = ON")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; nested use joins the outer one."""
        if self._connection.in_transaction:
            yield
            return
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Part of a transaction that an error undoes without undoing the rest."""
        self._connection.execute("SAVEPOINT part")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK TO part")
            raise
        finally:
            self._connection.execute("RELEASE part")

    def run(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Executes one statement; returns the number of changed rows."""
        return self._connection.execute(sql, parameters).rowcount

    def rows(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, parameters).fetchall()

    def row(self, sql: str, parameters: Sequence[object] = ()) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._connection.execute(sql, parameters).fetchone()
        return found

    def document(self, sql: str, parameters: Sequence[object] = ()) -> dict[str, Any] | None:
        """First column of the first row, parsed."""
        found = self.row(sql, parameters)
        return None if found is None else json.loads(found[0])

    def documents(self, sql: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """First column of every row, parsed."""
        return [json.loads(row[0]) for row in self.rows(sql, parameters)]

    def put(self, table: str, key: str, document: dict[str, Any]) -> None:
        """Inserts or replaces a document of a table whose first column is its only key."""
        column = {"permissions": "action", "migrations": "id"}.get(table, "identifier")
        self.run(
            f"INSERT INTO {table} ({column}, doc) VALUES (?, ?) "  # noqa: S608 - names of our own tables
            f"ON CONFLICT ({column}) DO UPDATE SET doc = excluded.doc",
            (key, compact(document)),
        )

    def meta(self, name: str, default: Any = None) -> Any:
        found = self.row("SELECT value FROM meta WHERE name = ?", (name,))
        return default if found is None else json.loads(found[0])

    def set_meta(self, name: str, value: Any) -> None:
        self.run("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", (name, compact(value)))

    def clear(self) -> None:
        """Forgets everything."""
        with self.transaction():
            for table in _TABLES:
                self.run(f"DELETE FROM {table}")  # noqa: S608 - names of our own tables
