"""Layers that were cut out and renumbered are aligned by what they hold, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.alignment import Alignment, align
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.trace.load import load
from tests.analysis.decoder import Layer, Setting, decoder
from tests.chrome import k, op, save
from tests.records import kernels_in

FULL, NO_MLP = Layer(), Layer(mlp=False)


def kernels(layers: Sequence[Layer], tmp_path: Path, setting: Setting | None = None) -> Kernels:
    trace = load(save(decoder(layers, setting), tmp_path / "t.json"))
    return kernels_in(trace)


def timed(us: float) -> Layer:
    """A layer whose q projection also scales its result, which takes `us`."""
    scale = op("aten::mul", [32, 64], [32, 64], kernels=[k(us=us, name="elementwise")])
    return replace(FULL, added=(scale,))


# Layers that are equal but for the time of one op; 2 and 5 are cut out, the rest is renumbered.
TIMES = [5.0, 9.0, 30.0, 4.0, 12.0, 7.0, 20.0, 6.0]
LEFT = [0, 1, 3, 4, 6, 7]


def test_equal_layers_align_where_their_times_agree(tmp_path: Path) -> None:
    got = align(
        kernels([timed(us) for us in TIMES], tmp_path),
        kernels([timed(TIMES[i]) for i in LEFT], tmp_path),
        None,
    )
    assert got == Alignment(dict(enumerate(LEFT)), [2, 5], "times", False, 8)


def test_times_decide_where_all_layers_became_slower_alike(tmp_path: Path) -> None:
    """That op takes three times as long in every layer, as under another clock: 5, 9, 4, 12, 20, 6
    become 15, 27, ...; each is as far from the median of its side as before."""
    got = align(
        kernels([timed(us) for us in TIMES], tmp_path),
        kernels([timed(3 * TIMES[i]) for i in LEFT], tmp_path),
        None,
    )
    assert (got.removed, got.how) == ([2, 5], "times")


def test_times_that_differ_in_every_alignment_decide_nothing(tmp_path: Path) -> None:
    """Noise: each layer takes another time in each capture."""
    other = [8.0, 5.0, 11.0, 6.0, 9.0, 10.0]
    got = align(
        kernels([timed(us) for us in TIMES], tmp_path),
        kernels([timed(us) for us in other], tmp_path),
        None,
    )
    assert (got.removed, got.how) == ([6, 7], "order")


def test_layers_of_other_sizes_align_by_size(tmp_path: Path) -> None:
    """Widths 96, 64, 96, 32 lose the first layer; by kinds of work alone, it would be the last."""
    widths = [96, 64, 96, 32]
    dense = [replace(FULL, f=f) for f in widths]
    got = align(kernels(dense, tmp_path), kernels(dense[1:], tmp_path), None)
    assert (got.dense_layer, got.how) == ({0: 1, 1: 2, 2: 3}, "order")


def test_a_layer_that_lost_a_part_aligns_with_the_rest(tmp_path: Path) -> None:
    """One of four layers is gone, one lost its MLP: the attention that is left is no added work."""
    got = align(
        kernels([FULL, FULL, FULL, FULL], tmp_path), kernels([FULL, NO_MLP, FULL], tmp_path), None
    )
    assert got.dense_layer == {0: 0, 1: 1, 2: 2}


def test_blocks_cut_out_of_a_real_trace(real_trace: Callable[[str], Path]) -> None:
    """Blocks 3 and 7 of ten are cut out and the modules renumbered; what remains is as before."""
    phase = analyze(
        real_trace("../strangers2/truth_E2b_no_layers_renumbered.json.gz"),
        baseline=real_trace("../strangers2/switch_8b.json.gz"),
        options=Options(sparsity=0.2),
    ).report.phases["trace"]
    rows = {row.row: row.ns for row in phase.ledger or []}
    assert rows["pruned"] == pytest.approx(584_100_000)
    assert rows["kernel_efficiency"] == pytest.approx(0, abs=1)
    assert rows["added_work"] == 0
    assert phase.pairing is not None and phase.pairing.alignment == "times"
    assert phase.family is not None and phase.family.id == "static-m"
