"""A real trace, an edit of it, and what the ledger of the two must be. No test in it.

A step of Qwen1.5-0.5B on an H100: 24 layers, T = 16 · 559 rows, h = q = 1024, f = 2816, bf16.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase
from tests.analysis.edits import Edit, Event

ROWS = ("coverage", "roofline_shift", "shape", "kernel_efficiency", "added_work", "launch_idle")
NO_PRUNING = ("dense", "outside", "unknown")
T, H, F, LAYERS = 16 * 559, 1024, 2816, 24
PI, BETA, SMS = 989e3, 3350.0, 132  # FLOP/ns in bf16, B/ns, multiprocessors of an H100 SXM
# 2·B·q·S(S+1) of a causal attention, and the one product of the rotary table [32, 1] x [1, 559].
ATTENTION, ROTARY = 2 * 16 * 1024 * 559 * 560, 2 * 32 * 559
REST = LAYERS * (4 * 2 * T * H * H + ATTENTION) + ROTARY
WHOLE = REST + LAYERS * 3 * 2 * T * F * H
HAVE_F = ("aten::mm", "aten::silu", "aten::mul")


class Case:
    """The whole trace (`dense`), an edit of it, and reports of the two in either order. The whole
    one is the same for all tests; one that edits it takes an Edit of its own."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.dense, self.edit = _whole(path), Edit(path)

    def reports(self, sparsity: float | None = None) -> tuple[Phase, Phase]:
        is_whole = self.dense is _whole(self.path)
        folder = self.folder
        dense = _saved(self.path, folder.parent) if is_whole else self.dense.save(folder / "d.json")
        edited = self.edit.save(folder / "e.json")
        there = analyze(edited, baseline=dense, options=Options(sparsity=sparsity))
        back = analyze(dense, baseline=edited)
        return there.report.phases["trace"], back.report.phases["trace"]


@cache
def _whole(path: Path) -> Edit:
    return Edit(path)


@cache
def _saved(path: Path, folder: Path) -> Path:
    return _whole(path).save(folder / "whole.json")


def check(phase: Phase, dense: Edit, pruned: Edit, promised: float, **want: float) -> None:
    """The walls, p, the rows named in `want` (ns), all others zero, and the ladder they give."""
    rows = {r.row: r.ns for r in phase.ledger or []}
    walls = (dense.wall(), pruned.wall())
    assert (rows["dense"], rows["pruned"]) == pytest.approx(walls, abs=1e-3)
    assert rows["promised"] == pytest.approx(promised * dense.wall(), abs=1e-3)
    for name in ROWS:
        assert rows[name] == pytest.approx(want.get(name, 0.0), abs=1e-2), name
    for row in phase.ledger or []:
        if row.parts:
            assert sum(p.ns for p in row.parts) == pytest.approx(row.ns, abs=1e-2)
    ladder = phase.ladder
    assert ladder is not None
    covered = promised * walls[0] + want.get("coverage", 0.0)
    bound = covered + want.get("roofline_shift", 0.0)
    assert ladder.coverage == pytest.approx(walls[0] / covered)
    assert ladder.roofline == pytest.approx(walls[0] / bound)
    assert ladder.busy == pytest.approx(dense.busy() / pruned.busy())
    assert ladder.realised == pytest.approx(walls[0] / walls[1])
    assert ladder.share_of_bound == pytest.approx(bound / walls[1])


def family(phase: Phase) -> str:
    assert phase.family is not None
    assert phase.family.evidence
    return phase.family.id


def idle(edit: Edit, events: Iterable[Event] | None = None) -> int:
    gaps = edit.gaps()
    return sum(gaps.values()) if events is None else sum(gaps[id(e)] for e in events)


def has_f(edit: Edit, event: Event) -> bool:
    """Whether the op of a device event has the MLP's width among its dimensions."""
    op = edit.op_of(event)
    return op is not None and op["name"] in HAVE_F and str(F) in str(op["args"]["Input Dims"])


def matmul(edit: Edit, event: Event) -> bool:
    op = edit.op_of(event)
    return op is not None and op["name"] == "aten::mm" and has_f(edit, event)
