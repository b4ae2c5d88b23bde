"""Mutation test of the verifier and the ledger: `python -m tests.mutation [signature|ledger] [--from N]`.

Makes one small change at a time to the source, runs the unit tests of that module against it and lists the changes
that no test notices. `EQUIVALENT` holds those that change nothing that can be observed, each with the reason.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "handlers" / "port_webhook_handlers"


@dataclass(frozen=True)
class Target:
    """A module and the tests that should notice every change to it."""

    module: str
    tests: tuple[str, ...]


TARGETS = {
    "signature": Target(
        "port/signature.py", ("tests/unit/port/test_signature.py", "tests/contract/test_known_defects.py")
    ),
    "ledger": Target("runtime/ledger.py", ("tests/unit/runtime/test_ledger.py",)),
}

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip

EQUIVALENT = {
    "signature 'super().__init__(reason)': removed": "an exception keeps its arguments anyway",
}


class _Mutator(ast.NodeTransformer):
    """Makes the change with one number; counts all that could be made."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.count = 0
        self.made = ""

    def _hit(self, node: ast.AST, what: str) -> bool:
        self.count += 1
        if self.count - 1 != self.wanted:
            return False
        line = getattr(node, "lineno", 0)
        self.made = f"line {line}: {ast.unparse(node)[:80]!r}: {what}".replace("\n", " ")
        return True

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if type(node.ops[0]) in _COMPARISONS:
            other = _COMPARISONS[type(node.ops[0])]
            if self._hit(node, f"to {other.__name__}"):
                return ast.Compare(node.left, [other(), *node.ops[1:]], node.comparators)
        return node

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
            return node
        self.generic_visit(node)
        return ast.Pass() if self._hit(node, "removed") else node

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        self.generic_visit(node)
        return ast.Pass() if self._hit(node, "removed") else node


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """Description and source of every mutant."""
    tree = ast.parse(source)
    number = 0
    while True:
        mutator = _Mutator(number)
        changed = mutator.visit(copy.deepcopy(tree))
        if not mutator.made:
            return
        yield mutator.made, ast.unparse(ast.fix_missing_locations(changed))
        number += 1


def survives(package: Path, target: Target, source: str) -> bool:
    """Whether no test notices the source."""
    (package / target.module).write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "20",
        "-W", "ignore", *target.tests,
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=120
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def main() -> int:
    """Lists survivors; fails if one of them is not known to be equivalent."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("target", nargs="*", help=f"any of {', '.join(TARGETS)}; default all")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first mutant")
    arguments = parser.parse_args()
    failed = False
    for name in arguments.target or TARGETS:
        target = TARGETS[name]
        source = (PACKAGE / target.module).read_text()
        total = killed = 0
        with tempfile.TemporaryDirectory() as folder:
            package = Path(folder) / PACKAGE.name
            shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
            if not survives(package, target, source):
                print(f"{name}: the tests fail without any change")
                return 1
            for number, (made, changed) in enumerate(mutants(source)):
                if number < arguments.first:
                    continue
                total += 1
                if not survives(package, target, changed):
                    killed += 1
                    continue
                reason = EQUIVALENT.get(f"{name} {made.split(': ', 1)[1]}")
                failed = failed or reason is None
                print(f"{name} #{number} survived, {made}: {reason or 'NOT EXPLAINED'}", flush=True)
        print(f"{name}: {killed} of {total} mutants noticed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
