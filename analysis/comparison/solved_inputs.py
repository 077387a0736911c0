"""Batch and length of both sides, solved for from the shapes of what they run.

A linear multiplies B·S rows, an attention B·heads matrices of S queries by L keys, a convolution B
images of H by W. In: GEMM pairs and convolutions. Out: the Difference of the inputs, or None where
they are the same or cannot be solved for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.call import OF_ATTENTION, Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.notice import Notice, note
from prunescope.analysis.schema.pair_comparison import INPUTS, Difference


class Inputs(Struct, frozen=True):
    """The inputs of a step of one side.

    Attributes:
        batch: The number of sequences.
        length: The tokens of each.
    """

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch} × {self.length} tokens"


def leading_sizes(kernels: Kernels) -> frozenset[tuple[int, int]]:
    """Return the first two sizes of every tensor that the ops of a side read."""
    shapes = (shape for call in kernels.shapes.calls for shape in call.shapes)
    return frozenset(
        (shape[0], shape[1])
        for shape in shapes
        if isinstance(shape, tuple) and len(shape) > 1 and isinstance(shape[0], int)
    )


def solve_inputs(
    pairs: Sequence[Pair],
    convolutions: Sequence[Convolution],
    leading: tuple[Collection[tuple[int, int]], Collection[tuple[int, int]]],
) -> Difference | None:
    """Return a Difference if the batch, or batch and length, of both sides differ.

    Every attention that both sides have must give the same batch and length. A length alone that
    differs is not told from tokens that were dropped, which the rows of all linears show.

    Args:
        pairs: The pairs of GEMMs.
        convolutions: The pairs of convolutions.
        leading: The `leading_sizes` of both sides. Attention in blocks of keys looks like many
            short sequences, but no other tensor holds so many.
    """
    old, new = (_solve_side(calls, of) for calls, of in zip(_sides(pairs), leading, strict=True))
    if old is not None and new is not None and old.batch != new.batch:
        return Difference(INPUTS, str(old), str(new), hides_pruning=True)
    return _compare_images(convolutions)


def unsolved_inputs(pairs: Sequence[Pair], kernels: tuple[Kernels, Kernels]) -> list[Notice]:
    """Return notes on the sides whose batch and length nothing gives, if attentions differ.

    Their heads, batch, queries or keys then do, and which is not known.

    Args:
        pairs: The pairs of GEMMs.
        kernels: The kernels of both sides.
    """
    leading = map(leading_sizes, kernels)
    scores = [(d, p) for d, p in (pair.gemms for pair in pairs if pair.key[2] == "qk") if d and p]
    if all((d.batch, d.m, d.n) == (p.batch, p.m, p.n) for d, p in scores):
        return []
    return [
        note("inputs-unsolved", side=side)
        for side, calls, sizes in zip(("dense", "pruned"), _sides(pairs), leading, strict=True)
        if _solve_side(calls, sizes) is None
    ]


def _sides(pairs: Sequence[Pair]) -> tuple[list[Call], list[Call]]:
    """Return the calls of the dense and of the pruned side."""
    return (
        [p.dense for p in pairs if p.dense is not None],
        [p.pruned for p in pairs if p.pruned is not None],
    )


def _solve_side(calls: Sequence[Call], leading: Collection[tuple[int, int]]) -> Inputs | None:
    """Solve for batch and length of a side; None where its attentions do not agree on them."""
    rows = _count_rows(calls)
    solved = {_solve(call, rows) for call in calls if call.group == "qk"}
    inputs = solved.pop() if len(solved) == 1 else None
    return inputs if inputs is not None and (inputs.batch, inputs.length) in leading else None


def _count_rows(calls: Iterable[Call]) -> dict[int | None, int]:
    """Return the rows that most linears of each layer multiply; of None those of all linears."""
    counts: dict[int | None, Counter[int]] = defaultdict(Counter)
    for call in calls:
        if call.gemm is None or call.group in OF_ATTENTION or call.gemm.batch > 1:
            continue
        for layer in {call.layer, None}:
            counts[layer][call.gemm.m] += 1
    return {layer: count.most_common(1)[0][0] for layer, count in counts.items()}


def _solve(attention: Call, rows: dict[int | None, int]) -> Inputs | None:
    """Solve for batch and length by an attention of one token, or of all tokens to all tokens.

    None where it attends to another number of keys, or no whole number of sequences fits.
    """
    gemm = attention.gemm
    if gemm is None or gemm.m not in (1, gemm.n) or not gemm.m:
        return None
    batch, remainder = divmod(rows.get(attention.layer, rows.get(None, 0)), gemm.m)
    is_whole = batch and not remainder and gemm.batch % batch == 0
    return Inputs(batch, gemm.m) if is_whole else None


def _compare_images(convolutions: Sequence[Convolution]) -> Difference | None:
    """Return a Difference if the first convolution sees as many pixels in other images."""
    if not convolutions:
        return None
    (old, _), (new, _) = convolutions[0].dense, convolutions[0].pruned
    if convolutions[0].ratio != 1.0 or old == new:
        return None
    images = [f"{n} images of {' × '.join(map(str, size))}" for n, _, *size in (old, new)]
    return Difference(INPUTS, images[0], images[1], hides_pruning=True)
