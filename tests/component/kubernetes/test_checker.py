"""An independent checker, kube-score, over the manifests of the stacks that ship: every finding is known."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.kubernetes.control_plane import REPOSITORY, binaries

JUSTIFIED = {
    # An image by digest cannot change, and a registry that is down must not keep runs from starting.
    "ImagePullPolicy is not set to Always",
    # Spread by topologySpreadConstraints over nodes and zones, which also balance.
    "Deployment does not have a host podAntiAffinity set",
}
JUSTIFIED_IN_DEV = {*JUSTIFIED, "Deployment few replicas"}


@pytest.mark.parametrize(
    ("stack", "justified"), [("kubernetes-prod", JUSTIFIED), ("kubernetes-dev", JUSTIFIED_IN_DEV)]
)
def test_the_checker_finds_nothing_new(tmp_path: Path, stack: str, justified: set[str]) -> None:
    folder, missing = binaries()
    if "kube-score" in missing:
        pytest.skip(f"kube-score not in {folder}; `make tools` builds it, once per user")
    render = [sys.executable, str(REPOSITORY / "tools" / "kubernetes" / "render.py"), stack, str(tmp_path)]
    subprocess.run(render, check=True, capture_output=True)
    files = [str(path) for path in sorted(tmp_path.glob("*.yaml"))]
    command = [str(folder / "kube-score"), "score", "--kubernetes-version", "v1.31", "-o", "ci", *files]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    found = {line.split(": ", 1)[1] for line in lines if line.startswith(("[CRITICAL]", "[WARNING]"))}
    assert len(lines) > len(files)
    assert {finding.split(") ", 1)[-1] for finding in found} <= justified
