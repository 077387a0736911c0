"""Static top-k: the router sends each token to k' of the k experts that it went to.

All experts stay in memory.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import kept_routes, rounding
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.model.expert_counts import watch_experts
from prunescope.tracer.model.forwards import hooked
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.logits import NUM_PROBED, probe
from prunescope.tracer.model.mixtures import find_mixtures, set_in_config
from prunescope.tracer.pruners import Applied


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Route each token to max(1, round(k·p)) experts, p = 1 − s, in each layer that has some.

    Raises:
        PrunescopeError: A token goes to a single expert already, or the model then does not
            send it to k' of them.
    """
    mixtures = find_mixtures(model)
    counts = [kept_routes(mixture.top_k, point.sparsity) for mixture in mixtures]
    if point.sparsity and all(mixture.top_k == 1 for mixture in mixtures):
        raise PrunescopeError(
            "each token goes to a single expert, so that none of its experts can be left out",
            hint="`prunescope families --architecture` says which families apply",
        )
    for mixture, count in zip(mixtures, counts, strict=True):
        mixture.route_to(count)
    set_in_config(model, mixtures, experts=mixtures[0].total, top_k=counts[0])
    by_layer: list[int | None] = [None] * len(decoder_layers(model)[1])
    for mixture, count in zip(mixtures, counts, strict=True):
        by_layer[mixture.layer] = count
    _check(model, counts)
    notes = rounding(counts[0], mixtures[0].top_k, point.sparsity, "experts a token")
    record: Record = {"kept": {"experts_per_token": by_layer}, "notes": notes}
    return Applied(model=model, record=record)


@torch.no_grad()
def _check(model: PreTrainedModel, counts: list[int]) -> None:
    """Check that each token goes to as many experts as `counts` says.

    Raises:
        PrunescopeError: It goes to another number of experts.
    """
    handles, by_path = watch_experts(model)
    with hooked(handles):
        probe(model, "with fewer experts a token")
    seen = [int(routed.counts.sum()) for routed in by_path.values()]
    if seen != [NUM_PROBED * count for count in counts]:
        raise PrunescopeError(
            f"{type(model).__name__} does not take the number of experts a token from its router",
            hint="prune it with a function of your own: --method package.module:function",
        )
