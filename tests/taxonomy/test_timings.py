"""The parts of a command's time exclude one another and add up, whatever is nested in them."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.taxonomy import timings
from prunescope.taxonomy.timings import PARTS, add_forward, forwards, part, process_start_ns
from prunescope.taxonomy.timings import recorded as recorded_since


class Clock:
    """A clock that a test moves by hand, in ns."""

    def __init__(self) -> None:
        self.now = 0

    def monotonic_ns(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(timings, "time", made)
    yield made


def test_an_inner_part_pauses_the_outer(clock: Clock) -> None:
    clock.now = 5
    with recorded_since(0) as watch:  # 5 ns before it began
        clock.now += 1
        with part("prune"):
            clock.now += 10
            with part("load"):
                clock.now += 100
            clock.now += 20
        clock.now += 2
        parts = watch.parts
        assert watch.to_dict()["total_s"] == 138e-9  # 5 + 1 + 10 + 100 + 20 + 2
    assert {name: ns for name, ns in parts.items() if ns} == {
        "imports": 5, "prune": 30, "load": 100, "other": 3,
    }  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from([*PARTS, None]), st.integers(0, 10**9)), max_size=30))
def test_parts_add_up_in_every_nesting(steps: list[tuple[timings.Part | None, int]]) -> None:
    watch = timings.Stopwatch(0)
    begun, open_parts = watch.since_ns, 0
    for name, _ in steps:
        if name is not None:
            watch.enter(name)
            open_parts += 1
        elif open_parts:
            watch.leave()
            open_parts -= 1
    assert sum(watch.parts.values()) == watch.since_ns - begun


def test_a_part_ends_by_an_error_too(clock: Clock) -> None:
    with recorded_since(0) as watch:
        with pytest.raises(ValueError, match="mine"), part("write"):
            clock.now += 7
            raise ValueError("mine")
        clock.now += 1
        watch.to_dict()
    assert (watch.parts["write"], watch.parts["other"]) == (7, 1)


def test_nested_forwards_count_once(clock: Clock) -> None:
    @forwards()
    def run() -> None:
        clock.now += 3

    with recorded_since(0) as watch:
        with forwards():
            run()
            clock.now += 4
        run()
        add_forward(5)
    assert watch.forwards_ns == 3 + 4 + 3 + 5


def test_nothing_is_recorded_where_nobody_asked() -> None:
    with part("load"), forwards():
        add_forward(1)
    with recorded_since(time.monotonic_ns()) as watch:
        pass
    with part("load"):
        time.sleep(0.001)
    assert watch.parts["load"] == 0
    assert watch.forwards_ns == 0


def test_other_threads_leave_the_parts_alone(clock: Clock) -> None:
    def work() -> None:
        with part("load"):
            clock.now += 9

    with recorded_since(0) as watch:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        watch.to_dict()
    assert (watch.parts["load"], watch.parts["other"]) == (0, 9)


def test_imports_count_wherever_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.02)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = sys.modules["_frozen_importlib"]._find_and_load  # type: ignore[attr-defined]
    with recorded_since(time.monotonic_ns()) as watch, part("load"):
        importlib.import_module("slow_to_import")
    assert watch.parts["imports"] >= 20e6
    assert watch.parts["load"] < 20e6
    sys.modules.pop("slow_to_import")
    assert sys.modules["_frozen_importlib"]._find_and_load is before  # type: ignore[attr-defined]


def test_this_process_began_before_now() -> None:
    age_s = (time.monotonic_ns() - process_start_ns()) / 1e9
    assert 0 <= age_s < 24 * 3600
