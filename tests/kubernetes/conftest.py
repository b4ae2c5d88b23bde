"""The control plane, and a stack that is deployed on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kubernetes.control_plane import ControlPlane, binaries
from tests.kubernetes.kubelet import Kubelet


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control plane of all tests."""
    folder, missing = binaries()
    if missing:
        pytest.skip(f"{', '.join(missing)} not in {folder}; `make tools` builds them, once per user")
    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"))
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture(scope="session")
def kubelet(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    """Nodes that execute Pods as processes."""
    kubelet = Kubelet(plane, tmp_path_factory.mktemp("pods"))
    kubelet.start()
    yield kubelet
    kubelet.stop()


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all tests."""
    return tmp_path_factory.mktemp("scratch")
