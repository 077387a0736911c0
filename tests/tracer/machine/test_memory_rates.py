"""Copies count what is read and what is written, cached reads every trip, dispatch a call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

MIB = 1 << 20


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Any:
    from prunescope.tracer.machine import memory_rates

    monkeypatch.setattr(memory_rates, "last_cache_bytes", lambda _device: 8 * MIB)
    monkeypatch.setattr(memory_rates, "free_bytes", lambda _device: 1 << 40)
    monkeypatch.setattr(memory_rates, "_LEAST_COPY", 16 * MIB)
    return memory_rates


def test_rates_by_hand(rates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every measurement takes half a second: 32 MiB copied, 2 MiB read 32 times, 500 calls."""
    ran: list[object] = []

    def half(run: Callable[[], object], _device: object) -> float:
        ran.append(run())
        return 0.5

    monkeypatch.setattr(rates, "_median_s", half)
    found = rates.measure_memory(torch.device("cpu"))
    assert astuple(found) == (2 * 32 * MIB / 0.5, 32 * 2 * MIB / 0.5, 0.5e9 / 500)
    assert len(ran) == 3


def test_what_is_free_limits_the_copy(rates: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "free_bytes", lambda _device: 8 * MIB)
    monkeypatch.setattr(rates, "_median_s", lambda _run, _device: 1.0)
    assert rates.measure_memory(torch.device("cpu")).copy_byte_per_s == 2 * MIB


def test_a_measurement_on_this_machine(rates: Any) -> None:
    found = rates.measure_memory(torch.device("cpu"))
    assert all(value > 0 for value in astuple(found))
