"""Statistics of a model's activations on a calibration text, collected by hooks in one pass.

In: a model and token ids [B, L]. Out: Statistics in float32 on the model's device. K is the number
of input features of a linear module, h that of hidden dimensions. Means are over all tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.taxonomy.timings import forwards
from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.calibration.texts import random_ids, read_text, token_rows
from prunescope.tracer.model import compat
from prunescope.tracer.model.expert_counts import Routed, watch_experts
from prunescope.tracer.model.forwards import first_tensor, hooked
from prunescope.tracer.model.layers import PRE_NORM, decoder_layers, num_positions
from prunescope.tracer.model.weights import weights_fingerprint

ROWS, LENGTH = 8, 512
_MAX_CACHED_BYTES = 1 << 30


@dataclass(kw_only=True)
class Statistics:
    """The activation statistics of a model; only those that were requested are filled in."""

    tokens: int = 0
    # Linear module -> [K], the mean square of each input feature.
    squares: dict[str, torch.Tensor] = field(default_factory=dict)
    # Linear module -> [K, K], the mean of x·xᵀ. Modules with the same input share one matrix.
    moments: dict[str, torch.Tensor] = field(default_factory=dict)
    # Reader of the residual stream -> [h, h], the mean of x·xᵀ with every token at RMS 1.
    stream: dict[str, torch.Tensor] = field(default_factory=dict)
    # "<layer>", "<layer>:attention", "<layer>:mlp" -> 1 − mean cosine of what enters and leaves.
    influence: dict[str, float] = field(default_factory=dict)
    # Module of experts -> the tokens of each, and the sums of gate times norm of its output.
    experts: dict[str, Routed] = field(default_factory=dict)


@dataclass(frozen=True)
class _Request:
    """The statistics to collect: the arguments of `collect`, and whether to score experts."""

    squares: Collection[str] = ()
    moments: Collection[str] = ()
    stream: Collection[str] = ()
    influence: bool = False
    experts: bool = False


_CACHE: ContextVar[dict[str, Statistics] | None] = ContextVar("cache", default=None)


def calibration_of(model: Any, given: Calibration | None, *, seed: int) -> Calibration:
    """Return the given calibration, or one of random token ids if no text was tokenised.

    Args:
        model: The model whose vocabulary and number of positions limit the random ids.
        given: The calibration to return, or None.
        seed: The seed of the random ids.

    Returns:
        `given`, or eight sequences of 512 random ids (fewer if the model has fewer positions).
    """
    if given is not None:
        return given
    length = min(LENGTH, num_positions(model) or LENGTH)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = random_ids(vocabulary, batch=ROWS, length=length, seed=seed)
    record = {"text": None, "tokens": ids.numel(), "note": f"random token ids of seed {seed}"}
    return Calibration(batches=ids.split(1), record=record)


def text_calibration(model: Any, tokenizer: Any, text: Path | None = None) -> Calibration:
    """Return the first tokens of the calibration half of a text.

    Args:
        model: The model, which limits the length of a sequence.
        tokenizer: The tokenizer of the model.
        text: A UTF-8 file or the name of a data set; None means Python's own reference prose.

    Returns:
        Up to eight sequences of 512 tokens (fewer if the model has fewer positions), and their
        source.

    Raises:
        PrunescopeError: The text cannot be read or does not fill one sequence.
    """
    source = read_text(text)
    length = min(LENGTH, num_positions(model) or LENGTH)
    ids = token_rows(tokenizer, source.calibration, rows=ROWS, length=length)
    record: Record = {
        "text": source.name,
        "part": source.calibration_part,
        "sha256": source.sha256,
        "tokens": ids.numel(),
        "sequences": len(ids),
    }
    if source.calibration_dataset is not None:
        record["dataset"] = plain(source.calibration_dataset)
    return Calibration(batches=ids.split(1), record=record)


def collect(
    model: Any,
    batches: Sequence[torch.Tensor],
    *,
    squares: Collection[str] = (),
    moments: Collection[str] = (),
    stream: Collection[str] = (),
    influence: bool = False,
) -> Statistics:
    """Run the batches through a model once and collect statistics of the named modules.

    Args:
        model: The model, which is not changed.
        batches: Token ids [B, L], one forward for each.
        squares: Names of the linear modules for which to collect the mean square of each input
            feature.
        moments: Names of the linear modules for which to collect the mean of x·xᵀ.
        stream: Names of the modules whose first input is the residual stream: a norm, or an
            attention or MLP without one before it.
        influence: Whether to collect how much each layer changes the hidden state.

    Returns:
        The statistics. Do not change them: `statistics_cached` may hand them out again.
    """
    return _cached_statistics(model, batches, _Request(squares, moments, stream, influence))


def collect_experts(model: Any, batches: Sequence[torch.Tensor]) -> dict[str, Routed]:
    """Run the batches through a model once, and count and score the experts of each layer.

    Args:
        model: The model, which is not changed.
        batches: Token ids [B, L], one forward for each.

    Returns:
        The counts and scores by the path of the module that holds the experts.
    """
    return _cached_statistics(model, batches, _Request(experts=True)).experts


def _cached_statistics(
    model: Any, batches: Sequence[torch.Tensor], request: _Request
) -> Statistics:
    """Return the statistics, from the cache if `statistics_cached` set one that holds them."""
    cache = _CACHE.get()
    if cache is None:
        return _collect_once(model, batches, request)
    key = _cache_key(model, batches, request)
    if key in cache:
        return cache[key]
    statistics = _collect_once(model, batches, request)
    cache.clear()
    kinds = (statistics.squares, statistics.moments, statistics.stream)
    totals = {id(total): total for sums in kinds for total in sums.values()}
    if sum(t.numel() * t.element_size() for t in totals.values()) <= _MAX_CACHED_BYTES:
        cache[key] = statistics
    return statistics


def input_squares(
    model: Any, point: Point, *, names: Collection[str], record: Record
) -> dict[str, torch.Tensor]:
    """Return the mean square of each input feature of linear modules, to score their weights.

    Args:
        model: The model, which is not changed.
        point: The pruning request. Its calibration tokens are used, or random ones if it has none.
        names: The names of the linear modules.
        record: The record of the pruning, to which the source of the tokens is added.

    Returns:
        The mean squares [K] by module; empty if the point does not select by importance.
    """
    if not point.uses_importance:
        return {}
    calibration = calibration_of(model, point.calibration, seed=point.seed)
    record["calibration"] = calibration.record
    return collect(model, calibration.batches, squares=names).squares


@contextmanager
def statistics_cached(cache: dict[str, Statistics]) -> Iterator[None]:
    """Let `collect` reuse its last result while the context is open.

    All sparsities of a family need the same statistics of the same weights. Nobody may change the
    results.

    Args:
        cache: The dictionary that holds the last result. A caller that passes the same one again
            continues with it.
    """
    token = _CACHE.set(cache)
    try:
        yield
    finally:
        _CACHE.reset(token)


def _cache_key(model: Any, batches: Sequence[torch.Tensor], request: _Request) -> str:
    """Return a digest of all that statistics depend on: weights, token ids and the request."""
    digest = hashlib.sha256(weights_fingerprint(model).encode())
    for ids in batches:
        digest.update(ids.cpu().contiguous().numpy().tobytes())
    names = [sorted(names) for names in (request.squares, request.moments, request.stream)]
    digest.update(f"{names} {request.influence} {request.experts}".encode())
    return digest.hexdigest()


def _collect_once(model: Any, batches: Sequence[torch.Tensor], request: _Request) -> Statistics:
    """Run the batches through the model once, and turn the sums of the hooks into means."""
    statistics = Statistics(tokens=sum(ids.numel() for ids in batches))
    handles = _attach_hooks(model, statistics, request)
    if request.experts:
        expert_hooks, statistics.experts = watch_experts(model, scored=True)
        handles += expert_hooks
    run_hooked(model, batches, handles)
    tokens = statistics.tokens
    for sums in (statistics.squares, statistics.moments, statistics.stream):
        # A sum that several modules share is divided once.
        means = {id(total): total / tokens for total in sums.values()}
        sums.update({name: means[id(total)] for name, total in sums.items()})
    influence = statistics.influence
    statistics.influence = {name: 1 - total / tokens for name, total in influence.items()}
    return statistics


@forwards()
def run_hooked(model: Any, batches: Sequence[torch.Tensor], handles: Sequence[Any]) -> None:
    """Run each of the batches on a new cache, then remove the hooks that have these handles."""
    with hooked(handles), torch.no_grad():
        for ids in batches:
            ids = ids.to(model.get_input_embeddings().weight.device)
            compat.forward(model, ids, cache=compat.new_cache(model), logits="last")


def _attach_hooks(model: Any, statistics: Statistics, request: _Request) -> list[Any]:
    """Attach the hooks that fill in the requested statistics, and return their handles."""
    handles: list[Any] = []
    modules = dict(model.named_modules())
    kinds = (
        (request.squares, _Sums(statistics.squares, lambda rows: rows.square().sum(0))),
        (request.moments, _Sums(statistics.moments, lambda rows: rows.T @ rows)),
        (request.stream, _Sums(statistics.stream, _unit_outer_sum)),
    )
    for names, sums in kinds:
        handles += [
            modules[name].register_forward_pre_hook(sums.hook(name), with_kwargs=True)
            for name in modules
            if name in names
        ]
    if request.influence:
        name, layers = decoder_layers(model)
        for index, layer in enumerate(layers):
            handles += _Influence(f"{name}.{index}", statistics.influence).attach(layer)
    return handles


class _Sums:
    """The sums of a statistic over the inputs of modules.

    Consecutive modules with the same input tensor share one sum, which is computed once.
    """

    def __init__(self, totals: dict[str, torch.Tensor], statistic: Any) -> None:
        self.totals, self.statistic = totals, statistic
        self.last: torch.Tensor | None = None
        self.owner = ""
        self.owners: dict[str, str] = {}

    def hook(self, name: str) -> Any:
        """Return a pre-hook that adds the input of the module `name` to its sum."""

        def add(_module: nn.Module, args: Any, kwargs: Any) -> None:
            entering = first_tensor(args, kwargs)
            if entering is not self.last:
                self.last, self.owner = entering, name
            owner = self.owners.setdefault(name, self.owner)
            if owner == name:
                value = self.statistic(entering.detach().flatten(0, -2).float())
                if name in self.totals:
                    self.totals[name] += value
                else:
                    self.totals[name] = value
            self.totals[name] = self.totals[owner]

        return add


class _Influence:
    """The cosine between what enters and what leaves a layer, summed over tokens.

    In a layer with a norm before each sublayer, the same of attention and MLP. 1 − its mean is the
    block influence of ShortGPT (arXiv 2403.03853).
    """

    def __init__(self, path: str, totals: dict[str, float]) -> None:
        self.path, self.totals = path, totals
        self.entered = self.between = torch.empty(0)

    def attach(self, layer: nn.Module) -> list[Any]:
        """Attach the hooks to a layer, and return their handles."""
        handles = [
            layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            layer.register_forward_hook(self._leave),
        ]
        children = dict(layer.named_children())
        if children.keys() >= PRE_NORM and "pre_feedforward_layernorm" not in children:
            norm = children["post_attention_layernorm"]
            handles.append(norm.register_forward_pre_hook(self._pass, with_kwargs=True))
        return handles

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.entered, self.between = first_tensor(args, kwargs), torch.empty(0)

    def _pass(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.between = first_tensor(args, kwargs)
        self._add(":attention", self.entered, self.between)

    def _leave(self, _module: nn.Module, _args: Any, output: Any) -> None:
        left = output[0] if isinstance(output, tuple) else output
        self._add("", self.entered, left)
        if self.between.numel():
            self._add(":mlp", self.between, left)

    def _add(self, part: str, before: torch.Tensor, after: torch.Tensor) -> None:
        cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
        name = f"{self.path}{part}"
        self.totals[name] = self.totals.get(name, 0.0) + float(cosine.sum())


def _unit_outer_sum(rows: torch.Tensor) -> torch.Tensor:
    """Return the sum of x·xᵀ over rows that are scaled to RMS 1.

    Every token has the same weight then, as the norm that reads the stream scales it in the same
    way.
    """
    scale = rows.square().mean(1, keepdim=True).rsqrt()
    scaled = rows * scale.nan_to_num(posinf=0.0)
    return scaled.T @ scaled
