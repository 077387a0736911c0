"""Static NK, cross-layer: the residual stream keeps h' of its h dimensions at each junction.

A junction has a basis Q [h, h']: h' of the dimensions themselves (the norms then keep their
gains), or h' orthonormal directions (the gains are folded into the matrices that read the stream
first). Where junctions differ, each sublayer's residual goes through a dense Qᵀ_new·Q_old.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from taxonomy.errors import PrunescopeError
from taxonomy.keep import kept_hidden, rounding
from tracer.calibration import calibration_of, collect
from tracer.layers import probe, text_config
from tracer.pruners import Applied, Point, draw
from tracer.scores import best, seeded
from tracer.stream import Stream, Sublayer, gain_and_offset, read_stream


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Keep up16(int(h·p)) dimensions: K of what reads the stream, N of what writes to it."""
    if point.sparsity == 0:
        return Applied(model=model, record={"kept": {}, "notes": ["nothing to remove"]})
    stream = read_stream(model)
    kept = kept_hidden(stream.hidden, point.sparsity)
    same = point.knobs["junctions"] == "same"
    record: dict[str, Any] = {"kept": {"hidden": kept}, "junctions": point.knobs["junctions"]}
    bases = _bases(model, stream, point, kept, record)
    record.setdefault("notes", []).extend(
        rounding(kept, stream.hidden, point.sparsity, "dimensions of the residual stream")
    )
    folded = bases[0].directions is not None
    record["basis"] = "directions" if folded else "dimensions"
    if not same:
        _add_maps(model, stream, bases)
    _narrow(model, stream, bases, folded=folded)
    _settle_config(model, stream, kept, tied=not folded and same)
    probe(model, "with a narrower residual stream")
    applied = Applied(model=model, record=record)
    if not folded:
        names = ["stream"] if same else [f"junction {i}" for i in range(len(bases))]
        applied.kept = {n: b.dimensions.tolist() for n, b in zip(names, bases, strict=False)}
    return applied


class Basis:
    """What a junction keeps: `dimensions` [h'] of the stream, or `directions` Q [h, h']."""

    def __init__(
        self, *, dimensions: torch.Tensor | None = None, directions: torch.Tensor | None = None
    ) -> None:
        self.directions = directions
        self.dimensions: Any = dimensions

    def reads(self, weight: torch.Tensor) -> torch.Tensor:
        """W·Q of a matrix [N, h] that reads the stream: [N, h']."""
        if self.directions is None:
            return weight.index_select(1, self.dimensions)
        return weight @ self.directions

    def writes(self, weight: torch.Tensor) -> torch.Tensor:
        """Qᵀ·W of a matrix [h, K] (or a bias [h]) that writes to the stream: [h', K]."""
        if self.directions is None:
            return weight.index_select(0, self.dimensions)
        return self.directions.T @ weight

    def matrix(self, hidden: int) -> torch.Tensor:
        """Q [h, h']."""
        if self.directions is None:
            return torch.eye(hidden, device=self.dimensions.device)[:, self.dimensions]
        return self.directions


class MappedLayer(nn.Module):
    """A decoder layer whose residuals go through a linear map from one junction to the next."""

    def __init__(self, layer: Any, attention: Sublayer, mlp: Sublayer) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.attn_norms = (attention.before, attention.after)
        self.mlp_norms = (mlp.before, mlp.after)
        for name in (*self.attn_norms, *self.mlp_norms):
            if name:
                setattr(self, name, getattr(layer, name))
        self.attn_residual: nn.Module = nn.Identity()
        self.mlp_residual: nn.Module = nn.Identity()
        self.attention_type = getattr(layer, "attention_type", None)
        # Granite scales what a sublayer adds.
        self.multiplier = float(getattr(layer, "residual_multiplier", 1.0))

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        """[B, S, h'] at one junction to [B, S, h'] two junctions on."""
        attended, _ = self.self_attn(self._norm(self.attn_norms[0], hidden_states), **arguments)
        attended = self._scaled(self._norm(self.attn_norms[1], attended))
        hidden_states = self.attn_residual(hidden_states) + attended
        transformed = self.mlp(self._norm(self.mlp_norms[0], hidden_states))
        transformed = self._scaled(self._norm(self.mlp_norms[1], transformed))
        return self.mlp_residual(hidden_states) + transformed

    def _norm(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self, name)(inputs) if name else inputs

    def _scaled(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs if self.multiplier == 1.0 else outputs * self.multiplier


def _bases(
    model: Any, stream: Stream, point: Point, kept: int, record: dict[str, Any]
) -> list[Basis]:
    """A basis for each junction; the same object for all where junctions are the same."""
    same, count = point.knobs["junctions"] == "same", len(stream.sublayers) + 1
    device = stream.embedding.weight.device
    if not stream.rotatable:
        record["notes"] = [
            "a norm stands between each sublayer and the stream: single dimensions are kept"
        ]
    if point.calibrated:
        calibration = calibration_of(model, point.calibration, seed=point.seed)
        record["calibration"] = calibration.record
        seen = collect(model, calibration.batches, stream=stream.entrances()).stream
        moments = [seen[name] for name in stream.entrances()]
        moments = [torch.stack(moments).mean(0)] if same else moments
        shares = [_principal(moment, kept, rotate=stream.rotatable) for moment in moments]
        record["energy"] = sum(share for _, share in shares) / len(shares)
        bases = [basis for basis, _ in shares]
    elif same or not stream.rotatable:
        names = ["stream"] if same else [f"stream {i}" for i in range(count)]
        drawn = [draw(stream.hidden, kept, seed=point.seed, what=name) for name in names]
        bases = [Basis(dimensions=torch.tensor(index, device=device)) for index in drawn]
    else:
        bases = [
            _random_directions(stream.hidden, kept, point.seed, i, device) for i in range(count)
        ]
    return bases * count if same else bases


def _principal(moment: torch.Tensor, kept: int, *, rotate: bool) -> tuple[Basis, float]:
    """The basis of the most energy, and its share of it: principal directions (SliceGPT, arXiv
    2401.15024) or, where the stream cannot be rotated, single dimensions."""
    if not rotate:
        energy = moment.diagonal()
        index = torch.tensor(best(energy, kept), device=moment.device)
        share = min(1.0, float(energy[index].sum() / energy.sum()))
        return Basis(dimensions=index), share
    energy, directions = torch.linalg.eigh(moment)
    basis = Basis(directions=directions[:, -kept:].contiguous())
    return basis, min(1.0, float(energy[-kept:].sum() / energy.sum()))


def _random_directions(
    hidden: int, kept: int, seed: int, junction: int, device: torch.device
) -> Basis:
    drawn = torch.randn(hidden, kept, generator=seeded(seed, f"stream {junction}"))
    return Basis(directions=torch.linalg.qr(drawn.to(device)).Q)


def _narrow(model: Any, stream: Stream, bases: list[Basis], *, folded: bool) -> None:
    """Replace every weight that touches the stream by its part in the bases."""
    norms = dict(model.named_modules())
    for index, sublayer in enumerate(stream.sublayers):
        entering, leaving = bases[index], bases[index + 1]
        gain = None
        if sublayer.before:
            norm = norms[f"{sublayer.layer}.{sublayer.before}"]
            gain = _narrow_norm(norm, stream.hidden, entering, folded=folded)
        for reader in sublayer.readers:
            _set_linear(reader, entering.reads(_folded(reader.weight, gain)))
        if sublayer.after:
            norm = norms[f"{sublayer.layer}.{sublayer.after}"]
            _narrow_norm(norm, stream.hidden, leaving, folded=False)
        bias = sublayer.writer.bias
        _set_linear(sublayer.writer, leaving.writes(sublayer.writer.weight.detach().float()))
        if bias is not None:
            sublayer.writer.bias = _parameter(leaving.writes(bias.detach().float()), bias.dtype)
    final = _narrow_norm(norms[stream.final_norm], stream.hidden, bases[-1], folded=folded)
    head = bases[-1].reads(_folded(stream.head.weight, final))
    table = stream.embedding.weight
    narrow = _parameter(bases[0].reads(table.detach().float()), table.dtype)
    tied = stream.head.weight is table and bases[0] is bases[-1] and not folded
    stream.embedding.weight, stream.embedding.embedding_dim = narrow, narrow.shape[1]
    _set_linear(stream.head, head)
    if tied:
        stream.head.weight = narrow


def _narrow_norm(norm: Any, hidden: int, basis: Basis, *, folded: bool) -> torch.Tensor | None:
    """Make an RMS norm one of h' dimensions; returns the gain [h] that readers take over.

    The mean square stays the one over h, of which the dimensions that are gone are zero: with
    c = √(h/h'), g·x/√(Σx²/h + ε) = c·g·x/√(Σx²/h' + ε·h/h').
    """
    gain, offset = gain_and_offset(norm, hidden)
    dtype, device = norm.weight.dtype, norm.weight.device
    kept = basis.matrix(hidden).shape[1] if folded else basis.dimensions.numel()
    scale = (hidden / kept) ** 0.5
    own = torch.ones(kept, device=device) if folded else scale * gain[basis.dimensions]
    norm.weight = _parameter(own - offset, dtype)
    for name in ("eps", "variance_epsilon"):
        if isinstance(getattr(norm, name, None), float):
            setattr(norm, name, getattr(norm, name) * hidden / kept)
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (kept,)
    return scale * gain if folded else None


def _add_maps(model: Any, stream: Stream, bases: list[Basis]) -> None:
    """Put `MappedLayer`s into the model, and check that they compute what the layers did."""
    before = probe(model, "as it is")
    layers = model.get_submodule(stream.layers)
    for index, layer in enumerate(layers):
        layers[index] = MappedLayer(layer, *stream.sublayers[2 * index : 2 * index + 2])
    after = probe(model, "with its layers taken apart")
    if not torch.allclose(before.float(), after.float(), rtol=1e-2, atol=1e-3):
        raise PrunescopeError(
            f"the layers of {type(model).__name__} do more than norm, sublayer and residual add",
            hint="use --set junctions=same, which leaves the layers' own code in place",
        )
    for index, layer in enumerate(layers):
        old, middle, new = bases[2 * index : 2 * index + 3]
        dtype = stream.embedding.weight.dtype
        layer.attn_residual = _map(old, middle, stream.hidden, dtype)
        layer.mlp_residual = _map(middle, new, stream.hidden, dtype)


def _map(old: Basis, new: Basis, hidden: int, dtype: torch.dtype) -> nn.Linear:
    weight = new.writes(old.matrix(hidden))
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = _parameter(weight, dtype)
    return linear


def _settle_config(model: Any, stream: Stream, kept: int, *, tied: bool) -> None:
    """`hidden_size` is h' from now on; the head dimension must not follow it."""
    config = text_config(model)
    if getattr(config, "head_dim", None) is None:
        config.head_dim = config.hidden_size // config.num_attention_heads
    config.hidden_size = kept
    if not tied:
        config.tie_word_embeddings = False
        model.config.tie_word_embeddings = False
    for sublayer in stream.sublayers:
        for name in (sublayer.layer, f"{sublayer.layer}.mlp"):
            module = model.get_submodule(name)
            if getattr(module, "hidden_size", None) == stream.hidden:
                module.hidden_size = kept


def _folded(weight: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    wide = weight.detach().float()
    return wide if gain is None else wide * gain


def _set_linear(linear: nn.Linear, weight: torch.Tensor) -> None:
    linear.weight = _parameter(weight, linear.weight.dtype)
    linear.out_features, linear.in_features = weight.shape


def _parameter(value: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(value.to(dtype).contiguous(), requires_grad=False)
