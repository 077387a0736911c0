"""Another batch or length is no pruning: nothing is promised, and times are given for one batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.comparison.other_inputs import batch_ratio
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.report.sentences import setup
from prunescope.analysis.schema.pair_comparison import BATCH_SIZE, Difference
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.summary.headline import headline
from tests.chrome import chrome, k, op, save, step

N_ODD = 71  # particles a jet: no dimension that pruning left


def products(batch: int, length: int = N_ODD, *, width: int = 96, us: float = 10.0) -> Any:
    """Two linears, and the two products of attention of 4 heads, without module scopes."""
    rows = batch * length

    def mm(n: int, k_in: int) -> Any:
        return op("aten::mm", [rows, k_in], [k_in, n], kernels=[k(us=us, name="gemm")])

    def bmm(n: int, k_in: int) -> Any:
        return op("aten::bmm", [4 * batch, length, k_in], [4 * batch, k_in, n],
                  kernels=[k(us=us, name="gemm")])  # fmt: skip

    return chrome(mm(width, 64), bmm(length, 16), bmm(16, length), mm(64, width))


def compared(dense: Any, pruned: Any, tmp_path: Path) -> Phase:
    paths = [save(t, tmp_path / f"{n}.json") for t, n in ((dense, "dense"), (pruned, "pruned"))]
    return analyze(paths[1], baseline=paths[0]).report.phases["trace"]


@pytest.mark.parametrize(
    ("pruned", "says"),
    [
        (products(4, us=5), "0.5 × the dense one: other inputs (half the batch)"),
        (products(24), "3 × the dense one: other inputs (3 × the batch)"),
        (products(8, 142), "2 × the dense one: other inputs (twice the length)"),
        # Narrower too: no pruning doubles the rows of every product.
        (products(16, width=48), "2 × the dense one: other inputs (twice the batch)"),
    ],
)  # fmt: skip
def test_other_inputs_are_named(pruned: Any, says: str, tmp_path: Path) -> None:
    phase = compared(products(8), pruned, tmp_path)
    assert phase.family is not None and phase.family.id == "outside"
    assert phase.comparison is not None
    assert not phase.comparison.is_speedup and not phase.comparison.shows_pruning
    assert f"M of every linear is {says}" in headline(phase)
    assert phase.ladder is not None and phase.ladder.nominal is None
    rows = {row.row: row.ns for row in phase.ledger or []}
    assert rows["promised"] == rows["dense"]
    texts = " ".join(f"{f.text} {f.change}" for f in phase.findings)
    assert "prune to" not in texts and "prune M" not in texts and "round the kept" not in texts


def test_times_are_scaled_to_one_batch(tmp_path: Path) -> None:
    """Four products of 10 us, and of 6 us at half the batch: 2 · 24 us of work against 40 us. What
    lies between them would be as long at twice the batch."""
    phase = compared(products(8), products(4, us=6), tmp_path)
    (finding,) = [f for f in phase.findings if f.id == "not-comparable"]
    assert finding.evidence[1] == (
        "at the batch of the dense run, work takes 48.0 µs instead of 40.0 µs a step; idle time, "
        "0.0 µs and 0.0 µs, does not scale with the batch"
    )
    assert "of the dense side: FLOPs 0.50×" in setup(phase)


@pytest.mark.parametrize(
    "pruned",
    [
        products(8, width=48),  # N and K fell, and no rows
        products(4, width=48),  # other rows, and a width that fell: not the inputs alone
    ],
)
def test_a_narrower_model_is_no_other_input(pruned: Any, tmp_path: Path) -> None:
    phase = compared(products(8), pruned, tmp_path)
    assert phase.comparison is not None
    assert not phase.comparison.differences


def test_the_batch_of_a_manifest_scales_times_too() -> None:
    batch = Difference("batch", 8, 2, hides_pruning=True)
    assert batch_ratio([batch, Difference("dtype", "fp16", "fp32")]) == 0.25
    assert batch_ratio([Difference(BATCH_SIZE, 1, 0.5, hides_pruning=True)]) == 0.5
    assert batch_ratio([batch, Difference("prompt_len", 8, 2, hides_pruning=True)]) is None
    assert batch_ratio([Difference("batch", None, 2, hides_pruning=True)]) is None


def test_half_the_batch_of_a_real_model(real_trace: Callable[[str], Path]) -> None:
    """Particle Transformer with 256 instead of 512 jets; its products of 71 particles."""
    phase = analyze(
        real_trace("../strangers2/part_a100_bs256_jit.json.gz"),
        baseline=real_trace("../strangers2/part_a100_bs512_cold.json.gz"),
    ).report.phases["trace"]
    assert "half the batch" in headline(phase)
    assert phase.busy_ns == pytest.approx(47.588e6, abs=1e3)
    assert phase.ladder is not None and phase.ladder.nominal is None


def convolution(batch: int, channels: int = 16) -> Any:
    shapes = ([batch, 3, 32, 32], [channels, 3, 4, 4], [0, 0], [4, 4], [1, 1], [], [], [], [])
    concrete = ("", "", "[0, 0]", "[4, 4]", "[1, 1]", "1", "False", "False", "True")
    kernels = [k(us=20, name="implicit_convolve_sgemm")]
    return op("aten::cudnn_convolution", *shapes, concrete=concrete, kernels=kernels)


def images(batch: int, tokens: int = 64) -> Any:
    """A patch embedding of images, and two linears of `tokens` tokens an image."""
    linear = op("aten::mm", [batch * tokens, 64], [64, 64], kernels=[k(us=10, name="gemm")])
    return chrome(convolution(batch), linear, linear)


def test_a_batch_of_images_is_one_of_convolutions_too(tmp_path: Path) -> None:
    phase = compared(images(8), images(4), tmp_path)
    assert "other inputs (half the batch)" in headline(phase)


def test_tokens_that_were_dropped_after_the_patch_embedding_are_no_other_input(
    tmp_path: Path,
) -> None:
    """As many images as before, and half of their tokens: rows fell in one ratio all the same."""
    phase = compared(images(8), images(8, tokens=32), tmp_path)
    assert phase.comparison is not None
    assert not phase.comparison.differences


def test_convolutions_alone_tell_the_batch(tmp_path: Path) -> None:
    """Without a product, and with other channels, which are no other batch."""

    dense, half, narrow = (chrome(convolution(*of)) for of in ((8,), (4,), (4, 8)))
    assert "other inputs (half the batch)" in headline(compared(dense, half, tmp_path))
    narrower = compared(dense, narrow, tmp_path)
    assert "other inputs" not in headline(narrower)
    assert narrower.family is not None and narrower.family.id == "unknown"
    assert narrower.family.evidence == [
        "channels of convolutions: 1 of 1 convolutions have fewer, as implicit GEMMs N 16 → 8 in "
        "the largest; families are of linears, and the table of GEMMs lists no convolution"
    ]


def test_micro_batches_run_every_product_more_often(tmp_path: Path) -> None:
    """Gradients of three batches in a step, where the dense step has one: 3 x the products, in the
    same shapes. A third of them may as well be a model of a third of the layers."""
    single, three = forwards(1), forwards(3)
    phase = compared(single, three, tmp_path)
    assert "every GEMM runs 3 × as often a step, in the same shapes: other inputs" in headline(
        phase
    )
    assert phase.family is not None and phase.family.id == "outside"
    assert phase.ladder is not None and phase.ladder.nominal is None
    assert "other inputs" not in headline(compared(three, single, tmp_path))


def forwards(times: int) -> Any:
    """As many forwards of two linears."""
    linears = [
        op("aten::mm", [64, k_in], [k_in, n], kernels=[k(us=10, name="gemm")])
        for n, k_in in ((96, 64), (64, 96)) * times
    ]
    return chrome(*linears)


def test_unequal_numbers_of_steps_are_said(tmp_path: Path) -> None:
    linear = op("aten::mm", [64, 64], [64, 64], kernels=[k(us=10, name="gemm")])
    three, two = (chrome(*(step(i, linear) for i in range(n))) for n in (3, 2))
    said = "profiled steps: 3 of the dense side, 2 of the pruned one"
    assert any(said in note for note in compared(three, two, tmp_path).notes)
    assert not any("profiled steps:" in note for note in compared(two, two, tmp_path).notes)
