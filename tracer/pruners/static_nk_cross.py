"""Static NK, cross-layer: the residual stream keeps h' of its h dimensions at each junction.

A junction has a basis Q [h, h']: h' of the dimensions themselves (the norms then keep their gains),
or h' orthonormal directions (the gains are folded into the matrices that read the stream first).
Where junctions differ, each block's residual goes through a dense Qᵀ_new·Q_old.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunescope.taxonomy.keep import kept_hidden, rounding
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.tracer.calibration.collect import calibration_of, collect
from prunescope.tracer.calibration.point import Point
from prunescope.tracer.calibration.scores import best, sample_indices, seeded
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.logits import agree, probe
from prunescope.tracer.model.narrow import keep_head_dim
from prunescope.tracer.pruners import Applied
from prunescope.tracer.residual.maps import add_maps
from prunescope.tracer.residual.norms import CONVERTED, convert_norms, narrow_stream_norm
from prunescope.tracer.residual.ports import Basis, Port, scale_axis, set_widths
from prunescope.tracer.residual.stream import Stream, read_stream, unsupported


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Keep int(h·p) dimensions of the residual stream, aligned, p = 1 − s.

    They are K of the matrices that read the stream, and N of those that write to it.
    """
    if point.sparsity == 0:
        return Applied(model=model, record={"kept": {}, "notes": ["nothing to remove"]})
    stream = read_stream(model)
    kept = kept_hidden(stream.hidden, point.sparsity, point.align)
    same = point.knobs["junctions"] == "same"
    record: Record = {"kept": {"hidden": kept}, "junctions": point.knobs["junctions"]}
    converted = convert_norms(model, stream)
    record["notes"] = [CONVERTED] if converted else []
    _check_ports(model, stream)
    bases = _bases(model, stream, point, kept, record)
    record["notes"] += rounding(
        kept, stream.hidden, point.sparsity, "dimensions of the residual stream"
    )
    folded = bases[0].directions is not None
    record["basis"] = "directions" if folded else "dimensions"
    if not same:
        add_maps(model, stream, bases)
    _narrow(model, stream, bases, folded=folded)
    _update_config(model, stream, kept)
    probe(model, "with a narrower residual stream")
    applied = Applied(model=model, record=record)
    if not folded:
        names = ["stream"] if same else [f"junction {i}" for i in range(len(bases))]
        applied.kept = {n: b.dimensions.tolist() for n, b in zip(names, bases, strict=False)}
    return applied


def _check_ports(model: Any, stream: Stream) -> None:
    """Check that every reader and writer of the stream was found.

    The model must give the same logits with all h dimensions permuted and half of them negated.
    Nothing is rounded, so that the weights are then restored exactly.

    Raises:
        PrunescopeError: The logits differ.
    """
    rng = torch.Generator().manual_seed(0)
    order = torch.randperm(stream.hidden, generator=rng).to(stream.device)
    signs = torch.randint(2, (stream.hidden,), generator=rng).to(stream.device) * 2.0 - 1
    back = order.argsort()
    count = len(stream.blocks) + 1
    _narrow(model, stream, [Basis(dimensions=order, signs=signs)] * count, folded=False)
    if not agree(probe(model, "with its residual stream in another order"), stream.logits):
        raise unsupported(model, "its layers have a reader or writer that was not found")
    _narrow(model, stream, [Basis(dimensions=back, signs=signs[back])] * count, folded=False)


def _bases(model: Any, stream: Stream, point: Point, kept: int, record: Record) -> list[Basis]:
    """Choose a basis for each junction; one object for all if junctions are the same."""
    same, count = point.knobs["junctions"] == "same", len(stream.blocks) + 1
    if not stream.is_rotatable:
        record["notes"].append(
            "a norm stands between each sublayer and the stream: single dimensions are kept"
        )
    if point.uses_importance:
        calibration = calibration_of(model, point.calibration, seed=point.seed)
        record["calibration"] = calibration.record
        seen = collect(model, calibration.batches, stream=stream.entrances()).stream
        moments = [seen[name] for name in stream.entrances()]
        moments = [torch.stack(moments).mean(0)] if same else moments
        shares = [_principal(moment, kept, rotate=stream.is_rotatable) for moment in moments]
        record["energy"] = sum(share for _, share in shares) / len(shares)
        bases = [basis for basis, _ in shares]
    elif same or not stream.is_rotatable:
        names = ["stream"] if same else [f"stream {i}" for i in range(count)]
        indices = [
            sample_indices(stream.hidden, kept, seed=point.seed, what=name) for name in names
        ]
        bases = [Basis(dimensions=torch.tensor(index, device=stream.device)) for index in indices]
    else:
        generators = (seeded(point.seed, f"stream {i}") for i in range(count))
        normal = (torch.randn(stream.hidden, kept, generator=rng) for rng in generators)
        bases = [Basis(directions=torch.linalg.qr(x.to(stream.device)).Q) for x in normal]
    return bases * count if same else bases


def _principal(moment: Tensor, kept: int, *, rotate: bool) -> tuple[Basis, float]:
    """Return the basis with the most energy, and its share of the energy.

    It has principal directions (SliceGPT, arXiv 2401.15024) or, if the stream cannot be rotated,
    single dimensions.
    """
    if not rotate:
        energy = moment.diagonal()
        index = torch.tensor(best(energy, kept), device=moment.device)
        share = min(1.0, float(energy[index].sum() / energy.sum()))
        return Basis(dimensions=index), share
    energy, directions = torch.linalg.eigh(moment)
    basis = Basis(directions=directions[:, -kept:].contiguous())
    return basis, min(1.0, float(energy[-kept:].sum() / energy.sum()))


def _narrow(model: Any, stream: Stream, bases: list[Basis], *, folded: bool) -> None:
    """Replace every weight that touches the stream by its part in the bases."""
    width = stream.hidden
    for block, entering, leaving in zip(stream.blocks, bases, bases[1:], strict=False):
        for name, readers in block.norms().items():
            gain = None
            if name:
                gain = narrow_stream_norm(model.get_submodule(name), width, entering, folded=folded)
            _narrow_readers(readers, entering, gain)
        for after in filter(None, (sublayer.after for sublayer in block.sublayers)):
            narrow_stream_norm(model.get_submodule(after), width, leaving, folded=False)
        for port in block.writers():
            port.set(leaving.project(port.weight, port.axis))
        layer = model.get_submodule(block.layer)
        set_widths(layer, block.layer, before=width, after=leaving.kept)
    gain = narrow_stream_norm(
        model.get_submodule(stream.final_norm), width, bases[-1], folded=folded
    )
    tied = stream.tied if not folded and bases[0] is bases[-1] else None
    if tied is None:
        _narrow_readers([stream.head], bases[-1], gain)
    for port in stream.tables:
        port.set(bases[0].project(port.weight, port.axis))
    if tied is not None:
        stream.head.adopt(tied)


def _narrow_readers(readers: list[Port], basis: Basis, gain: Tensor | None) -> None:
    """Narrow readers of the stream, after multiplying them by the gain that they take over."""
    for port in readers:
        weight = port.weight if gain is None else scale_axis(port.weight, gain, port.axis)
        port.set(basis.project(weight, port.axis))


def _update_config(model: Any, stream: Stream, kept: int) -> None:
    """Set `hidden_size` to h', and keep the head dimension from following it."""
    config = text_config(model)
    if getattr(config, "num_attention_heads", None):
        keep_head_dim(config)
    config.hidden_size = kept
    if stream.tied is None:
        config.tie_word_embeddings = False
        model.config.tie_word_embeddings = False
