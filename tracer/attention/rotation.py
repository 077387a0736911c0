"""Rotary position embedding: how the source of an attention rotates, and the rotation itself.

In: vectors [B, heads, T, d] and what a model hands its layers for their positions. Cos and sin are
[1 or B, T, d], or one complex tensor [1 or B, T, d/2].
"""

from __future__ import annotations

import sys
from typing import Any

import torch

Rotary = tuple[torch.Tensor, torch.Tensor] | torch.Tensor

_TURNED = 4  # dimensions of the vectors that tell how a rotation pairs them


def own_function(module: Any, name: str) -> Any:
    """A function of the source that a module's class is from; None where it has none so named."""
    kind = getattr(module, "_extends", type(module))
    return getattr(sys.modules[kind.__module__], name, None)


def turns(module: Any) -> tuple[bool | None, bool]:
    """How the module's own source rotates: neighbours (True) or halves; None where it does not.
    And whether cos and sin are given for one of each pair."""
    rotate = own_function(module, "apply_rotary_pos_emb")
    if rotate is None or not getattr(module, "use_rope", True):
        return None, False
    x = torch.arange(1.0, _TURNED + 1).view(1, 1, 1, _TURNED)
    for size in (_TURNED, _TURNED // 2):
        cos, sin = torch.zeros(1, 1, size), torch.ones(1, 1, size)
        try:
            turned = rotate(x, x, cos, sin)[0].flatten().tolist()
        except (RuntimeError, TypeError):  # of other arguments: the logits tell
            continue
        return bool(turned == [-2.0, 1.0, -4.0, 3.0]), size < _TURNED
    return False, False


def latent_turns(module: Any) -> bool | None:
    """The same of the rotated part of a latent attention, whose pairs may be complex numbers."""
    if own_function(module, "apply_rotary_emb") is not None:
        return True
    if own_function(module, "apply_rotary_pos_emb_interleave") is not None:
        return bool(getattr(module.config, "rope_interleave", True))
    return None if own_function(module, "apply_rotary_pos_emb") is None else False


def rotated(x: torch.Tensor, rotary: Rotary, *, turns: bool = False) -> torch.Tensor:
    """Rotary position embedding of [B, heads, T, d], of the first dimensions where cos and sin are
    shorter. `turns`: pairs of neighbours, not of halves."""
    if isinstance(rotary, torch.Tensor):
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * rotary.unsqueeze(1)).flatten(-2).type_as(x)
    cos, sin = (part.unsqueeze(1) for part in rotary)
    size, dtype = cos.shape[-1], x.dtype
    rest = x[..., size:]
    x = x[..., :size] if rest.shape[-1] else x
    if turns:
        other = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        other = torch.cat((-second, first), dim=-1)
    x = (x * cos + other * sin).to(dtype)  # some give cos and sin in fp32 to all
    return torch.cat((x, rest), dim=-1) if rest.shape[-1] else x


def turned_pairs(x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Of [B, heads, T, d] each pair of neighbours, by cos and sin that are given for halves. The
    first of all pairs come before the second: queries and keys alike, so that products stay."""
    cos, sin = (part[..., : x.shape[-1] // 2].unsqueeze(1) for part in rotary)
    first, second = x[..., ::2], x[..., 1::2]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)


def taken_rotary(rotary: Rotary, places: torch.Tensor) -> Rotary:
    """Of [1 or B, T, d] the positions of the tokens at `places` [B, k]."""
    if isinstance(rotary, torch.Tensor):
        return _taken(rotary, places)
    return _taken(rotary[0], places), _taken(rotary[1], places)


def of_first(rotary: Rotary) -> Rotary:
    """[1, T, d] of [1 or B, T, d]: all sequences have one length, and so the same positions."""
    return rotary[:1] if isinstance(rotary, torch.Tensor) else (rotary[0][:1], rotary[1][:1])


def _taken(part: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    return part[0].index_select(0, places.flatten()).view(*places.shape, part.shape[-1])
