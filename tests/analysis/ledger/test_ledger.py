"""The formulas of the ledger, one unit at a time, with the sum beside each number. All in ns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prunescope.analysis.ledger.alignment import Alignment
from prunescope.analysis.ledger.attribution import attribution_inputs
from prunescope.analysis.ledger.ledger import Split, ratios, split, times, uniform
from prunescope.analysis.ledger.pairing import Units, UnitSums
from prunescope.analysis.ledger.rows import build_rows

NAN = float("nan")
UP, REST, GATHER = (0, "up", "matmul"), (0, "residual", "pointwise"), (0, "q", "gather_scatter")


def unit(t: float = 0, g: float = 0, *, flop: float = NAN, size: float = NAN, ideal: float = NAN,
         predicted: float = NAN) -> dict[str, float]:  # fmt: skip
    return {
        "busy": t,
        "gap": g,
        "flop": flop,
        "bytes": size,
        "ideal": ideal,
        "predicted": predicted,
    }


def side(rows: list[dict[str, float] | None], tail: float) -> UnitSums:
    """One step; None where a unit is absent."""
    columns = {
        name: np.array([[0.0 if row is None else row[name]] for row in rows]) for name in unit()
    }
    present = np.array([row is not None for row in rows])
    return UnitSums(**columns, present=present, trailing_idle=np.array([tail]))


def made(
    keys: list[Any], dense: list[Any], pruned: list[Any], tails: tuple[float, float] = (0, 0)
) -> Units:
    alignment = Alignment({0: 0}, [], "identity", True, 1)
    return Units(keys, side(dense, tails[0]), side(pruned, tails[1]), alignment)


def ledger(units: Units, sparsity: float | None) -> Split:
    ratio = ratios(units, sparsity)
    return split(units, ratio, times(units, uniform(units.dense), uniform(units.pruned)))


def rows(units: Units, sparsity: float | None) -> dict[str, float]:
    got = ledger(units, sparsity)
    return {name: float(got.total(name)[0]) for name in ("promised", *got.rows)}


def test_every_row_of_a_matched_unit() -> None:
    """t 100 → 70, r_F 0.5, r_R 0.6, r_Q 0.65, s = 0.25; gaps 10 → 12, tail 4 → 1."""
    units = made(
        [UP],
        [unit(100, 10, flop=200, ideal=50, predicted=60)],
        [unit(70, 12, flop=100, ideal=30, predicted=39)], (4, 1),
    )  # fmt: skip
    assert rows(units, 0.25) == pytest.approx(
        {
            "promised": 0.75 * 114,
            "coverage": 100 * (0.5 - 0.75) + 10 * 0.25 + 4 * 0.25,
            "roofline_shift": 100 * (0.6 - 0.5),
            "shape": 100 * (0.65 - 0.6),
            "kernel_efficiency": 70 - 65,
            "added_work": 0,
            "launch_idle": 12 - 10 + 1 - 4,
        }
    )


def test_a_removed_unit_promises_all_of_itself() -> None:
    """t and g of it times -p, and nothing in any other row."""
    units = made([UP, REST], [unit(100, 10, flop=5), unit(40, 2)], [None, unit(40, 2)])
    got = rows(units, 0.25)
    assert got["coverage"] == pytest.approx(-110 * 0.75 + 42 * 0.25)
    assert [got[r] for r in ("roofline_shift", "shape", "kernel_efficiency", "launch_idle")] == [
        0
    ] * 4


def test_an_added_unit_was_not_promised() -> None:
    units = made([UP, GATHER], [unit(100, 10, flop=5), None],
                 [unit(100, 10, flop=5), unit(30, 7, flop=9)])  # fmt: skip
    got = rows(units, None)
    assert got["promised"] == 110  # p = 1: its FLOPs are not promised
    assert (got["added_work"], got["launch_idle"], got["coverage"]) == (30, 7, 0)


@pytest.mark.parametrize(
    ("dense", "pruned", "want"),
    [
        # FLOPs where both are known; else bytes; else 1. An unknown ratio is the one before it.
        (unit(1, flop=8, size=8), unit(1, flop=4, size=2), (0.5, 0.5, 0.5)),
        (unit(1, size=8), unit(1, size=2), (0.25, 0.25, 0.25)),
        (unit(1, flop=8, size=8), unit(1, size=2), (0.25, 0.25, 0.25)),
        (unit(1), unit(1), (1, 1, 1)),
        (unit(1, ideal=8), unit(1, ideal=6), (1, 0.75, 0.75)),
        (unit(1, flop=8, ideal=8, predicted=9), unit(1, flop=4, ideal=6), (0.5, 0.75, 0.75)),
        (unit(1, flop=8, predicted=8), unit(1, flop=4, predicted=3), (0.5, 0.5, 0.375)),
        (unit(1, flop=0, size=0, ideal=0), unit(1, flop=4, size=2, ideal=1), (1, 1, 1)),
    ],
)  # fmt: skip
def test_the_order_in_which_ratios_are_known(
    dense: dict[str, float], pruned: dict[str, float], want: tuple[float, ...]
) -> None:
    ratio = ratios(made([UP], [dense], [pruned]), 0.0)
    assert (ratio.flop[0], ratio.roofline[0], ratio.shape[0]) == want


def test_pointwise_work_counts_by_bytes() -> None:
    """Its FLOPs say little: r_F is the ratio of bytes."""
    pair = (unit(1, flop=8, size=8), unit(1, flop=8, size=2))
    assert ratios(made([REST], [pair[0]], [pair[1]]), None).flop[0] == 0.25


@pytest.mark.parametrize(("took", "want"), [(30, 4), (5, 1.5), (90, 8)])
def test_pointwise_work_that_grew_counts_by_its_time_at_most(took: float, want: float) -> None:
    """Eight times the bytes of a call of 10 ns, most of which is no byte: on top of these 10 ns no
    more than the pruned call takes; nor are peaks asked."""
    pair = (unit(10, size=8, ideal=1), unit(took, size=64, ideal=9))
    ratio = ratios(made([REST], [pair[0]], [pair[1]]), None)
    assert ratio.flop[0] == want
    assert ratio.shape[0] == min(9, 1 + took / 10)


def test_the_promise_without_a_sparsity() -> None:
    """p = Σ_matched F_p / F_d: 60 + 0 of 200; the added 50 count in the ladder's ratio only."""
    keys = [UP, (1, "up", "matmul"), (2, "up", "matmul"), REST]
    units = made(keys, [unit(flop=100), unit(flop=100), None, unit(flop=77)],
                 [unit(flop=60), None, unit(flop=50), unit(flop=77)])  # fmt: skip
    ratio = ratios(units, None)
    assert ratio.promised == pytest.approx(0.3)
    assert ratio.flop_ratio == pytest.approx(200 / 110)
    assert ratios(units, 0.25).promised == 0.75


def test_without_any_flops_nothing_is_promised() -> None:
    ratio = ratios(made([UP], [unit(5)], [unit(5)]), None)
    assert (ratio.promised, ratio.flop_ratio) == (1.0, None)


def test_parts_are_named_and_sorted() -> None:
    """Untouched where r̄ = 1, else granularity with what it keeps; gaps are a part of their own."""
    keys = [UP, (1, "up", "matmul"), (0, "lm_head", "matmul"), GATHER]
    units = made(
        keys,
        [unit(100, 10, flop=10), unit(100, 0, flop=10), unit(400, 0, flop=40), None],
        [unit(50, 10, flop=5), unit(100, 0, flop=10), unit(400, 0, flop=40), unit(9)], (0, 5),
    )  # fmt: skip
    inputs = attribution_inputs(units, nominal=0.5, samples_ns=([], []), on_device=True)
    told = build_rows(inputs, None, lambda row, *_: [f"of {row}"])
    by_name = {r.row: r for r in told}
    assert [(p.name, p.ns) for p in by_name["coverage"].parts] == [
        ("untouched: lm_head (matmul)", 200.0),
        ("granularity: up (matmul) keeps 75.0 % of its time", 50.0),  # (0.5·100 + 1·100) / 200
        ("gaps kept", 5.0),
    ]
    assert [(p.name, p.cls, p.ns) for p in by_name["added_work"].parts] == [
        ("q (gather_scatter)", "gather_scatter", 9.0)
    ]
    assert [(p.name, p.ns) for p in by_name["launch_idle"].parts] == [("trailing idle", 5.0)]
    assert by_name["coverage"].parts[0].evidence == ["of coverage"]
    assert all(r.ci95 is None and r.noise_ns is None for r in told)
