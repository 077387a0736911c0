"""Layers padded with zeros to the sizes that an engine takes: `--legal`.

In: a pruned model and a Legal. Out: the same model with heads and channels whose outputs nothing
reads, so that its logits are the same, and a record of what each layer got. Channels are added up
to a legal number that all layers share; heads too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from prunescope.taxonomy.engines import NAMES, Legal
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.export.holding import mlp_key
from prunescope.tracer.model.channels import Channels, find_channels
from prunescope.tracer.model.heads import Heads, find_heads
from prunescope.tracer.model.layers import decoder_layers, text_config
from prunescope.tracer.model.logits import check_same, probe
from prunescope.tracer.model.narrow import keep_head_dim


@dataclass(frozen=True, kw_only=True)
class _Padded:
    """A part of a layer, and the number of heads or channels that it shall have."""

    layer: int
    part: Heads | Channels
    wanted: int

    @property
    def total(self) -> int:
        """The number that it has."""
        return self.part.kv_heads if isinstance(self.part, Heads) else self.part.total

    def pad(self) -> None:
        """Add copies of the first head or channel, which the output matrix then does not read."""
        before = self.total
        output = self.part.weights["o"] if isinstance(self.part, Heads) else self.part.down
        read = output.k
        self.part.cut([*range(before), *[0] * (self.wanted - before)])
        output.zero_inputs(torch.arange(read, device=output.tensor.device))


def pad(model: Any, legal: Legal) -> Record:
    """Pad a model in place to sizes that an engine takes, the same in all layers.

    Args:
        model: The pruned model.
        legal: The sizes that the engine takes.

    Returns:
        The record for `pruning.padded` of run.json: the engine, the degree of tensor parallelism,
        the sizes of each layer before, the size that all have now, and the added parameters.

    Raises:
        PrunescopeError: The engine takes no size of this model, or padding changes its logits.
    """
    name, layers = decoder_layers(model)
    heads: list[_Padded] = []
    mlps: list[_Padded] = []
    before = _num_parameters(model)
    found_heads = {
        number: part
        for number, layer in enumerate(layers)
        if (part := find_heads(model, layer, f"{name}.{number}")) is not None
    }
    found_mlps = {
        number: next(iter(parts))
        for number, layer in enumerate(layers)
        if len(parts := [c for c in find_channels(layer, f"{name}.{number}") if c.kind == "mlp"])
        == 1
    }
    if found_heads:
        heads = _heads_to_pad(found_heads, legal)
    if found_mlps:
        most = legal.channels(max(part.total for part in found_mlps.values()))
        mlps = [_Padded(layer=n, part=p, wanted=most) for n, p in found_mlps.items()]
    padded = [entry for entry in (*heads, *mlps) if entry.wanted != entry.total]
    record: Record = {"engine": legal.engine, "tp": legal.tp, "parameters": 0}
    for key, entries in (("kv_heads", heads), ("intermediate", mlps)):
        if any(entry.wanted != entry.total for entry in entries):
            record[key] = {"before": [e.total for e in entries], "after": entries[0].wanted}
    if not padded:
        return record
    _check_norms(padded)
    expected = probe(model, "before padding")
    keep_head_dim(text_config(model))
    with torch.no_grad():
        for entry in padded:
            entry.pad()
    _set_config(model, heads, mlps)
    check_same(model, expected, f"with sizes that {NAMES[legal.engine]} takes")
    record["parameters"] = _num_parameters(model) - before
    return record


def _heads_to_pad(found: dict[int, Heads], legal: Legal) -> list[_Padded]:
    """Return the attention of each layer with the least number of KV heads that all can have."""
    groups = {part.heads // part.kv_heads for part in found.values()}
    most = max(part.kv_heads for part in found.values())
    wanted = legal.kv_heads(most, groups.pop()) if len(groups) == 1 else None
    if wanted is None:
        raise PrunescopeError(
            f"{NAMES[legal.engine]} takes no number of heads from {most} KV heads on at tensor "
            f"parallelism {legal.tp}",
            hint="use a smaller --legal-tp, or a method that leaves heads as they are",
        )
    return [_Padded(layer=number, part=part, wanted=wanted) for number, part in found.items()]


def _check_norms(padded: list[_Padded]) -> None:
    """Raise PrunescopeError for a norm over all heads or channels, whose mean zeros change."""
    for entry in padded:
        norms = entry.part.wide_norms if isinstance(entry.part, Heads) else entry.part.norms
        if norms:
            raise PrunescopeError(
                f"{norms[0][0]} is a norm over what would be padded, whose mean zeros change",
                hint="choose a sparsity whose sizes the engine takes: remove --legal to see them",
            )


def _set_config(model: Any, heads: list[_Padded], mlps: list[_Padded]) -> None:
    """Write the sizes that all layers have now into the config."""
    config = text_config(model)
    if heads:
        part = heads[0].part
        assert isinstance(part, Heads)
        group = part.heads // part.kv_heads
        config.num_attention_heads = heads[0].wanted * group
        if getattr(config, "num_key_value_heads", None) is not None:
            config.num_key_value_heads = heads[0].wanted
    if mlps:
        key = mlp_key(config)
        if key:
            setattr(config, key, mlps[0].wanted)


def _num_parameters(model: torch.nn.Module) -> int:
    """Count the weights of a model, shared ones once."""
    return sum(p.numel() for p in model.parameters())
