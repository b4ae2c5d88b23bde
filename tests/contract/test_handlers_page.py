"""The examples in docs/handlers.md do what the page says."""

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "handlers.md"


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    files = re.findall(r"```python file=(\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert {name for name, _ in files} == {
        "release.py",
        "existing.py",
        "conftest.py",
        "test_release.py",
        "test_existing.py",
        "test_listener.py",
    }
    for name, source in files:
        (tmp_path / name).write_text(source)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tmp_path),
            str(tmp_path),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout
