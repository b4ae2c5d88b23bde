"""Starts wait while runs come in by the hundred, and never for long."""

from __future__ import annotations

import pytest

from port_webhook_handlers.runtime.flood import Flood


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def arrive(flood: Flood, clock: Clock, count: int, seconds: float) -> None:
    for _ in range(count):
        clock.now += seconds / count
        flood.arrived()


def test_what_comes_slowly_is_started_at_once(clock: Clock) -> None:
    flood = Flood(clock)
    assert not flood.holds()
    for _ in range(50):
        arrive(flood, clock, 90, 0.1)
        assert not flood.holds()


def test_a_flood_holds_starts_until_it_pauses(clock: Clock) -> None:
    flood = Flood(clock)
    arrive(flood, clock, 101, 0.05)
    assert flood.holds()
    clock.now += 0.29
    assert flood.holds(), "the next batch is being fetched"
    arrive(flood, clock, 200, 0.05)
    clock.now += 0.31
    assert not flood.holds()
    arrive(flood, clock, 1, 0.01)
    assert not flood.holds()


def test_a_flood_without_end_holds_starts_for_five_seconds(clock: Clock) -> None:
    flood = Flood(clock)
    held = 0
    for _ in range(200):
        arrive(flood, clock, 500, 0.1)
        held += flood.holds()
    assert 45 <= held <= 52, "of twenty seconds, in tenths"
    clock.now += 1
    assert not flood.holds()
    arrive(flood, clock, 500, 0.1)
    assert flood.holds(), "the next flood is another one"
