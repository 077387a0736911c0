"""Statistics of a model's activations on a calibration text, by forward hooks in one pass.

In: a model and token ids [B, L]. Out: Statistics in float32 on the model's device. K is the input
features of a linear module, h the hidden dimensions; means are over all tokens.
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
from prunescope.taxonomy.run_blocks import Record
from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.calibration.texts import random_ids, read_text, token_rows
from prunescope.tracer.model import compat
from prunescope.tracer.model.forwards import first_tensor, hooked
from prunescope.tracer.model.layers import PRE_NORM, decoder_layers, num_positions
from prunescope.tracer.model.routed import Routed, watch_experts
from prunescope.tracer.model.weights import weights_fingerprint

ROWS, LENGTH = 8, 512
_MAX_CACHED_BYTES = 1 << 30


@dataclass(kw_only=True)
class Statistics:
    """Activation statistics; only those requested from `collect` are filled in."""

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
    """A measurement: the arguments of `collect`, and whether of experts."""

    squares: Collection[str] = ()
    moments: Collection[str] = ()
    stream: Collection[str] = ()
    influence: bool = False
    experts: bool = False


_CACHE: ContextVar[dict[str, Statistics] | None] = ContextVar("cache", default=None)


def calibration_of(model: Any, given: Calibration | None, *, seed: int) -> Calibration:
    """`given`, or random token ids from the seed if no text was tokenised."""
    if given is not None:
        return given
    length = min(LENGTH, num_positions(model) or LENGTH)
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = random_ids(vocabulary, batch=ROWS, length=length, seed=seed)
    record = {"text": None, "tokens": ids.numel(), "note": f"random token ids of seed {seed}"}
    return Calibration(batches=ids.split(1), record=record)


def text_calibration(model: Any, tokenizer: Any, text: Path | None = None) -> Calibration:
    """The first tokens of a text's calibration half. Raises PrunescopeError for a bad text."""
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
    """Run the batches through `model` once and collect statistics of the named modules.

    `squares`, `moments` name linear modules, `stream` modules whose first input is the residual
    stream (a norm, or an attention or MLP without one before it).
    """
    return _once(model, batches, _Request(squares, moments, stream, influence))


def collect_experts(model: Any, batches: Sequence[torch.Tensor]) -> dict[str, Routed]:
    """Run the batches through `model` once and count and score the experts of each layer, by the
    path of their module."""
    return _once(model, batches, _Request(experts=True)).experts


def _once(model: Any, batches: Sequence[torch.Tensor], request: _Request) -> Statistics:
    """The statistics, from the cache where it has them."""
    cache = _CACHE.get()
    if cache is None:
        return _collected(model, batches, request)
    key = _key(model, batches, request)
    if key in cache:
        return cache[key]
    found = _collected(model, batches, request)
    cache.clear()
    totals = {id(t): t for s in (found.squares, found.moments, found.stream) for t in s.values()}
    if sum(t.numel() * t.element_size() for t in totals.values()) <= _MAX_CACHED_BYTES:
        cache[key] = found
    return found


def input_squares(
    model: Any, point: Point, *, names: Collection[str], record: Record
) -> dict[str, torch.Tensor]:
    """The mean square [K] of each input feature of the named linear modules, on the point's tokens
    or on random ones; their source is added to `record`. Empty for a random selection."""
    if not point.by_importance:
        return {}
    calibration = calibration_of(model, point.calibration, seed=point.seed)
    record["calibration"] = calibration.record
    return collect(model, calibration.batches, squares=names).squares


@contextmanager
def statistics_cached(cache: dict[str, Statistics]) -> Iterator[None]:
    """Within, `collect` stores its last result in `cache` and reuses it: the sparsities of a family
    need the same statistics of the same weights. The results must not be changed."""
    token = _CACHE.set(cache)
    try:
        yield
    finally:
        _CACHE.reset(token)


def _key(model: Any, batches: Sequence[torch.Tensor], request: _Request) -> str:
    digest = hashlib.sha256(weights_fingerprint(model).encode())
    for ids in batches:
        digest.update(ids.cpu().contiguous().numpy().tobytes())
    names = [sorted(names) for names in (request.squares, request.moments, request.stream)]
    digest.update(f"{names} {request.influence} {request.experts}".encode())
    return digest.hexdigest()


def _collected(model: Any, batches: Sequence[torch.Tensor], request: _Request) -> Statistics:
    found = Statistics()
    handles = _hooks(model, found, request)
    if request.experts:
        watching, found.experts = watch_experts(model, scored=True)
        handles += watching
    run_hooked(model, batches, handles)
    found.tokens = sum(ids.numel() for ids in batches)
    for sums in (found.squares, found.moments, found.stream):
        # A sum that several modules share is divided once.
        means = {id(total): total / found.tokens for total in sums.values()}
        sums.update({name: means[id(total)] for name, total in sums.items()})
    found.influence = {name: 1 - total / found.tokens for name, total in found.influence.items()}
    return found


def run_hooked(model: Any, batches: Sequence[torch.Tensor], handles: Sequence[Any]) -> None:
    """Run the batches, each on a new cache, then remove the hooks of these handles."""
    with hooked(handles), torch.no_grad():
        for ids in batches:
            ids = ids.to(model.get_input_embeddings().weight.device)
            compat.forward(model, ids, cache=compat.new_cache(model), logits="last")


def _hooks(model: Any, found: Statistics, request: _Request) -> list[Any]:
    """Attach the hooks; returns their handles."""
    handles: list[Any] = []
    modules = dict(model.named_modules())
    statistics = (
        (request.squares, _Sums(found.squares, lambda rows: rows.square().sum(0))),
        (request.moments, _Sums(found.moments, lambda rows: rows.T @ rows)),
        (request.stream, _Sums(found.stream, _unit_outer_sum)),
    )
    for names, sums in statistics:
        handles += [
            modules[name].register_forward_pre_hook(sums.hook(name), with_kwargs=True)
            for name in modules
            if name in names
        ]
    if request.influence:
        name, layers = decoder_layers(model)
        for index, layer in enumerate(layers):
            handles += _Influence(f"{name}.{index}", found.influence).attach(layer)
    return handles


class _Sums:
    """Sums a statistic of a module's input. Consecutive modules with the same input tensor share
    the sum, which is computed once."""

    def __init__(self, totals: dict[str, torch.Tensor], statistic: Any) -> None:
        self.totals, self.statistic = totals, statistic
        self.last: torch.Tensor | None = None
        self.owner = ""
        self.owners: dict[str, str] = {}

    def hook(self, name: str) -> Any:
        """A pre-hook for the module `name`."""

        def add(_module: nn.Module, args: Any, kwargs: Any) -> None:
            entering = first_tensor(args, kwargs)
            if entering is not self.last:
                self.last, self.owner = entering, name
            owner = self.owners.setdefault(name, self.owner)
            if owner == name:
                self._add(name, entering)
            self.totals[name] = self.totals[owner]

        return add

    def _add(self, name: str, entering: torch.Tensor) -> None:
        value = self.statistic(entering.detach().flatten(0, -2).float())
        if name in self.totals:
            self.totals[name] += value
        else:
            self.totals[name] = value


class _Influence:
    """1 − cosine between input and output of a layer and, in layers with a norm before each
    sublayer, of its sublayers: the block influence of ShortGPT (arXiv 2403.03853)."""

    def __init__(self, path: str, totals: dict[str, float]) -> None:
        self.path, self.totals = path, totals
        self.entered = self.between = torch.empty(0)

    def attach(self, layer: nn.Module) -> list[Any]:
        """Hooks on a layer; returns their handles."""
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
    """Every token has the same weight: the norm that reads the stream scales it to RMS 1."""
    scale = rows.square().mean(1, keepdim=True).rsqrt()
    scaled = rows * scale.nan_to_num(posinf=0.0)
    return scaled.T @ scaled
