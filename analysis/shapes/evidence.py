"""Contradictions between a trace and a model's config, and other configs that fit as well.

In: GEMMs with the slots (role, N, K) that the config gives them, names and grids of the other
kernels of a forward, peaks. Out: a notice of each contradiction (none where the trace
cannot decide), and the interval of N of each role that nothing contradicts. Times in ns, N·K in
elements.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import median
from typing import Any

from prunescope.analysis.device.hardware import Device
from prunescope.analysis.device.tiles import Tile, tile_of
from prunescope.analysis.schema.notice import Notice, note, warning
from prunescope.analysis.shapes.grids import Intervals, holds, meet, rows_of, widths_of
from prunescope.analysis.shapes.items import ATTENTION, Assignment, Item, Placed
from prunescope.analysis.shapes.slots import EXPERT, GEMM, Slot
from prunescope.taxonomy.shape import ModelShape

# Factors by which the rate N·K/time may differ: of one kernel, and of kernels of other names. On an
# H100 and an MI300X kernels of one name differ by 1.14 at most, others by 1.5.
_SAME_KERNEL, _OTHER_KERNEL = 1.22, 2.2
# ns of a kernel that do not depend on its size (ramp up and down); more of a short kernel.
_FIXED, _FIXED_SHORT, _SHORT = 2_000, 6_000, 20_000
_ABOVE_PEAK = 1.1
_WIDEST_NUMBER = 4  # bytes of an element, so that no time is taken for too short
# Kernels of quantised weights (llama.cpp's; Marlin, AWQ, GPTQ): a weight has fewer bits than the
# config's number format says, and their names do not say how many for all of them.
_PACKED = re.compile(r"mul_mat_(?:vec_)?q|marlin|awq|gptq|gemm_4bit|gemv_4bit", re.IGNORECASE)
_SUPPORTED = 0.5  # of the difference between two widths, by which times must fit one better
_WIDE = 2.0  # times the lower end of a range of widths: wider ranges tell few models apart
_MLP = ("gate", "up", "gate_up", "down")
_WHOLE = ("q", "k", "v", "qkv", "o", *_MLP)

Usual = dict[tuple[Slot, str], float]  # ns of a slot on a kernel


def rows_allowed(placed: Iterable[Placed], sm: int | None) -> tuple[Intervals | None, list[Notice]]:
    """The M that the grids of all linears of a forward allow; a sentence where there is none."""
    seen: dict[tuple[Slot, object], Placed] = {}
    for one in placed:
        wanted = one.slot.what in (GEMM, EXPERT) and one.slot.role != "lm_head"
        if wanted and one.item.grid is not None:
            seen.setdefault((one.slot, one.item.token), one)
    allowed: Intervals | None = None
    for one in seen.values():
        own = allowed_rows(one, sm)
        if own == ():
            return None, [_no_rows(one)]
        if one.slot.what == EXPERT:
            continue  # its rows are those that were routed to it
        both = meet(allowed, own)
        if both == ():
            numbers = {"n": one.slot.n, "needed": own, "allowed": allowed}
            return None, [warning("no-rows-fit-all-grids", role=one.slot.role, **numbers)]
        allowed = both
    return allowed, []


def allowed_rows(one: Placed, sm: int | None) -> Intervals | None:
    """The M that the grid of one GEMM allows."""
    grid = one.item.grid
    return None if grid is None else rows_of(one.slot.n, one.item.name, grid, sm=sm)


def width_allowed(one: Placed, rows: int, sm: int | None) -> Intervals | None:
    """The N that the grid of one GEMM of `rows` rows allows."""
    grid = one.item.grid
    return None if grid is None else widths_of(rows, one.item.name, grid, sm=sm)


def time_limit(a: float, b: float, *, same: bool) -> float:
    """Factor by which the rates N·K/time of two GEMMs may differ that take `a` and `b` ns; `same`:
    on the same kernel."""
    shorter = min(a, b)
    fixed = _FIXED if shorter >= _SHORT else _FIXED_SHORT
    return (_SAME_KERNEL if same else _OTHER_KERNEL) + fixed / shorter


def head_contradictions(placed: Iterable[Placed], sm: int | None) -> list[Notice]:
    """A contradiction: no M fits the grid of lm_head."""
    for one in placed:
        if one.slot.role == "lm_head" and allowed_rows(one, sm) == ():
            return [_no_rows(one)]
    return []


def _no_rows(one: Placed) -> Notice:
    """Return the contradiction of a GEMM whose grid fits no M."""
    grid = "×".join(map(str, one.item.grid or ()))
    return warning("no-rows-fit-grid", role=one.slot.role, grid=grid, n=one.slot.n)


def off_the_tiles(placed: Iterable[Placed]) -> list[Notice]:
    """GEMMs of a possibly persistent kernel whose number of blocks is not that of the tiles of
    their N, while two or more GEMMs of other widths on the same kernel have one block for every
    tile.

    Fewer blocks than tiles count only if the kernel launches more blocks elsewhere, because a
    persistent kernel launches at most as many as fit on the device. This is a caveat, not a
    contradiction: an H100 launched 98 persistent blocks for 78 tiles.
    """
    out = []
    for tile, times, widths, most in _block_for_every_tile(placed):
        for n, (role, launched) in widths.items():
            wanted = -(-n // tile.rows) * times
            if launched > wanted or launched < wanted and launched < most:
                size = f"{tile.rows}×{tile.columns}"
                numbers = {"n": n, "tiles": wanted, "tile": size, "blocks": launched}
                out.append(warning("blocks-off-the-tiles", role=role, **numbers))
    return out


def _block_for_every_tile(
    placed: Iterable[Placed],
) -> Iterator[tuple[Tile, int, dict[int, tuple[str, int]], int]]:
    """Possibly persistent kernels that launch a block for every tile of two or more widths: the
    tile, how many there are along M, (role, blocks) by N, and the most blocks that the kernel
    launches."""
    blocks: dict[str, dict[int, tuple[str, int]]] = defaultdict(dict)  # kernel: N: role, blocks
    most: dict[str, int] = defaultdict(int)
    for one in placed:
        tile, grid = tile_of(one.item.name), one.item.grid
        if one.slot.what != GEMM or grid is None or tile is None or not tile.persistent:
            continue
        most[one.item.name] = max(most[one.item.name], math.prod(grid))
        if one.slot.role != "lm_head":  # which may have fewer rows
            blocks[one.item.name].setdefault(one.slot.n, (one.slot.role, math.prod(grid)))
    for kernel, widths in blocks.items():
        tile = tile_of(kernel)
        assert tile is not None
        along_m = Counter(launched / -(-n // tile.rows) for n, (_, launched) in widths.items())
        times, fitting = along_m.most_common(1)[0]
        if fitting >= 2 and times % 1 == 0:
            yield tile, int(times), widths, most[kernel]


def usual_times(placed: Iterable[Placed], *, with_head: bool) -> Usual:
    """The median time (ns) of each GEMM on each kernel, of GEMMs whose time follows from N·K."""
    times: dict[tuple[Slot, str], list[int]] = defaultdict(list)
    for one in placed:
        timed = one.slot.what == GEMM and not one.slot.narrow and one.item.ns > 0
        if timed and (with_head or one.slot.role != "lm_head"):
            times[one.slot, one.item.name].append(one.item.ns)
    return {key: median(ns) for key, ns in times.items()}


def time_contradictions(placed: Sequence[Placed], *, with_head: bool) -> list[Notice]:
    """A contradiction: the times of two GEMMs do not both fit their N·K. `with_head`: lm_head has
    as many rows as the linears; otherwise it may have fewer, and counts only if it takes too
    long."""
    usual = usual_times(placed, with_head=True)
    worst, found = 1.0, list[Notice]()
    for a, b in combinations(usual, 2):
        (slot_a, name_a), (slot_b, name_b) = a, b
        limit = time_limit(usual[a], usual[b], same=name_a == name_b)
        rate_a, rate_b = slot_a.size / usual[a], slot_b.size / usual[b]
        slower = slot_a if rate_a < rate_b else slot_b
        if not with_head and slower.role != "lm_head" and "lm_head" in (slot_a.role, slot_b.role):
            continue
        off = max(rate_a, rate_b) / min(rate_a, rate_b)
        if off > limit and off / limit > worst:
            gemms = [
                {"role": slot.role, "size": slot.size, "ns": usual[key]}
                for key, slot in ((a, slot_a), (b, slot_b))
            ]
            same = name_a == name_b
            worst = off / limit
            found = [warning("rates-apart", gemms=gemms, apart=off, limit=limit, same=same)]
    return found


def set_aside_misplaced(out: Assignment) -> None:
    """Make GEMMs unsure whose times are those of another slot."""
    if moved := _misplaced(out.gemms):
        out.unsure += [one.item for one in out.gemms if one.item.row in moved]
        out.gemms = [one for one in out.gemms if one.item.row not in moved]


def _misplaced(placed: Iterable[Placed]) -> set[int]:
    """Rows of GEMMs that do not take the time of their slot but that of a slot of another size, on
    the same kernel and grid: two GEMMs that were mixed up."""
    times: dict[object, dict[Slot, list[Placed]]] = defaultdict(lambda: defaultdict(list))
    for one in placed:
        if one.slot.what == GEMM and one.item.ns > 0:
            times[one.item.token][one.slot].append(one)
    out: set[int] = set()
    for slots in times.values():
        if len({slot.size for slot in slots}) < 2:
            continue
        usual = {slot: median(one.item.ns for one in own) for slot, own in slots.items()}
        for slot, own in slots.items():
            others = [usual[other] for other in slots if other.size != slot.size]
            out.update(
                one.item.row
                for one in own
                if not _may_be_one_gemm(one.item.ns, usual[slot])
                and any(_may_be_one_gemm(one.item.ns, ns) for ns in others)
            )
    return out


def _may_be_one_gemm(a: float, b: float) -> bool:
    """Whether two times may be those of one GEMM on one kernel."""
    return max(a, b) <= min(a, b) * time_limit(a, b, same=True)


def narrow_gemm_contradictions(
    placed: Sequence[Placed], rows: int | None, device: Device | None
) -> list[Notice]:
    """A contradiction: a GEMM narrower than a tile takes longer than its waves or its bytes
    explain, by the time of a wider GEMM on the same kernel. N·K shows less, because a partly filled
    wave takes as long as a full one."""
    if rows is None or device is None or device.sm is None:
        return []
    times: dict[str, dict[Slot, list[int]]] = defaultdict(lambda: defaultdict(list))
    for one in placed:
        if one.slot.what == GEMM and one.slot.role != "lm_head" and one.item.ns > 0:
            times[one.item.name][one.slot].append(one.item.ns)
    for kernel, slots in times.items():
        tile, usual = tile_of(kernel), {slot: median(ns) for slot, ns in slots.items()}
        if tile is None:
            continue
        costs = {
            slot: slot.k * -(-(-(-slot.n // tile.rows) * -(-rows // tile.columns)) // device.sm)
            for slot in slots
        }
        for narrow, wide in product(slots, repeat=2):
            if not narrow.narrow or wide.narrow:
                continue
            moved = (rows * (narrow.n + narrow.k) + narrow.size) * _WIDEST_NUMBER
            floor = moved / device.byte_per_s * 1e9 if device.byte_per_s else 0.0
            fair = max(usual[wide] * costs[narrow] / costs[wide], floor)
            if usual[narrow] > fair * time_limit(fair, usual[wide], same=True):
                return [
                    warning(
                        "narrow-gemm-too-slow",
                        role=narrow.role,
                        n=narrow.n,
                        ns=usual[narrow],
                        wide=wide.role,
                        wide_n=wide.n,
                        wide_ns=usual[wide],
                        fair_ns=fair,
                    )
                ]
    return []


def mlp_width_contradictions(placed: Sequence[Placed], width: int, seen: int) -> list[Notice]:
    """A contradiction: the activations (by their grids) have another width than the config's MLP,
    unless the times of its GEMMs, compared with others on the same kernels, clearly support the
    config. A small difference in times is noise."""
    usual: dict[tuple[Slot, str], list[int]] = defaultdict(list)
    for one in placed:
        if one.slot.what == GEMM and one.slot.role in _WHOLE and one.item.ns > 0:
            usual[one.slot, one.item.name].append(one.item.ns)
    rates = {key: key[0].size / median(ns) for key, ns in usual.items()}
    pairs = [
        rates[a] / rates[b]
        for a in rates
        for b in rates
        if a[1] == b[1] and a[0].role in _MLP and b[0].role not in _MLP
    ]
    ours = sum(abs(math.log(rate)) for rate in pairs)
    theirs = sum(abs(math.log(rate * seen / width)) for rate in pairs)
    apart = len(pairs) * abs(math.log(seen / width))
    if theirs - ours > _SUPPORTED * apart or not pairs:
        return []
    return [warning("mlp-of-another-width", width=width, seen=seen)]


def peak_contradictions(
    placed: Collection[Placed],
    rows: int | None,
    *,
    flop_per_s: float | None,
    byte_per_s: float | None,
    itemsize: float,
) -> list[Notice]:
    """A contradiction: a GEMM would be faster than the device, by FLOPs where M is known, else by
    the bytes of weights too large for a cache (64 MiB), where the bits of a weight are known."""
    times: dict[Slot, list[int]] = defaultdict(list)
    packed = {one.slot for one in placed if _PACKED.search(one.item.name)}
    for one in placed:
        if one.slot.what == GEMM and one.item.ns > 0:
            times[one.slot].append(one.item.ns)
    for slot, ns in times.items():
        usual = median(ns)
        flop = 2 * rows * slot.size / usual * 1e9 if rows and slot.role != "lm_head" else 0.0
        if flop_per_s and flop > _ABOVE_PEAK * flop_per_s:
            sizes = {"m": rows, "n": slot.n, "k": slot.k, "ns": usual}
            rates = {"flop_per_s": flop, "peak": flop_per_s}
            return [warning("gemm-above-peak", role=slot.role, **sizes, **rates)]
        size = 0 if slot in packed else slot.size * itemsize
        if byte_per_s and size > 1 << 26 and size / usual * 1e9 > _ABOVE_PEAK * byte_per_s:
            numbers = {"bytes": size, "ns": usual, "peak": byte_per_s}
            return [warning("weights-above-bandwidth", role=slot.role, **numbers)]
    return []


def recorded_shape_contradictions(placed: Iterable[Placed]) -> list[Notice]:
    """A contradiction: the recorded N and K of a GEMM are not those of the config."""
    for one in placed:
        if one.item.nk is not None and one.item.nk != (one.slot.n, one.slot.k):
            n, k = one.item.nk
            config = {"config_n": one.slot.n, "config_k": one.slot.k}
            return [warning("another-recorded-size", role=one.slot.role, n=n, k=k, **config)]
    return []


def head_rows(one: Placed, heads: Sequence[int], sm: int | None) -> int | None:
    """M of lm_head: the only one of `heads` that its grid allows; None if several fit."""
    allowed = allowed_rows(one, sm)
    left = [m for m in heads if holds(allowed, m)]
    return left[0] if len(left) == 1 else None


def fitting_widths(
    gemms: Sequence[Placed], rows: int | None, sm: int | None, *, heads: Sequence[int] = ()
) -> list[Notice]:
    """The ranges of N that fit the trace, as at most one note; none where nothing bounds a
    width. `heads`: the possible M of lm_head."""
    with_head = tuple(heads) == (rows,)
    of_slot: dict[Slot, list[Placed]] = defaultdict(list)
    for one in gemms:
        if one.slot.what == GEMM:
            of_slot[one.slot].append(one)
    usual = usual_times(gemms, with_head=with_head)
    by_tiles = _widths_by_tiles(gemms)
    ranges: list[dict[str, Any]] = []
    by_time: list[dict[str, Any]] = []
    outside: list[tuple[str, int]] = []
    for slot, members in of_slot.items():
        m = head_rows(members[0], heads, sm) if slot.role == "lm_head" else rows
        by_grid = _widths_by_grid(members, m, sm) if m is not None else None
        if slot.role != "lm_head":
            by_grid = meet(by_grid, by_tiles.get(slot.n))
        allowed = meet(by_grid, _widths_by_time(slot, usual))
        if allowed:
            how = "grid" if allowed == by_grid else "time" if by_grid is None else "grid and time"
            # By time alone a width is often known to a factor of 5: used if nothing is closer.
            is_wide = how == "time" and allowed[-1][1] > _WIDE * allowed[0][0]
            fitting = {"role": slot.role, "allowed": allowed, "how": how}
            (by_time if is_wide else ranges).append(fitting)
            outside += [] if holds(allowed, slot.n) else [(slot.role, slot.n)]
    ranges = ranges or by_time
    return [note("config-ranges", ranges=ranges, outside=outside)] if ranges else []


def _widths_by_tiles(placed: Iterable[Placed]) -> dict[int, Intervals]:
    """By the config's N, the N that a kernel with a block for every tile allows. The widest launch
    of a kernel is left out: its blocks may be as many as fit on the device, with several tiles
    each."""
    out: dict[int, Intervals] = {}
    for tile, times, widths, most in _block_for_every_tile(placed):
        for n, (_, launched) in widths.items():
            if launched < most and launched % times == 0:
                last = launched // times * tile.rows
                out[n] = ((last - tile.rows + 1, last),)
    return out


def _widths_by_grid(members: Sequence[Placed], rows: int, sm: int | None) -> Intervals | None:
    allowed: Intervals | None = None
    for one in {member.item.token: member for member in members}.values():
        allowed = meet(allowed, width_allowed(one, rows, sm))
    return allowed


def _widths_by_time(slot: Slot, usual: Usual) -> Intervals | None:
    """The N at which the rate N·K/time differs from that of every other GEMM by at most
    `time_limit`, which is narrower for two GEMMs on one kernel."""
    low, high = 0.0, math.inf
    for (own, name), ns in usual.items():
        if own != slot:
            continue
        for (other, kernel), theirs in usual.items():
            if other != slot:
                limit = time_limit(ns, theirs, same=name == kernel)
                n = other.size / theirs * ns / slot.k
                low, high = max(low, n / limit), min(high, n * limit)
    return ((math.ceil(low), int(high)),) if 0 < low < high < math.inf else None


# Attention kernels for heads up to a size: a smaller head runs on the next larger kernel.
_UP_TO = re.compile(
    r"Flash_fwd_kernel_traits<(\d+)|[<_,]HDim(\d+)|fmha_fwd_d(\d+)_|flash_fwd_hdim(\d+)_"
)
# Attention kernels for one head dimension.
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
    """Sizes in the names of kernels: `cached`, bytes of a token's keys in the cache; `norm`, most
    elements of a row in the widest norm kernel; `each`, possible bytes of an element in the
    cache."""

    cached: int | None = None
    norm: int | None = None
    each: tuple[int, ...] = (1, 2, 4)


def named_in(names: Iterable[str]) -> Named:
    """The sizes in the names of a phase's kernels; None where no name has one, or names
    disagree."""
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


def named_size_contradictions(named: Named, shape: ModelShape, ranks: int) -> list[Notice]:
    """A contradiction: the width of the keys is not that of the cache, or the hidden size is larger
    than the widest norm kernel allows."""
    keys = shape.c // min(ranks, shape.kv_heads)
    latent = shape.kv_rank is not None or shape.spread("kv_heads") != (shape.kv_heads,) * 2
    fits = named.cached in [keys * size for size in named.each]
    if named.cached is not None and not latent and not fits:
        numbers = {"bytes": named.cached, "keys": keys, "each": [*named.each]}
        return [warning("cache-of-another-width", **numbers)]
    if named.norm is not None and named.norm < shape.hidden:
        return [warning("norm-too-narrow", widest=named.norm, hidden=shape.hidden)]
    return []


def attention_name_contradictions(items: Iterable[Item], shape: ModelShape) -> list[Notice]:
    """A contradiction: the name of an attention kernel has a head dimension, or a number of query
    heads per KV head, that the config does not have. Latent attention is not judged: its kernels
    run on the width of the latent or of the heads."""
    if shape.kv_rank is not None:
        return []
    for name in {item.name[:_NAME_LIMIT] for item in items if item.what == ATTENTION}:
        group = _GROUP.search(name)
        groups = {part.group for part in shape.attention_parts()}
        if group is not None and int(group[1]) not in groups:
            queries = int(group[1])
            return [warning("another-group-of-queries", queries=queries, config=shape.group)]
        ours = max(shape.head_dim, shape.value_dim)
        exact, most = _size(_EXACT, name), _size(_UP_TO, name)
        wrong = exact is not None and ours != exact
        if most is not None and (ours > most or ours <= most // 2 and most > 32):
            wrong = True
        if wrong:
            sizes = {"size": exact or most, "config": shape.head_dim}
            return [warning("another-head-dimension", **sizes)]
    return []


def _size(pattern: re.Pattern[str], name: str) -> int | None:
    found = pattern.search(name)
    return None if found is None else next((int(n) for n in found.groups() if n), None)


def attention_grid_contradictions(
    items: Iterable[Item], shape: ModelShape, ranks: int
) -> list[Notice]:
    """A contradiction: the grid of an attention kernel has another number of query heads. The grid
    of FlashAttention 2 in prefill is query tiles × sequences × heads, that of memory-efficient
    attention query tiles × heads × sequences."""
    known = [part.heads // ranks for part in shape.attention_parts()]
    for item in items:
        if item.what != ATTENTION or item.grid is None or len(item.grid) != 3:
            continue
        seen = known[0]
        if "flash_fwd_kernel" in item.name:
            seen = item.grid[2]
        elif "fmha_cutlassF" in item.name:
            seen = item.grid[1]
        if seen not in known:
            return [warning("another-number-of-heads", heads=seen, config=known)]
    return []
