"""What the names and grids of kernels beside the GEMMs say of heads and widths.

In: attentions, the names of a phase's kernels, the config. Out: sentences that name what the config
does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from prunescope.analysis.shapes.items import ATTENTION, Item
from prunescope.taxonomy.shape import ModelShape

# Made for some sizes: a smaller head runs on the next one.
_UP_TO = re.compile(
    r"Flash_fwd_kernel_traits<(\d+)|[<_,]HDim(\d+)|fmha_fwd_d(\d+)_|flash_fwd_hdim(\d+)_"
)
# Made for one size of heads.
_EXACT = re.compile(
    r"fmhaSm\d+\w*?H(\d+)(?:Paged|Hv|Q|V|Causal|_)"
    r"|paged_attention_v\d_kernel<[\w: ]+,[\w: ]+, *(\d+),"
    r"|paged_attention_ll4mi_QKV\w*<[^>]{0,200}, (\d+), 256, (?:false|true),"
)
_GROUP = re.compile(r"paged_attention_ll4mi_QKV\w*<[^>]{0,200}, 256, (?:false|true), (\d+),")
_CACHED = re.compile(r"store_kvcache<(\d+)")  # bytes of the keys of a token
_CACHE_TYPE = re.compile(r"Fp8KVCacheDataType\)(\d)")  # of vLLM's attention; 0: the model's own
_NORM = re.compile(r"add_rmsnorm_quant_kernelI\w{0,60}?Li(\d+)ELi(\d+)E")  # threads, each
_NAME_LIMIT = 400


@dataclass(frozen=True)
class Named:
    """What names of kernels say: bytes of a token's keys in the cache, the most elements of a row
    that the widest norm takes, and the bytes that a number in the cache may have."""

    cached: int | None = None
    norm: int | None = None
    each: tuple[int, ...] = (1, 2, 4)


def named_in(names: Iterable[str]) -> Named:
    """Read the names of a phase; None where they say nothing, or differ."""
    cached, norms, types = set(), set(), set()
    for name in names:
        if (found := _CACHED.search(name[:_NAME_LIMIT])) is not None:
            cached.add(int(found[1]))
        elif (found := _NORM.search(name[:_NAME_LIMIT])) is not None:
            norms.add(int(found[1]) * int(found[2]))
        elif (found := _CACHE_TYPE.search(name[:_NAME_LIMIT])) is not None:
            types.add(found[1] == "0")
    each = (2, 4) if types == {True} else (1,) if types == {False} else Named.each
    return Named(cached.pop() if len(cached) == 1 else None, max(norms, default=None), each)


def against_names(named: Named, shape: ModelShape, ranks: int) -> list[str]:
    """Keys of another width than the cache's; a hidden size that the norm of the residual stream
    does not hold."""
    keys = shape.c // min(ranks, shape.kv_heads)
    latent = shape.kv_rank is not None
    fits = named.cached in [keys * size for size in named.each]
    if named.cached is not None and not latent and not fits:
        return [
            f"the cache takes {named.cached:,} bytes of keys a token, the config has {keys:,} "
            f"numbers of {' or '.join(map(str, named.each))} bytes"
        ]
    if named.norm is not None and named.norm < shape.hidden:
        return [
            f"the widest norm kernel holds rows of {named.norm:,}, the config's are "
            f"{shape.hidden:,} wide"
        ]
    return []


def against_heads(items: Iterable[Item], shape: ModelShape) -> list[str]:
    """A head dimension in the name of an attention kernel that the config does not have, or a
    number of queries a key. Latent attention runs on the latent's width, or on the heads'."""
    if shape.kv_rank is not None:
        return []
    for name in {item.name[:_NAME_LIMIT] for item in items if item.what == ATTENTION}:
        group = _GROUP.search(name)
        if group is not None and int(group[1]) != shape.group:
            return [
                f"the attention kernel is made for {group[1]} query heads a key, the config has "
                f"{shape.group}"
            ]
        ours = max(shape.head_dim, shape.value_dim)
        exact, most = _size(_EXACT, name), _size(_UP_TO, name)
        wrong = exact is not None and ours != exact
        if most is not None and (ours > most or ours <= most // 2 and most > 32):
            wrong = True
        if wrong:
            return [
                f"the attention kernel is made for heads of {exact or most}, the config has "
                f"{shape.head_dim}"
            ]
    return []


def _size(pattern: re.Pattern[str], name: str) -> int | None:
    found = pattern.search(name)
    return None if found is None else next((int(n) for n in found.groups() if n), None)


def against_attention_grid(items: Iterable[Item], shape: ModelShape, ranks: int) -> list[str]:
    """Query heads that the grid of an attention counts: FlashAttention 2 in prefill has query
    tiles, sequences and heads, the memory-efficient one query tiles, heads and sequences."""
    heads = shape.heads // ranks
    for item in items:
        if item.what != ATTENTION or item.grid is None or len(item.grid) != 3:
            continue
        seen = heads
        if "flash_fwd_kernel" in item.name:
            seen = item.grid[2]
        elif "fmha_cutlassF" in item.name:
            seen = item.grid[1]
        if seen != heads:
            return [f"the grid of attention has {seen} query heads, the config {heads} a rank"]
    return []
