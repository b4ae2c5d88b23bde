from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.fixtures_localport import local_port, own_local_port
from tests.unit.localport.webhook import Webhook

__all__ = ["local_port", "own_local_port"]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    server = Webhook()
    yield server
    server.close()
