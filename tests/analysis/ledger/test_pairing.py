"""Units of a pair and the alignment of their layers: which dense layer a pruned one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.alignment import Alignment, align
from prunescope.analysis.ledger.pairing import pair
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.trace.load import load
from tests.analysis.decoder import Layer, Setting, decoder
from tests.chrome import k, op, save
from tests.records import BF16, kernel_row, kernels_in, kernels_of, ledger_of, product

FULL, NO_MLP = Layer(), Layer(mlp=False)
Layers = Mapping[int, Layer] | Sequence[Layer]


def kernels(layers: Layers, tmp_path: Path, setting: Setting | None = None) -> Kernels:
    trace = load(save(decoder(layers, setting), tmp_path / "t.json"))
    return kernels_in(trace)


def aligned(
    dense: Layers, pruned: Layers, tmp_path: Path, layer_map: list[Any] | None = None
) -> Alignment:
    return align(kernels(dense, tmp_path), kernels(pruned, tmp_path), layer_map)


@pytest.mark.parametrize(
    ("pruned", "layer_map", "mapped", "removed", "how", "exact"),
    [
        ([FULL] * 4, None, {0: 0, 1: 1, 2: 2, 3: 3}, [], "identity", True),
        ([FULL] * 2, [0, 2], {0: 0, 1: 2}, [1, 3], "map", True),
        ({0: FULL, 3: FULL}, None, {0: 0, 3: 3}, [1, 2], "number", True),
        ({2: FULL, 3: FULL}, None, {2: 2, 3: 3}, [0, 1], "number", True),
        ([FULL] * 3, None, {0: 0, 1: 1, 2: 2}, [3], "order", False),
        ([NO_MLP] * 2, None, {0: 0, 1: 1}, [2, 3], "order", False),
        ([FULL] * 2, [0, 9], {0: 0}, [1, 2, 3], "map", True),
        ([FULL] * 2, [1], {0: 1}, [0, 2, 3], "map", True),
    ],
)  # fmt: skip
def test_layers_align(
    pruned: Layers, layer_map: list[int] | None, mapped: dict[int, int], removed: list[int],
    how: str, exact: Any, tmp_path: Path,
) -> None:  # fmt: skip
    got = aligned([FULL] * 4, pruned, tmp_path, layer_map)
    assert got == Alignment(mapped, removed, how, exact, 4)


def test_layers_of_two_makes_align_by_shape(tmp_path: Path) -> None:
    """F N F N F N loses an F and an N: the rest keeps its order, equal layers from the front."""
    dense = [FULL, NO_MLP] * 3
    got = aligned(dense, [FULL, FULL, NO_MLP, NO_MLP], tmp_path)
    assert got.how == "order"
    assert dict(got.dense_layer.items()) == {0: 0, 1: 2, 2: 3, 3: 5}
    assert got.removed == [1, 4]
    assert not got.exact


def test_the_dense_side_may_have_the_holes(tmp_path: Path) -> None:
    got = aligned({0: FULL, 3: FULL}, [FULL] * 4, tmp_path)
    assert (got.dense_layer, got.removed, got.how) == ({0: 0, 3: 3}, [], "number")


def test_without_layers_nothing_is_aligned(tmp_path: Path) -> None:
    bare = save({"traceEvents": [{"ph": "X", "cat": "kernel", "name": "k", "ts": 1, "dur": 1}]},
                tmp_path / "b.json")  # fmt: skip
    trace = load(bare)
    none = kernels_in(trace)
    assert align(none, none, None).how == "none"
    assert align(none, kernels([FULL], tmp_path), None).num_dense == 0


def test_units_of_removed_and_added_work(tmp_path: Path) -> None:
    """A layer without its MLP; a gather in q's scope of another; a fifth layer."""
    gather = op("aten::index_select", [32, 64], [], [16], kernels=[k(us=3, name="indexSelect")])
    dense = kernels([FULL] * 4, tmp_path)
    changed = kernels([NO_MLP, Layer(added=(gather,)), FULL, FULL, FULL], tmp_path)
    units = pair(dense, changed)
    assert units.alignment.how == "order"
    units = pair(dense, changed, [0, 1, 2, 3, 99])
    gone = {units.keys[i] for i in np.flatnonzero(units.removed)}
    added = {units.keys[i] for i in np.flatnonzero(units.added)}
    assert gone == {(0, r, "matmul") for r in ("gate", "up", "down")} | {
        (0, "activation", "pointwise"), (0, "mlp_norm", "pointwise"),
    }  # fmt: skip
    assert (1, "q", "gather_scatter") in added
    assert {key for key in added if key[0] == -1 - 4} == {
        (-5, key[1], key[2]) for key in units.keys if key[0] == 2
    }
    index = units.keys.index((1, "q", "gather_scatter"))
    assert units.pruned.busy[index].tolist() == [3_000, 3_000]  # a step
    assert units.dense.busy[index].tolist() == [0, 0]


def test_sums_a_unit_and_step(tmp_path: Path) -> None:
    """down: one GEMM of 10 us, 1 us idle before it, 2·32·64·96 FLOP, in each of 2 steps."""
    setting = Setting(steps=2)
    side = kernels([FULL] * 2, tmp_path, setting)
    units = pair(side, side)
    at = units.keys.index((1, "down", "matmul"))
    assert units.dense.busy[at].tolist() == [10_000] * 2
    assert units.dense.gap[at].tolist() == [1_000] * 2
    assert units.dense.flop[at].tolist() == [2 * 32 * 64 * 96] * 2
    assert units.dense.bytes[at].tolist() == [2 * (32 * 96 + 96 * 64 + 32 * 64)] * 2
    assert np.isnan(units.dense.ideal[at]).all()  # no peaks were given: unknown, not 0
    assert units.dense.busy.sum() + units.dense.gap.sum() == side.wall


def test_a_pair_through_a_rank_is_one_unit(tmp_path: Path) -> None:
    dense = kernels([FULL] * 2, tmp_path)
    units = pair(dense, kernels([replace(FULL, rank={"down": 16})] * 2, tmp_path))
    assert units.matched.all()
    at = units.keys.index((0, "down", "matmul"))
    assert units.pruned.busy[at].tolist() == [20_000] * 2
    # 2·32·16·(96 + 64) FLOP through rank 16
    assert units.pruned.flop[at].tolist() == [2 * 32 * 16 * (96 + 64)] * 2


def test_sparse_and_eager_work_pairs_with_what_it_replaces(tmp_path: Path) -> None:
    dense = kernels([FULL] * 2, tmp_path)
    sparse = pair(dense, kernels([Layer(sparse=("q", "up"))] * 2, tmp_path))
    assert sparse.matched.all()
    at = sparse.keys.index((0, "up", "matmul"))
    assert sparse.pruned.flop[at, 0] == sparse.dense.flop[at, 0] / 2
    eager = pair(dense, kernels([FULL] * 2, tmp_path, Setting(attention="eager")))
    assert eager.matched.all()
    at = eager.keys.index((0, "attention", "attention"))
    assert eager.pruned.busy[at].tolist() == [3_000 + 2_000 + 3_000] * 2


def test_gaps_before_what_went_with_a_sublayer_are_coverage() -> None:
    """One layer loses its MLP and with it the second of two sums, of 2 us with 3 us before it."""
    add = OpCall("aten::add", ((32, 64), (32, 64)), (BF16, BF16))
    total = {**kernel_row(0, "residual", busy=2_000, gap=3_000), "of": add}
    kept = [kernel_row(0, "o", product(64, 64), busy=10_000), total]
    dense = kernels_of(*kept, kernel_row(0, "up", product(96, 64), busy=5_000), total)
    rows = ledger_of(dense, kernels_of(*kept))
    assert (rows["kernel_efficiency"], rows["launch_idle"]) == (0, 0)
    assert rows["pruned"] == 15_000


def test_of_two_sizes_of_an_op_the_one_that_went_is_coverage() -> None:
    """A layer loses its MLP and a sum of 2 us, of four times the bytes of the other, which takes 6.

    By bytes alone a fifth of 8 us was left to expect, and 4.4 us would be slower kernels.
    """
    small, large = (
        {
            **kernel_row(0, "residual", busy=busy, gap=1_000),
            "of": OpCall("aten::add", ((32, n), (32, n)), (BF16, BF16)),
        }
        for n, busy in ((64, 6_000), (256, 2_000))
    )
    kept = [kernel_row(0, "o", product(64, 64), busy=10_000), small]
    dense = kernels_of(*kept, kernel_row(0, "up", product(96, 64), busy=5_000), large)
    rows = ledger_of(dense, kernels_of(*kept))
    assert (rows["kernel_efficiency"], rows["launch_idle"]) == (0, 0)
    assert rows["pruned"] == 17_000
