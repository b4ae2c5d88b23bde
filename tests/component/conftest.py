"""Pulumi's mocks run on the thread's event loop, which other tests take away when they end."""

from __future__ import annotations

import asyncio
import atexit

import pytest

_LOOP = asyncio.new_event_loop()
atexit.register(_LOOP.close)


@pytest.fixture(autouse=True)
def event_loop_for_pulumi() -> None:
    """One loop for all tests of components: the SDK never closes the one that it makes itself."""
    asyncio.set_event_loop(_LOOP)
