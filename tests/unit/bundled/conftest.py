from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.deployments import end_deployments


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """State folder of a stack; what was deployed there ends with the test."""
    folder = tmp_path / "project" / ".state" / "local"
    folder.mkdir(parents=True)
    yield folder
    end_deployments(folder / "deployments")
