"""Pairs that differ in the number of keys alone: attention reads fewer, and nothing else fell.

In: GEMM pairs of both sides, and both manifests. Out: FewerKeys, or None; and whether another
context of two manifests is that. Evicting keys from the cache leaves two sides like that, and so
does a shorter prompt. The steps do not show which of the two it is, so the sides compare and the
words say so.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.ledger.gemms import Pair
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.runs.run import PhaseRun

# A decode step reads one key more than the one before. Two captures of one generation that begin a
# few steps apart, after other warm-ups, differ by less than this share of a prompt worth evicting.
_LEAST = 0.05


class FewerKeys(Struct, frozen=True):
    """The keys that a query reads in the layers that read fewer.

    Attributes:
        dense: The keys of the dense layer that lost most.
        pruned: What is left of as many keys, in each layer.
        layers: The layers that read fewer.
        is_decode: Whether there is one query: else another length would be another M of every
            linear.
    """

    dense: float
    pruned: frozenset[float]
    layers: frozenset[int]
    is_decode: bool


def fewer_keys(pairs: Sequence[Pair], *, steps: int) -> FewerKeys | None:
    """Return the keys that attention no longer reads; None where anything else fell.

    N of its Q·Kᵀ and K of its P·V fell, and every other product is as large as before.

    Args:
        pairs: The pairs of GEMMs.
        steps: The steps of both sides together. Each adds a key in decode, so a difference of
            no more
            keys than steps may come from other steps of one generation.
    """
    moved = [pair for pair in pairs if pair.axis != "none"]
    layers = {pair.key[0] for pair in moved}
    known = [keys for pair in moved if (keys := _read_keys(pair)) is not None]
    if not moved or len(known) < len(moved) or None in layers:
        return None
    dense, pruned = max(known, key=lambda keys: keys[0] - keys[1])
    left = frozenset(after for before, after in known if before == dense)
    is_decode = all(pair.dense is not None and pair.dense.m == 1 for pair in moved)
    if is_decode and dense - pruned <= max(steps, _LEAST * dense):
        return None
    numbers = frozenset(layer for layer in layers if layer is not None)
    return FewerKeys(dense, left, numbers, is_decode)


def _read_keys(pair: Pair) -> tuple[float, float] | None:
    """Return the dense and pruned keys of a product of attention.

    None where anything else differs, or a size is unknown.
    """
    old, new = pair.gemms
    if old is None or new is None:
        return None
    sizes = {"qk": (old.n, new.n), "pv": (old.k, new.k)}.get(pair.key[2])
    if sizes is None or not 0 < sizes[1] < sizes[0]:
        return None
    n, k = (new.n, old.k) if pair.key[2] == "qk" else (old.n, new.k)
    return sizes if Gemm(old.m, n, k, old.batch) == new else None


def is_context_of_fewer_keys(dense: SidePhase, pruned: SidePhase, pairs: Sequence[Pair]) -> bool:
    """Return whether another context of two manifests is fewer keys alone.

    Code of the user's own records the tokens of a step and what its cache holds, and no prompt: a
    cache that was cut looks like that of a shorter prompt. A run of `prunescope trace` records its
    prompt, so that a different context is a different position in it.
    """
    old, new = dense.run, pruned.run
    if old is None or new is None or not (_records_no_prompt(old) and _records_no_prompt(new)):
        return False
    steps = dense.kernels.num_steps + pruned.kernels.num_steps
    fewer = fewer_keys(pairs, steps=steps)
    return new.context < old.context and fewer is not None and fewer.is_decode


def _records_no_prompt(run: PhaseRun) -> bool:
    """Return whether the prompt of a manifest is only the tokens of a step.

    These follow the tokens in the cache.
    """
    if not run.positions:
        return False
    first, last = run.positions[0], run.positions[-1]
    step = run.batch * run.prompt_len
    return first > 0 and last - first == run.prompt_len and run.tokens_per_step == step
