"""`python -m benchmarks [--small] [NAME…]`: runs all benchmarks, or the named ones, and prints `name: value` lines.

A benchmark is a module of this package with `run(small: bool) -> Iterator[tuple[str, float]]`; with `small` it
takes seconds instead of minutes. What it reports is printed as it comes.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
from importlib import import_module
from pathlib import Path


def names() -> list[str]:
    """Names of all benchmarks; modules that begin with an underscore only help them."""
    found = (module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return sorted(name for name in found if not name.startswith("_"))


def main() -> int:
    known = names()
    parser = argparse.ArgumentParser(prog="benchmarks", description="Run benchmarks.")
    parser.add_argument("--small", action="store_true", help="less of everything, for a quick look")
    parser.add_argument("name", nargs="*", help=f"any of {', '.join(known)}; default all")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.name if name not in known]
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]}; known: {', '.join(known)}")
    for name in arguments.name or known:
        for figure, value in import_module(f"benchmarks.{name}").run(small=arguments.small):
            print(f"{figure}: {value:g}" if isinstance(value, float) else f"{figure}: {value}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
