"""Batch and length of both sides, solved for from the shapes of what they run.

A linear multiplies B·S rows, an attention B·heads matrices of S queries by L keys, a convolution B
images of H by W. In: GEMM pairs and convolutions. Out: the Difference of the inputs, or None where
they are the same or cannot be solved for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.ledger.call import OF_ATTENTION, Call
from prunescope.analysis.ledger.gemms import Pair
from prunescope.analysis.schema.pair_comparison import INPUTS, Difference


@dataclass(frozen=True)
class Inputs:
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
    rows = [_count_rows(p.dense for p in pairs), _count_rows(p.pruned for p in pairs)]
    solved = {
        (_solve(p.dense, rows[0]), _solve(p.pruned, rows[1]))
        for p in pairs
        if p.key[2] == "qk" and p.dense is not None and p.pruned is not None
    }
    if len(solved) == 1:
        ((old, new),) = solved
        known = all(
            i is not None and (i.batch, i.length) in sizes
            for i, sizes in zip((old, new), leading, strict=True)
        )
        if known and old is not None and new is not None and old.batch != new.batch:
            return Difference(INPUTS, str(old), str(new), hides_pruning=True)
    return _compare_images(convolutions)


def _count_rows(calls: Iterable[Call | None]) -> dict[int | None, int]:
    """Return the rows that most linears of each layer multiply; of None those of all linears."""
    counts: dict[int | None, Counter[int]] = defaultdict(Counter)
    for call in calls:
        if call is None or call.gemm is None or call.group in OF_ATTENTION or call.gemm.batch > 1:
            continue
        for layer in {call.layer, None}:
            counts[layer][call.gemm.m] += 1
    return {layer: count.most_common(1)[0][0] for layer, count in counts.items()}


def _solve(attention: Call | None, rows: dict[int | None, int]) -> Inputs | None:
    """Solve for batch and length by an attention of all tokens to all tokens.

    None where it attends to another number of keys, or no whole number of sequences fits.
    """
    gemm = None if attention is None else attention.gemm
    if attention is None or gemm is None or gemm.m != gemm.n or not gemm.m:
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
