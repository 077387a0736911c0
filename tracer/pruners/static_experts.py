"""Static experts: each mixture keeps E' of its E experts; the others are dropped or merged.

Kept are random experts; by importance those with the largest REAP score (arXiv 2510.13999: the
mean, over an expert's tokens, of gate times norm of its output); by frequency those with the most
tokens. With `how=merge`, each expert that goes is averaged into the kept one with the nearest
router row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import ALL_THAT_CAN_GO, kept_experts, rounding
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.taxonomy.words import when
from prunescope.tracer.calibration.collect import calibration_of, collect_experts
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import best, sample_indices
from prunescope.tracer.model.forwards import hooked
from prunescope.tracer.model.layers import decoder_layers, is_known
from prunescope.tracer.model.logits import check_same, probe
from prunescope.tracer.model.mixtures import Mixture, find_mixtures, set_in_config
from prunescope.tracer.pruners import Applied

_LINEARS = (nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__)


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Keep max(k, round(E·p)) experts per layer, p = 1 − s.

    Group-limited routing keeps equally many experts of each group.

    Raises:
        PrunescopeError: A layer has no experts, or its router is not understood.
    """
    mixtures = find_mixtures(model)
    record: Record = {"kept": {}, "notes": []}
    scores = _scores(model, mixtures, point, record)
    # All experts are chosen before any is cut: an error leaves no half-cut model.
    chosen = [_choose(mixture, point, scores.get(mixture.path)) for mixture in mixtures]
    for mixture, kept in zip(mixtures, chosen, strict=True):
        if point.knobs["how"] == "merge":
            weights = scores.get(mixture.path)
            equal = [1.0] * mixture.total
            mixture.merge(_members(mixture, kept), equal if weights is None else weights.tolist())
    masked = None
    if not is_known(model):
        with _masked(mixtures, chosen):
            masked = probe(model, "with experts masked")
    for mixture, kept in zip(mixtures, chosen, strict=True):
        mixture.keep(kept)
    set_in_config(model, mixtures, experts=len(chosen[0]), top_k=mixtures[0].top_k)
    if masked is not None:
        check_same(model, masked, "with experts cut")
    _note(record, model, mixtures, chosen, point)
    paths = [mixture.path for mixture in mixtures]
    return Applied(model=model, record=record, kept=dict(zip(paths, chosen, strict=True)))


def _scores(
    model: Any, mixtures: Sequence[Mixture], point: Point, record: Record
) -> dict[str, Tensor]:
    """Score the experts at each path, [E]; a random selection has no scores.

    Raises:
        PrunescopeError: The experts are a list, which does not show the gates that importance
            needs.
    """
    if point.is_random:
        return {}
    if point.uses_importance and any(mixture.is_list for mixture in mixtures):
        raise PrunescopeError(
            "--select importance needs experts in stacked tensors: a list of experts does not show "
            "the gate of each token",
            hint="use --select frequency",
        )
    calibration = calibration_of(model, point.calibration, seed=point.seed)
    record["calibration"] = calibration.record
    by_path = collect_experts(model, calibration.batches)
    unused = sum(int((routed.counts == 0).sum()) for routed in by_path.values())
    if unused:
        total = sum(mixture.total for mixture in mixtures)
        note = f"{unused} of {total} experts got no token of the calibration text: their score is 0"
        record["notes"].append(note)
    if point.uses_importance:
        return {
            path: (routed.scores / routed.counts.clamp(min=1)).cpu()
            for path, routed in by_path.items()
            if routed.scores is not None
        }
    return {path: routed.counts.double().cpu() for path, routed in by_path.items()}


def _choose(mixture: Mixture, point: Point, scores: Tensor | None) -> list[int]:
    """Choose the experts that stay, ascending; equally many of each group.

    Raises:
        PrunescopeError: Group-limited routing needs all experts.
    """
    size = mixture.total // mixture.groups
    count, least = (
        kept_experts(
            mixture.total,
            mixture.top_k,
            sparsity,
            groups=mixture.groups,
            open_groups=mixture.open_groups,
            ranked_by=mixture.ranked_by,
        )
        // mixture.groups
        for sparsity in (point.sparsity, ALL_THAT_CAN_GO)
    )
    if point.sparsity and mixture.groups > 1 and least == size:
        raise PrunescopeError(
            f"no expert of {mixture.path} can go: a token goes to {mixture.top_k} experts of "
            f"{mixture.open_groups} groups, each of which has {size}",
            hint="`prunescope families --architecture` says which families apply",
        )
    kept: list[int] = []
    for group in range(mixture.groups):
        first = group * size
        if scores is not None:
            chosen = best(scores[first : first + size], count)
        else:
            purpose = f"experts {mixture.layer}{when(group > 0, f' {group}')}"
            chosen = sample_indices(size, count, seed=point.seed, what=purpose)
        kept += [first + i for i in chosen]
    return kept


def _members(mixture: Mixture, kept: Sequence[int]) -> dict[int, list[int]]:
    """Return the experts that are merged into each kept expert.

    These are the kept expert itself, and the removed ones of its group whose router row is nearest
    to its row by cosine.
    """
    rows = nn.functional.normalize(mixture.rows.double(), dim=-1)
    size = mixture.total // mixture.groups
    members = {i: [i] for i in kept}
    for removed in sorted(set(range(mixture.total)) - set(kept)):
        near = [i for i in kept if i // size == removed // size]
        members[near[int((rows[near] @ rows[removed]).argmax())]].append(removed)
    return members


def _note(
    record: Record, model: Any, mixtures: Sequence[Mixture], chosen: list[list[int]], point: Point
) -> None:
    """Record the kept experts of each layer; note where their share differs from the request."""
    by_layer: list[list[int] | None] = [None] * len(decoder_layers(model)[1])
    for mixture, kept in zip(mixtures, chosen, strict=True):
        by_layer[mixture.layer] = kept
    record["kept"]["experts"] = by_layer
    first, left = mixtures[0], len(chosen[0])
    record["notes"] += rounding(left, first.total, point.sparsity, "experts of a layer")
    if first.groups > 1:
        share = left // first.groups
        record["notes"].append(f"{share} experts stay of each of {first.groups} groups")
    if point.knobs["how"] == "merge":
        measure = "score" if point.uses_importance else "frequency"
        parts = "equal parts" if point.is_random else f"parts by {measure}"
        record["notes"].append(
            f"experts are merged in {parts} into the one with the nearest router row, channel by "
            "channel as they stand"
        )


@contextmanager
def _masked(mixtures: Sequence[Mixture], chosen: Sequence[Sequence[int]]) -> Iterator[None]:
    """Set the logits of all routers to −∞ for all but the chosen experts until the context closes.

    The terms that are added to the logits are set likewise.
    """
    mask = _Mask()
    handles: list[Any] = []
    before: list[tuple[Tensor, Tensor]] = []
    for mixture, kept in zip(mixtures, chosen, strict=True):
        removed = torch.ones(mixture.total, dtype=torch.bool)
        removed[list(kept)] = False
        router = (*mixture.routers, mixture.block)[0]
        handles.append(router.register_forward_pre_hook(mask.entering(removed)))
        handles.append(router.register_forward_hook(mask.leaving))
        for term in mixture.terms():
            before.append((term, term.clone()))
            term.masked_fill_(removed.to(term.device), float("-inf"))
    try:
        with hooked(handles), mask:
            yield
    finally:
        for term, values in before:
            term.copy_(values)


class _Mask(TorchFunctionMode):
    """A mode that sets outputs of a router's linears to −∞ where `removed` [E] is true."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: Tensor | None = None

    def entering(self, removed: Tensor) -> Any:
        """Make the pre-hook of a router, which begins masking."""

        def hook(_module: nn.Module, _args: Any) -> None:
            self.removed = removed

        return hook

    def leaving(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        """End masking; a hook of a router."""
        self.removed = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and mask its output."""
        output = func(*args, **(kwargs or {}))
        if self.removed is None or func not in _LINEARS or output.shape[-1] != len(self.removed):
            return output
        return output.masked_fill(self.removed.to(output.device), float("-inf"))
