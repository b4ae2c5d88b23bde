"""Operations of the engine in one process, so that a test with many of them imports a target's SDK once.

`python -m tests.engine.operations` reads lines of JSON, `{"operation": "up", "stack": "aws-dev"}`, and answers each one
with `{"changes": …, "outputs": …, "error": …}`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from port_webhook_stack.driver import DriverError, StackDriver
from port_webhook_stack.engine import resolve

ROOT: Final = Path(__file__).resolve().parents[2]


class Operations:
    """The process, seen from a test."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.operations"],
            cwd=folder,
            env={**environment, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, operation: str, stack: str) -> dict[str, Any]:
        """The answer; see above."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"operation": operation, "stack": stack}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=30)


def main() -> None:
    engine = resolve(lambda message: None)
    answers = sys.stdout
    # What else is printed must not stand among the answers.
    sys.stdout = sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {"changes": {}, "outputs": {}, "error": ""}
        try:
            driver = StackDriver(Path.cwd(), asked["stack"], engine, lambda message: None)
            outcome = getattr(driver, asked["operation"])()
            answer |= {"changes": dict(outcome.changes), "outputs": dict(outcome.outputs)}
        except DriverError as error:
            answer["error"] = str(error)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
