"""The norms of a residual stream: their kind, read from their outputs, and how they narrow.

A LayerNorm is an RMSNorm of a stream with mean zero (SliceGPT, arXiv 2401.15024): LayerNorm(x)·g +
b = RMSNorm(M·x)·g + b with M = I − 11ᵀ/h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.families import cutting
from prunescope.tracer.model.narrow import epsilons, set_norm_weight, successor
from prunescope.tracer.residual.ports import Basis
from prunescope.tracer.residual.stream import Stream, unsupported

CONVERTED = (
    "layer norms became RMS norms: the mean is taken out of all that writes to the stream, and "
    "their biases are biases of what reads it"
)


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The function of a norm: y = gain·x/rms(x) + bias, where x has mean zero if `subtracts_mean`.

    The gain [h] is offset + weight.
    """

    gain: Tensor  # float32
    offset: float
    bias: Tensor | None  # float32
    subtracts_mean: bool


def read_norm(norm: Any, hidden: int) -> Norm:
    """Read the gain, bias and kind of a norm over the stream.

    Gemma's weights are offsets from 1, and some norms have none. The kind is found by comparing an
    output of the norm with what each kind would give.

    Raises:
        PrunescopeError: The norm is of another kind.
    """
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    like = weight if isinstance(weight, Tensor) else torch.ones(hidden)
    if like.shape != (hidden,):
        raise _norm_refusal(norm)
    # The values have a mean other than 0, which shows whether a norm subtracts it.
    probe = torch.linspace(-1, 3, hidden, device=like.device).to(like.dtype)
    with torch.no_grad():
        output = norm(probe.view(1, 1, -1)).view(-1).float()
    shift = None if bias is None else bias.detach().float()
    stored = like.detach().float()
    for subtracts_mean in (False, True):
        values = probe.float() - (probe.float().mean() if subtracts_mean else 0.0)
        unit = values * values.square().mean().rsqrt()
        for offset in (0.0, 1.0):
            expected = (stored + offset) * unit + (0.0 if shift is None else shift)
            if torch.allclose(output, expected, rtol=0.02, atol=0.02):
                return Norm(
                    gain=stored + offset, offset=offset, bias=shift, subtracts_mean=subtracts_mean
                )
    raise _norm_refusal(norm)


def convert_norms(model: nn.Module, stream: Stream) -> bool:
    """Make every norm of the stream an RMS norm without bias, and return whether any changed.

    Raises:
        PrunescopeError: Only some of the norms subtract the mean, or a reader cannot take a bias.
    """
    folded = _fold_table_norm(model, stream)
    norms = {name: read_norm(model.get_submodule(name), stream.hidden) for name in stream.norms()}
    if not any(norm.subtracts_mean or norm.bias is not None for norm in norms.values()):
        return folded
    if len({norm.subtracts_mean for norm in norms.values()}) > 1 or not stream.is_rotatable:
        raise unsupported(model, "only some of its norms subtract the mean")
    untie_head(stream)
    for port in (*stream.tables, *stream.writers()):
        if norms[stream.final_norm].subtracts_mean:
            port.set(port.weight - port.weight.mean(port.axis, keepdim=True))
    for name, readers in stream.norms().items():
        shift = norms[name].bias
        for reader in readers:
            if shift is not None:
                reader.shift(shift)
        model.set_submodule(name, _rms_norm(model.get_submodule(name), norms[name], stream))
    return True


def narrow_stream_norm(norm: Any, hidden: int, basis: Basis, *, folded: bool) -> Tensor | None:
    """Make an RMS norm one of h' dimensions, and return the gain [h] that readers take over.

    The gain is None unless it is `folded` into the readers. The norm gives what the norm over h
    gave with zeros for the removed dimensions: with c = √(h/h'), g·x/√(Σx²/h + ε) = c·g·x/√(Σx²/h'
    + ε·h/h').

    Raises:
        PrunescopeError: The norm subtracts the mean or adds a bias.
    """
    read = read_norm(norm, hidden)
    if read.subtracts_mean or read.bias is not None:
        raise _norm_refusal(norm)
    scale = (hidden / basis.kept) ** 0.5
    like = norm.weight
    if folded:
        own = torch.full((basis.kept,), 1 - read.offset, device=like.device)
    else:
        own = scale * like.detach().float()[basis.dimensions] + (scale - 1) * read.offset
    set_norm_weight(norm, own, before=hidden)
    return scale * read.gain if folded else None


def untie_head(stream: Stream) -> None:
    """Give a head that shares the embedding table a weight of its own."""
    if stream.tied is not None:
        stream.head.set(stream.head.weight.clone())


def _fold_table_norm(model: nn.Module, stream: Stream) -> bool:
    """Fold a norm right after the embedding table into the table; return whether there was one."""
    if not stream.table_norm:
        return False
    untie_head(stream)
    table = stream.tables[0]
    norm = model.get_submodule(stream.table_norm)
    with torch.no_grad():
        table.set(norm(table.holder.weight))
    model.set_submodule(stream.table_norm, nn.Identity())
    return True


def _rms_norm(norm: Any, read: Norm, stream: Stream) -> nn.Module:
    """Make the RMS norm with the gain of a norm that was read."""
    weight = getattr(norm, "weight", None)
    table = stream.tables[0].holder.weight
    made = nn.RMSNorm(stream.hidden, eps=_epsilon(norm), device="meta")
    made.weight = successor(table if weight is None else weight, read.gain.to(table.device))
    return made.eval()


def _epsilon(norm: Any) -> float:
    """Return the ε of a norm: an attribute, else read from its output for mean square 10⁻⁶."""
    for value in epsilons(norm).values():
        return value
    values = torch.tensor([1e-3, -1e-3]).repeat(512)
    shape = getattr(norm, "normalized_shape", (values.numel(),))
    values = values[: shape[-1]]
    square = float(norm(values).square().mean())
    return 1e-6 * (1 / square - 1)


def _norm_refusal(norm: nn.Module) -> PrunescopeError:
    """Make the error for a norm that is neither an RMS norm nor a layer norm."""
    return PrunescopeError(
        f"{type(norm).__name__} is neither an RMS norm nor a layer norm of the residual stream",
        hint=f"{cutting('stream')} supports norms that divide by the root mean square, with or "
        "without subtracting the mean first",
    )
