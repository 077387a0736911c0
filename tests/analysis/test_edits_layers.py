"""Layers taken out of a real trace, with and without names for them, in both orders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.analysis.edit_case import (
    HAVE_F,
    NO_PRUNING,
    Case,
    F,
    check,
    family,
    has_f,
    idle,
)
from tests.analysis.edits import Edit, Event, replaced


@pytest.fixture
def case(real_trace: Callable[[str], Path], tmp_path: Path) -> Case:
    return Case(real_trace("h100_qwen1.5-0.5b_prefill.json.gz"), tmp_path)


def test_layers_dropped(case: Case) -> None:
    """6 of 24 layers: p·T + coverage = what is left; the other way round all of it is added."""
    which = [3, 7, 11, 15, 19, 22]
    gone = Edit(case.path)
    events = gone.inside([gone.modules("Qwen2DecoderLayer_")[i] for i in which])
    busy, gap = gone.busy(events), idle(gone, events)
    case.edit.drop_layers(which)
    assert case.edit.wall() == case.dense.wall() - busy - gap
    there, back = case.reports(0.25)
    # Kept units: (t + g)(1 - p); removed ones: -(t + g)·p.
    kept = case.dense.wall() - busy - gap
    check(there, case.dense, case.edit, 0.75, coverage=0.25 * kept - 0.75 * (busy + gap))
    assert family(there) == "static-m"
    assert there.family is not None
    assert there.family.evidence == ["6 of 24 layers removed: 3, 7, 11, 15, 19, 22"]
    assert there.pairing is not None
    assert there.pairing.layers == "6 of 24 layers removed"
    check(back, case.edit, case.dense, 1.0, added_work=busy, launch_idle=gap)
    assert family(back) in NO_PRUNING


def test_layers_renumbered(case: Case) -> None:
    """Numbered anew, equal layers cannot be told apart: the count is known, the indices are not."""
    which = [3, 7, 11, 15, 19, 22]
    case.edit.drop_layers(which)
    case.edit.renumber()
    there, _ = case.reports(0.25)
    rows = {r.row: r.ns for r in there.ledger or []}
    assert (rows["dense"], rows["pruned"]) == pytest.approx((case.dense.wall(), case.edit.wall()))
    assert rows["promised"] == pytest.approx(0.75 * case.dense.wall())
    assert rows["added_work"] == 0
    assert rows["roofline_shift"] == pytest.approx(0, abs=1e-2)
    # Layers differ by some us: what is removed and what is slower can only be told in sum.
    tolerance = 0.01 * case.dense.wall()
    assert rows["promised"] + rows["coverage"] == pytest.approx(case.edit.wall(), abs=tolerance)
    assert family(there) == "static-m"
    assert there.family is not None
    assert there.family.evidence == ["6 of 24 layers removed"]
    assert all(g.layers == [] for g in there.gemms if g.axis == "gone")


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("what", ["layers", "width", "nothing"])
def test_without_modules(what: str, case: Case, *, renumber: bool) -> None:
    """Roles by order: the family is still named, or it is unknown; never another one."""
    truth = {"layers": "static-m", "width": "static-nk-mlp", "nothing": "unknown"}[what]
    if what == "layers":
        case.edit.drop_layers([3, 7, 11, 15, 19, 22])
    elif what == "width":
        case.edit.resize(lambda e: has_f(case.edit, e), lambda e: round(e["dur"] * 0.85))
        case.edit.reshape(lambda op: replaced(op["args"].get("Input Dims"), F, 2112)
                          if op["name"] in HAVE_F else None)  # fmt: skip
    if renumber:
        case.edit.renumber()
    else:
        case.dense = Edit(case.path)
        case.dense.strip_modules()
        case.edit.strip_modules()
    there, back = case.reports(0.25)
    assert family(there) in (truth, "unknown")
    assert family(back) in NO_PRUNING
    rows = {r.row: r.ns for r in there.ledger or []}
    assert rows["pruned"] == pytest.approx(case.edit.wall())
    if not renumber:
        assert any("order" in note for note in there.notes)


def mlp_sublayers(edit: Edit, which: list[int]) -> list[Event]:
    """The norm, the MLP and the sum behind it of some layers, in time order."""
    spans: list[Event] = []
    for layer in (edit.modules("Qwen2DecoderLayer_")[i] for i in which):
        end = layer["ts"] + layer["dur"]
        inner = [e for e in edit.events if layer["ts"] <= e["ts"] < end]
        norms = [e for e in inner if e["name"].startswith("nn.Module: Qwen2RMSNorm_")]
        (mlp,) = (e for e in inner if e["name"].startswith("nn.Module: Qwen2MLP_"))
        sums = [e for e in inner if e["name"] == "aten::add" and e["ts"] > mlp["ts"] + mlp["dur"]]
        spans += [max(norms, key=lambda e: e["ts"]), mlp, sums[-1]]
    return spans


@pytest.mark.parametrize(("bare", "least"), [(False, 2_500), (True, 13_000)])
def test_mlp_sublayers_dropped(case: Case, *, bare: bool, least: float) -> None:
    """What went is coverage: p·T + coverage is what is left.

    Equal calls count as equally long, with equal gaps before them: the two sums of a layer differ
    by 0.2 us each in six layers; without layers, calls of one size are 42 to 49 in a step.
    """
    gone = Edit(case.path)
    events = gone.inside(mlp_sublayers(gone, [3, 7, 11, 15, 19, 22]))
    busy, gap = gone.busy(events), idle(gone, events)
    case.edit.drop(mlp_sublayers(case.edit, [3, 7, 11, 15, 19, 22]))
    assert case.edit.wall() == case.dense.wall() - busy - gap
    if bare:
        case.dense = Edit(case.path)
        case.dense.strip_modules()
        case.edit.strip_modules()
    there, _ = case.reports(0.1)
    rows = {r.row: r.ns or 0.0 for r in there.ledger or []}
    assert rows["pruned"] == pytest.approx(case.edit.wall())
    left = case.dense.wall() - busy - gap
    assert rows["coverage"] == pytest.approx(0.1 * left - 0.9 * (busy + gap), abs=least)
    assert rows["kernel_efficiency"] == pytest.approx(0, abs=3_100)
    assert rows["launch_idle"] == pytest.approx(0, abs=least)
    assert rows["added_work"] == 0
    assert there.family is not None
    assert there.family.evidence == ["6 of 24 MLP sublayers removed: 3, 7, 11, 15, 19, 22"]
