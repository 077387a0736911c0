"""Rotary position embedding: the convention that an attention's source uses, and the rotation.

In: vectors [B, heads, T, d], and the position embeddings that a model gives its layers: cos and sin
[1 or B, T, d], or one complex tensor [1 or B, T, d/2].
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor] | Tensor

_PROBE_DIM = 4  # the size of the vector that shows how a rotation pairs dimensions


def source_function(module: Any, name: str) -> Any:
    """Return a function of the source file of a module's class; None if it has no such one."""
    kind = getattr(module, "_extends", type(module))
    return getattr(sys.modules[kind.__module__], name, None)


def read_rotation(module: Any) -> tuple[bool | None, bool]:
    """Return how the module's source pairs dimensions, and whether cos and sin are short.

    The first is True for neighbours, False for halves, and None without a rotation. Short cos and
    sin have one value for each pair. Both are read from what the source makes of a small vector.

    Limitations: a function that takes other arguments is taken to pair halves; if it does not, the
    logits differ and the model is refused.
    """
    function = source_function(module, "apply_rotary_pos_emb")
    if function is None or not getattr(module, "use_rope", True):
        return None, False
    x = torch.arange(1.0, _PROBE_DIM + 1).view(1, 1, 1, _PROBE_DIM)
    for size in (_PROBE_DIM, _PROBE_DIM // 2):
        cos, sin = torch.zeros(1, 1, size), torch.ones(1, 1, size)
        try:
            turned = function(x, x, cos, sin)[0].flatten().tolist()
        except (RuntimeError, TypeError):  # it takes other arguments: the logits will show it
            continue
        return bool(turned == [-2.0, 1.0, -4.0, 3.0]), size < _PROBE_DIM
    return False, False


def read_latent_rotation(module: Any) -> bool | None:
    """Return what `read_rotation` returns first, for the rotated part of a latent attention.

    Its pairs may be complex numbers, which are neighbours.
    """
    if source_function(module, "apply_rotary_emb") is not None:
        return True
    if source_function(module, "apply_rotary_pos_emb_interleave") is not None:
        return bool(getattr(module.config, "rope_interleave", True))
    return None if source_function(module, "apply_rotary_pos_emb") is None else False


def rotate(x: Tensor, rotary: Rotary, *, is_interleaved: bool = False) -> Tensor:
    """Rotate x [B, heads, T, d]; only its first dimensions if cos and sin are shorter.

    If `is_interleaved`, pairs are neighbours; otherwise, one dimension of each half.
    """
    if isinstance(rotary, Tensor):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotary.unsqueeze(1)).flatten(-2).type_as(x)
    cos, sin = (part.unsqueeze(1) for part in rotary)
    size, dtype = cos.shape[-1], x.dtype
    unrotated = x[..., size:]
    x = x[..., :size] if unrotated.shape[-1] else x
    if is_interleaved:
        quarter_turn = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        quarter_turn = torch.cat((-second, first), dim=-1)
    x = (x * cos + quarter_turn * sin).to(dtype)  # some models give cos and sin in fp32
    return torch.cat((x, unrotated), dim=-1) if unrotated.shape[-1] else x


def rotate_pairs(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the pairs of neighbours in x [B, heads, T, d] by cos and sin laid out for halves.

    The result has the first dimension of all pairs, then the second. Queries and keys get the same
    order, which keeps their products.
    """
    cos, sin = (part[..., : x.shape[-1] // 2].unsqueeze(1) for part in rotary)
    first, second = x[..., ::2], x[..., 1::2]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def taken_rotary(rotary: Rotary, positions: Tensor) -> Rotary:
    """Return the entries of position embeddings [1, T, d] for the tokens at `positions` [B, k]."""

    def entries(part: Tensor) -> Tensor:
        return part[0].index_select(0, positions.flatten()).view(*positions.shape, part.shape[-1])

    if isinstance(rotary, Tensor):
        return entries(rotary)
    return entries(rotary[0]), entries(rotary[1])


def first_sequence(rotary: Rotary) -> Rotary:
    """Return the position embeddings [1, T, d] of the first of B sequences.

    Sequences of one length have the same positions.
    """
    return rotary[:1] if isinstance(rotary, Tensor) else (rotary[0][:1], rotary[1][:1])
