"""Static K, low rank: each projection [N, K] becomes two, [r, K] and [N, r].

The rank is that of `taxonomy.keep.low_rank`. The pair takes the name of the matrix that it
replaces, and the bias stays on the second factor.
"""

from __future__ import annotations

from collections import defaultdict

from torch import nn
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import low_rank_or_dense, rank_hint, rounding
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.calibration.collect import calibration_of
from prunescope.tracer.calibration.low_rank import factor
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model.logits import probe
from prunescope.tracer.model.weights import expert_notes, layer_matrices, weight_of
from prunescope.tracer.pruners import Applied


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Factor every projection that the rank makes smaller; the others stay dense."""
    if point.sparsity == 0:
        return Applied(model=model, record={"kept": {"rank": {}}, "notes": ["nothing to factor"]})
    matrices = layer_matrices(model)
    ranks: dict[str, int | None] = {}
    for name, module in matrices.items():
        outputs, inputs = weight_of(module).shape
        ranks[name] = low_rank_or_dense(outputs, inputs, point.sparsity, point.align)
    chosen = {name: rank for name, rank in ranks.items() if rank is not None}
    if not chosen:
        raise PrunescopeError(
            f"at sparsity {point.sparsity} no rank makes any matrix of this model smaller",
            hint=rank_hint(
                ((weight_of(m).shape[0], weight_of(m).shape[1]) for m in matrices.values()),
                point.sparsity,
                point.align,
            ),
        )
    record: Record = {"kept": {"rank": _ranks_by_role(chosen)}, "notes": expert_notes(model)}
    record["notes"] += _rounding_note(matrices, chosen, point.sparsity)
    if len(chosen) < len(ranks):
        roles = sorted({locate(name).role for name in ranks.keys() - chosen.keys()})
        record["notes"].append(
            f"these stay dense, as no rank makes them smaller: {', '.join(roles)}"
        )
    calibration = None
    if point.uses_importance:
        calibration = calibration_of(model, point.calibration, seed=point.seed)
        record["calibration"] = calibration.record
    pairs = factor(model, chosen, calibration)
    for name, pair in pairs.items():
        model.set_submodule(name, pair)
    probe(model, "with low-rank factors")
    return Applied(model=model, record=record)


def _rounding_note(
    matrices: dict[str, nn.Module], ranks: dict[str, int], sparsity: float
) -> list[str]:
    """Write the rounding note of the matrix whose rank is furthest from the sparsity."""
    kept = {}
    for name, rank in ranks.items():
        outputs, inputs = weight_of(matrices[name]).shape
        kept[name] = (rank * (outputs + inputs), outputs * inputs)
    name = max(kept, key=lambda n: abs(1 - kept[n][0] / kept[n][1] - sparsity))
    return rounding(*kept[name], sparsity, f"parameters of {locate(name).role}")


def _ranks_by_role(ranks: dict[str, int]) -> dict[str, list[int]]:
    """Return the ranks of the layers, by role."""
    by_role: dict[str, list[int]] = defaultdict(list)
    for name, rank in ranks.items():
        by_role[locate(name).role].append(rank)
    return dict(by_role)
