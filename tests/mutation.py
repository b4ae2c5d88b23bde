"""Mutation test of the verifier and the ledger: `python -m tests.mutation [signature|ledger] [--from N] [--to N]`.

Makes one small change at a time to the source, runs the unit tests of that module against it and lists the changes
that no test notices. `EQUIVALENT` holds those that change nothing that can be observed, each with the reason; its
keys are made of the source's text, so that they outlive other changes of the module.

Each mutant is met in a fork of this process, which has imported what is slow to import and nothing of the module.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "port_webhook_handlers"
# Imported before the forks; nothing here may import a module that is changed.
SLOW = (
    "asyncio", "cryptography.exceptions", "cryptography.hazmat.primitives.ciphers.aead", "hypothesis.internal.entropy",
    "hypothesis.strategies", "pytest", "sqlite3",
)  # fmt: skip
PLUGINS = (
    "cacheprovider",
    "xdist",
    "xdist.looponfail",
    "hypothesispytest",
    "benchmark",
    "asyncio",
)
# A mutant that hangs is noticed, too: it gets this many times what the unchanged module takes.
PATIENCE = 3.0
LEAST_PATIENCE_SECONDS = 8.0
# More than there are processors, because mutants that hang only wait.
JOBS = 4
# Where waiting for the disk takes no time: most of a ledger's tests is that.
MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Target:
    """A module and the tests that should notice every change to it."""

    module: str
    tests: str

    @property
    def path(self) -> Path:
        return ROOT / "handlers" / PACKAGE / f"{self.module.replace('.', '/')}.py"


TARGETS = {
    "signature": Target("port.signature", "tests/unit/port/test_signature.py"),
    "ledger": Target("runtime.ledger", "tests/unit/runtime/test_ledger.py"),
}

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip

EQUIVALENT = {
    "signature VerificationError.__init__: super().__init__(reason): super().__init__(reason) removed": (
        "an exception keeps its arguments anyway"
    ),
    "ledger module: _GROUP_ROWS: Final = 256: 256 plus one": ("a bound of throughput alone"),
    "ledger module: _BULK_ROWS: Final = 64: 64 plus one": ("a bound of throughput alone"),
    "ledger _nonces: for nonce, in struct.iter_unpack(f'{_NONCE_BYTES}s', os.urandom(_NONCE_BYTES * 256)):: 256 plus one": (
        "how many nonces are drawn at once"
    ),
    "ledger Ledger.open: connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5, c: 5 plus one": (
        "how long another process's lock is waited for"
    ),
    "ledger Ledger.open: connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=5, c: 256 plus one": (
        "a size of a cache"
    ),
    "ledger module: _CHECKPOINT_ROWS: Final = 4000: 4000 plus one": ("a bound of throughput alone"),
    "ledger Ledger.__init__: self._answers_from = 0: 0 plus one": ("rows are counted from one"),
    "ledger Ledger.open: connection.execute('PRAGMA wal_autocheckpoint=0'): connection.execute('PRAGMA wal_autocheckpoint=0') removed": (
        "who copies the log: the writer or the thread beside it"
    ),
    "ledger Ledger._put_unwatched: self._put(_Operation(run, None, True)): True negated": (
        "a savepoint around a single statement"
    ),
    "ledger Ledger.reported.operation: if note:: note if True": ("a blank line is not a note"),
    "ledger Ledger.unreported: return await self._submit(operation, single=False): False negated": (
        "its second statement only reads"
    ),
    "ledger Ledger.purge.operation: limits = (_first_since(connection, claims_before, 0), claims_before): 0 plus one": (
        "rows are counted from one"
    ),
    "ledger Ledger._check_key: if row is None:: row is None if True": ("the same text is sealed anew"),
    "ledger Ledger._submit: async def _submit(self, run: Callable[[sqlite3.Connection], T], *, single: bool=True) -> T:: True negated": (
        "a savepoint around a single statement"
    ),
    "ledger Ledger._group: self._loop.call_soon(self._gather, 0, self._loop.time() + _GROUP_SECONDS): 0 plus one": (
        "how long a group waits for more"
    ),
    "ledger Ledger._group: if not group.count:: not group.count if True": (
        "further looks at a group that is handed over already"
    ),
    "ledger Ledger._gather: if self._handed_over and seen < count < _GROUP_ROWS and (self._loop.time() < until):: seen < count < _GROUP_ROWS [0] to LtE": (
        "how long a group waits for more"
    ),
    "ledger Ledger._gather: if self._handed_over and seen < count < _GROUP_ROWS and (self._loop.time() < until):: seen < count < _GROUP_ROWS [1] to LtE": (
        "how long a group waits for more"
    ),
    "ledger Ledger._gather: if self._handed_over and seen < count < _GROUP_ROWS and (self._loop.time() < until):: self._loop.time() < until [0] to LtE": (
        "how long a group waits for more"
    ),
    "ledger Ledger._hand_over: if not self._submitted.count:: not self._submitted.count if False": (
        "a group of nothing"
    ),
    "ledger Ledger._gather: if self._handed_over and seen < count < _GROUP_ROWS and (self._loop.time() < until):: self._handed_over and seen < count < _GROUP_ROWS and (self._loop.time() < until) if False": (
        "how long a group waits for more"
    ),
    "ledger Ledger._work: while group.count < _GROUP_ROWS:: group.count < _GROUP_ROWS [0] to LtE": (
        "how long a group waits for more"
    ),
    "ledger Ledger._checkpoint: connection.execute('PRAGMA wal_checkpoint(PASSIVE)'): connection.execute('PRAGMA wal_checkpoint(PASSIVE)') removed": (
        "the thread and the writer each copy what the other left; which of them shows only in time"
    ),
    "ledger Ledger._checkpoint: self._unchecked = 0: 0 plus one": ("one row earlier"),
    "ledger Ledger._checkpoint: self._checkpointer = threading.Thread(target=self._copy, name='ledger-copy', daemon=True): True negated": (
        "it is waited for at the end"
    ),
    "ledger Ledger._copy: connection = sqlite3.connect(self._path, isolation_level=None, timeout=5): 5 plus one": (
        "how long another process's lock is waited for"
    ),
    "ledger Ledger._copy: connection.execute('PRAGMA wal_checkpoint(PASSIVE)'): connection.execute('PRAGMA wal_checkpoint(PASSIVE)') removed": (
        "the thread and the writer each copy what the other left; which of them shows only in time"
    ),
    "ledger Ledger._copy: connection.close(): connection.close() removed": (
        "a connection that nobody holds is closed"
    ),
    "ledger _first_since: if row is None:: row is None if True": (
        "more rows are looked at; the conditions on their times decide"
    ),
    "ledger _Group.__init__: self.rows = 0: 0 plus one": ("set anew when the group is handed over"),
    "ledger Ledger._sync: if group.error is not None and (not (group.stored or group.stored_bulks)):: group.error is not None and (not (group.stored or group.stored_bulks)) if False": (
        "one fdatasync more"
    ),
    "ledger _execute: if claims:: claims if True": ("a savepoint around nothing"),
    "ledger _apply: if operation.single:: operation.single if False": (
        "a savepoint around a single statement"
    ),
    "ledger _claim_rows: connection.execute('RELEASE claims'): connection.execute('RELEASE claims') removed": (
        "the commit releases it"
    ),
    "ledger _apply: connection.execute('RELEASE operation'): connection.execute('RELEASE operation') removed": (
        "the commit releases it"
    ),
    "ledger _apply: connection.execute('RELEASE operation'): connection.execute('RELEASE operation') removed (2)": (
        "the commit releases it"
    ),
    "ledger Ledger._enter: if connection.execute('SELECT 1 FROM owners').fetchone() is None:: connection.execute('SELECT 1 FROM owners').fetchone() is None if True": (
        "those that are entered already stay as they are"
    ),
    "ledger _execute: for claim, new in zip(claims, _claim_rows(connection, [claim.row for claim in claims]), strict=True): True negated": (
        "both have one item for each claim"
    ),
    "ledger Ledger._sync: lost += [(row[0],) for bulk in bulks for row, new in zip(bulk.rows, bulk.result or (), strict=True) : True negated": (
        "both have one item for each claim"
    ),
    "ledger Ledger._written: if len(rows) <= _BULK_ROWS:: len(rows) <= _BULK_ROWS [0] to Lt": (
        "a transaction around a single statement"
    ),
    "ledger Ledger._written: if len(rows) <= _BULK_ROWS:: len(rows) <= _BULK_ROWS if False": (
        "a transaction around a single statement"
    ),
}


class _Mutator(ast.NodeTransformer):
    """Makes the change with one number; counts all that could be made."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.count = 0
        self.made = ""
        self.line = 0
        self.skipped: Counter[str] = Counter()
        self._scope: list[str] = []
        self._statements: list[str] = []
        self._seen: Counter[str] = Counter()

    def visit(self, node: ast.AST) -> ast.AST:
        if not isinstance(node, ast.stmt):
            return super().visit(node)  # type: ignore[no-any-return]
        self._statements.append(_first_line(node))
        try:
            return super().visit(node)  # type: ignore[no-any-return]
        finally:
            self._statements.pop()

    def _hit(self, node: ast.AST, what: str) -> bool:
        text = f"{'.'.join(self._scope) or 'module'}: {self._statements[-1]}: {_first_line(node)} {what}"
        self._seen[text] += 1
        self.count += 1
        if self.count - 1 != self.wanted:
            return False
        self.line = getattr(node, "lineno", 0)
        self.made = text if self._seen[text] == 1 else f"{text} ({self._seen[text]})"
        return True

    def _visit_scope(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        flags = sum(isinstance(item, ast.Constant) for each in node.decorator_list for item in ast.walk(each))
        if flags:
            self.skipped["flags of dataclasses, which say what cannot be done by mistake"] += flags
        self._scope.append(node.name)
        node.body = [self.visit(item) for item in node.body]  # type: ignore[misc]
        if not isinstance(node, ast.ClassDef):
            node.args = self.visit(node.args)  # type: ignore[assignment]
        self._scope.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._visit_scope(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._visit_scope(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._visit_scope(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)  # type: ignore[assignment]
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        changed = node
        for index, operator in enumerate(node.ops):
            other = _COMPARISONS.get(type(operator))
            if other is not None and self._hit(node, f"[{index}] to {other.__name__}"):
                operators = [*node.ops[:index], other(), *node.ops[index + 1 :]]
                changed = ast.Compare(node.left, operators, node.comparators)
        return changed

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        if self._hit(node, "and/or"):
            return ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        return node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) and self._hit(node, "without not"):
            return node.operand
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        self.generic_visit(node)
        for value in (True, False):
            if self._hit(node.test, f"if {value}"):
                return ast.If(ast.Constant(value), node.body, node.orelse)
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        if self._hit(node, "branches exchanged"):
            return ast.IfExp(node.test, node.orelse, node.body)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if type(node.value) is int and self._hit(node, "plus one"):
            return ast.Constant(node.value + 1)
        if type(node.value) is bool and self._hit(node, "negated"):
            return ast.Constant(not node.value)
        return node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        if self._hit(node, "plain assignment"):
            return ast.Assign([node.target], node.value)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):
            self.skipped["docstrings"] += 1
            return node
        self.generic_visit(node)
        return ast.Pass() if self._hit(node, "removed") else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        self.generic_visit(node)
        return ast.Pass() if self._hit(node, "removed") else node


def _first_line(node: ast.AST) -> str:
    lines = [line for line in ast.unparse(node).splitlines() if not line.startswith("@")]
    return lines[0][:100]


@dataclass(frozen=True)
class Mutant:
    """One change: its number, where and what it is, and the whole changed source."""

    number: int
    line: int
    made: str
    source: str


def mutants(source: str) -> tuple[list[Mutant], Counter[str]]:
    """Every mutant of a source, and how many places were left alone for which reason."""
    tree = ast.parse(source)
    found: list[Mutant] = []
    while True:
        mutator = _Mutator(len(found))
        changed = mutator.visit(copy.deepcopy(tree))
        if not mutator.made:
            return found, mutator.skipped
        text = ast.unparse(ast.fix_missing_locations(changed))
        found.append(Mutant(len(found), mutator.line, mutator.made, text))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the changed source in place of the module."""

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.util.spec_from_file_location(name, self._path) if name == self._name else None


def _test(target: Target, source: str, folder: Path) -> int:
    """Runs the tests in a fork; returns its process id. It exits with 0 if all pass."""
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setsid()
        import pytest

        folder.mkdir()
        with (folder / "output").open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        changed = folder / "changed.py"
        changed.write_text(source)
        sys.meta_path.insert(0, _Finder(f"{PACKAGE}.{target.module}", changed))
        options = ["-q", "-x", "--tb=line", "--assert=plain", f"--basetemp={folder / 'tests'}"]
        disabled = [f"-pno:{name}" for name in PLUGINS]
        code = int(pytest.main([*options, *disabled, str(ROOT / target.tests)]))
    finally:
        # Threads that a mutant left waiting must not keep the fork.
        os._exit(code)


def survivors(target: Target, chosen: Sequence[Mutant], folder: Path, seconds: float) -> Iterator[Mutant]:
    """Those mutants that no test notices within the time."""
    waiting = list(reversed(chosen))
    running: dict[int, tuple[Mutant, Path, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < JOBS:
                mutant = waiting.pop()
                place = folder / str(mutant.number)
                process = _test(target, mutant.source, place)
                running[process] = (mutant, place, time.monotonic() + seconds)
            for process, (mutant, place, until) in list(running.items()):
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    del running[process]
                    code = os.waitstatus_to_exitcode(status)
                    if code == 0:
                        yield mutant
                    elif code in (4, 5):
                        # Not a failed test, but none at all.
                        raise RuntimeError((place / "output").read_text())
                    if mutant.number >= 0:
                        shutil.rmtree(place, ignore_errors=True)
                elif time.monotonic() > until:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process, signal.SIGKILL)
            time.sleep(0.01)
    finally:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)


def _prepare() -> None:
    os.nice(5)
    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    for name in SLOW:
        importlib.import_module(name)
    from hypothesis import settings

    settings.register_profile("mutation", max_examples=10, derandomize=True, database=None, deadline=None)
    settings.load_profile("mutation")


def main() -> int:
    """Lists survivors; fails if one of them is not known to be equivalent."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("target", nargs="*", help=f"any of {', '.join(TARGETS)}; default all")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--to", dest="last", type=int, help="number of the last mutant")
    parser.add_argument("--list", action="store_true", help="print the mutants and run nothing")
    arguments = parser.parse_args()
    _prepare()
    failed = False
    total = noticed = equivalent = 0
    for name in arguments.target or TARGETS:
        target = TARGETS[name]
        source = target.path.read_text()
        found, skipped = mutants(source)
        for reason, count in skipped.items():
            print(f"{name}: {count} left alone: {reason}")
        last = len(found) - 1 if arguments.last is None else arguments.last
        chosen = found[arguments.first : last + 1]
        if arguments.list:
            print(
                *(f"{name} #{mutant.number} line {mutant.line}: {mutant.made}" for mutant in chosen), sep="\n"
            )
            continue
        place = MEMORY if os.access(MEMORY, os.W_OK) else None
        with tempfile.TemporaryDirectory(prefix="port-webhook-mutation-", dir=place) as folder:
            begun = time.monotonic()
            if not list(survivors(target, [Mutant(-1, 0, "", source)], Path(folder), 120)):
                print((Path(folder) / "-1" / "output").read_text())
                print(f"{name}: the tests fail without any change")
                return 1
            patience = max(LEAST_PATIENCE_SECONDS, PATIENCE * (time.monotonic() - begun))
            for mutant in survivors(target, chosen, Path(folder), patience):
                reason = EQUIVALENT.get(f"{name} {mutant.made}", "")
                failed = failed or not reason
                equivalent += bool(reason)
                noticed -= 1
                what = reason or "NOT NOTICED"
                print(f"{name} #{mutant.number} line {mutant.line}: {mutant.made}: {what}", flush=True)
        unknown = {key for key in EQUIVALENT if key.startswith(f"{name} ")}
        unknown -= {f"{name} {mutant.made}" for mutant in found}
        for key in sorted(unknown):
            print(f"the list of equivalent mutants has one that does not exist: {key}")
            failed = True
        total += len(chosen)
        noticed += len(chosen)
    print(f"{total} mutants, {noticed} noticed, {equivalent} equivalent")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
