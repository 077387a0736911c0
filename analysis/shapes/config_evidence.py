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
from prunescope.analysis.shapes.items import ATTENTION, AssignedPass, Item, Placed
from prunescope.analysis.shapes.slots import EXPERT, GEMM, Slot
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.shape import ModelShape

# Factors by which the rate N·K/time may differ: of one kernel, and of kernels of other names. On an
# H100 and an MI300X kernels of one name differ by 1.14 at most, others by 1.5.
_SAME_KERNEL, _OTHER_KERNEL = 1.22, 2.2
# ns of a kernel that do not depend on its size (ramp up and down); more of a short kernel.
_FIXED, _FIXED_SHORT, _SHORT = 2_000, 6_000, 20_000
_ABOVE_PEAK = 1.1
_WIDEST_NUMBER = 4  # bytes of an element: no number is wider, so that no time looks too short
# Kernels of quantised weights (llama.cpp's; Marlin, AWQ, GPTQ): a weight has fewer bits than the
# config's number format has, and not all of their names state how many.
_PACKED = lazy_pattern(r"mul_mat_(?:vec_)?q|marlin|awq|gptq|gemm_4bit|gemv_4bit", re.IGNORECASE)
_SUPPORTED = 0.5  # share of the difference of two widths by which times must fit one better
_WIDE = 2.0  # times the lower end of a range of widths: wider ranges distinguish few models
_MLP = ("gate", "up", "gate_up", "down")
_WHOLE = ("q", "k", "v", "qkv", "o", *_MLP)

Usual = dict[tuple[Slot, str], float]  # ns of a slot on a kernel


def rows_allowed(placed: Iterable[Placed], sm: int | None) -> tuple[Intervals | None, list[Notice]]:
    """Return the M that the grids of all linears of a forward allow.

    If there is none, a sentence states it.
    """
    seen: dict[tuple[Slot, object], Placed] = {}
    for gemm in placed:
        wanted = gemm.slot.form in (GEMM, EXPERT) and gemm.slot.role != "lm_head"
        if wanted and gemm.item.grid is not None:
            seen.setdefault((gemm.slot, gemm.item.token), gemm)
    allowed: Intervals | None = None
    for gemm in seen.values():
        own = allowed_rows(gemm, sm)
        if own == ():
            return None, [_no_rows(gemm)]
        if gemm.slot.form == EXPERT:
            continue  # its rows are those that were routed to it
        both = meet(allowed, own)
        if both == ():
            numbers = {"n": gemm.slot.n, "needed": own, "allowed": allowed}
            return None, [warning("no-rows-fit-all-grids", role=gemm.slot.role, **numbers)]
        allowed = both
    return allowed, []


def allowed_rows(gemm: Placed, sm: int | None) -> Intervals | None:
    """Return the M that the grid of one GEMM allows."""
    grid = gemm.item.grid
    return None if grid is None else rows_of(gemm.slot.n, gemm.item.name, grid, sm=sm)


def width_allowed(gemm: Placed, rows: int, sm: int | None) -> Intervals | None:
    """Return the N that the grid of one GEMM of `rows` rows allows."""
    grid = gemm.item.grid
    return None if grid is None else widths_of(rows, gemm.item.name, grid, sm=sm)


def time_limit(a: float, b: float, *, same: bool) -> float:
    """Return the factor by which the rates N·K/time of two GEMMs may differ.

    `a` and `b` are their times in ns; `same` means that both run on the same kernel.
    """
    shorter = min(a, b)
    fixed = _FIXED if shorter >= _SHORT else _FIXED_SHORT
    return (_SAME_KERNEL if same else _OTHER_KERNEL) + fixed / shorter


@dataclass(frozen=True)
class Filling:
    """How much of the device a GEMM of `rows` rows fills; all of it where either is unknown."""

    rows: int | None
    sm: int | None

    def share(self, slot: Slot, kernel: str) -> float:
        """Return the share of the SMs that have a tile: the others load no weights meanwhile."""
        tile = tile_of(kernel)
        if tile is None or not self.rows or not self.sm:
            return 1.0
        tiles = -(-slot.n // tile.rows) * -(-self.rows // tile.columns)
        return min(1.0, tiles / self.sm)

    def handicap(
        self, slower: tuple[Slot, str], faster: tuple[Slot, str], slower_ns: float
    ) -> float:
        """Return the factor by which a GEMM may be slower for filling less of the device.

        That holds for short kernels: later, each SM has enough loads in flight.
        """
        if slower_ns >= _SHORT:
            return 1.0
        return max(1.0, self.share(*faster) / self.share(*slower))


def head_contradictions(placed: Iterable[Placed], sm: int | None) -> list[Notice]:
    """State that no M fits the grid of lm_head; empty if one does."""
    for gemm in placed:
        if gemm.slot.role == "lm_head" and allowed_rows(gemm, sm) == ():
            return [_no_rows(gemm)]
    return []


def _no_rows(gemm: Placed) -> Notice:
    """Return the contradiction of a GEMM whose grid fits no M."""
    grid = "×".join(map(str, gemm.item.grid or ()))
    return warning("no-rows-fit-grid", role=gemm.slot.role, grid=grid, n=gemm.slot.n)


def off_the_tiles(placed: Iterable[Placed]) -> list[Notice]:
    """List GEMMs whose number of blocks is not that of the tiles of their N.

    They run on a possibly persistent kernel on which two or more GEMMs of other widths have one
    block for every tile.

    Fewer blocks than tiles count only if the kernel launches more blocks elsewhere, because a
    persistent kernel launches at most as many as fit on the device. This is a caveat, not a
    contradiction: an H100 launched 98 persistent blocks for 78 tiles.
    """
    caveats = []
    for tile, times, widths, most in _block_for_every_tile(placed):
        for n, (role, launched) in widths.items():
            wanted = -(-n // tile.rows) * times
            if launched > wanted or launched < wanted and launched < most:
                size = f"{tile.rows}×{tile.columns}"
                numbers = {"n": n, "tiles": wanted, "tile": size, "blocks": launched}
                caveats.append(warning("blocks-off-the-tiles", role=role, **numbers))
    return caveats


def _block_for_every_tile(
    placed: Iterable[Placed],
) -> Iterator[tuple[Tile, int, dict[int, tuple[str, int]], int]]:
    """Find possibly persistent kernels that launch a block for every tile of two or more widths.

    Yields:
        The tile, the number of tiles along M, (role, blocks) by N, and the most blocks that the
        kernel launches.
    """
    blocks: dict[str, dict[int, tuple[str, int]]] = defaultdict(dict)  # kernel: N: role, blocks
    most: dict[str, int] = defaultdict(int)
    for gemm in placed:
        tile, grid = tile_of(gemm.item.name), gemm.item.grid
        if gemm.slot.form != GEMM or grid is None or tile is None or not tile.persistent:
            continue
        most[gemm.item.name] = max(most[gemm.item.name], math.prod(grid))
        if gemm.slot.role != "lm_head":  # which may have fewer rows
            blocks[gemm.item.name].setdefault(gemm.slot.n, (gemm.slot.role, math.prod(grid)))
    for kernel, widths in blocks.items():
        tile = tile_of(kernel)
        assert tile is not None
        along_m = Counter(launched / -(-n // tile.rows) for n, (_, launched) in widths.items())
        times, fitting = along_m.most_common(1)[0]
        if fitting >= 2 and times % 1 == 0:
            yield tile, int(times), widths, most[kernel]


def usual_times(placed: Iterable[Placed], *, with_head: bool) -> Usual:
    """Return the median time (ns) of each GEMM on each kernel.

    GEMMs whose time does not follow from N·K are left out, and so is lm_head without `with_head`.
    """
    times: dict[tuple[Slot, str], list[int]] = defaultdict(list)
    for gemm in placed:
        timed = gemm.slot.form == GEMM and not gemm.slot.is_narrow and gemm.item.ns > 0
        if timed and (with_head or gemm.slot.role != "lm_head"):
            times[gemm.slot, gemm.item.name].append(gemm.item.ns)
    return {key: median(ns) for key, ns in times.items()}


def time_contradictions(
    placed: Sequence[Placed], filling: Filling, *, with_head: bool
) -> list[Notice]:
    """State that the times of two GEMMs do not both fit their N·K; empty if they do.

    `with_head` means that lm_head has as many rows as the linears. Otherwise it may have fewer, and
    counts only if it takes too long.
    """
    usual = usual_times(placed, with_head=True)
    worst, contradictions = 1.0, list[Notice]()
    for a, b in combinations(usual, 2):
        (slot_a, name_a), (slot_b, name_b) = a, b
        limit = time_limit(usual[a], usual[b], same=name_a == name_b)
        rate_a, rate_b = slot_a.size / usual[a], slot_b.size / usual[b]
        slower, faster = (a, b) if rate_a < rate_b else (b, a)
        is_head = "lm_head" in (slot_a.role, slot_b.role)
        if not with_head and slower[0].role != "lm_head" and is_head:
            continue
        limit *= filling.handicap(slower, faster, usual[slower])
        off = max(rate_a, rate_b) / min(rate_a, rate_b)
        if off > limit and off / limit > worst:
            gemms = [
                {"role": slot.role, "size": slot.size, "ns": usual[key]}
                for key, slot in ((a, slot_a), (b, slot_b))
            ]
            same = name_a == name_b
            worst = off / limit
            contradictions = [
                warning("rates-apart", gemms=gemms, apart=off, limit=limit, same=same)
            ]
    return contradictions


def set_aside_misplaced(assignment: AssignedPass) -> None:
    """Make GEMMs unsure whose times are those of another slot."""
    if moved := _find_misplaced(assignment.gemms):
        assignment.unsure += [gemm.item for gemm in assignment.gemms if gemm.item.row in moved]
        assignment.gemms = [gemm for gemm in assignment.gemms if gemm.item.row not in moved]


def _find_misplaced(placed: Iterable[Placed]) -> set[int]:
    """Return the rows of GEMMs that take the time of a slot of another size.

    They do not take the time of their own slot, on the same kernel and grid: two GEMMs were mixed
    up.
    """
    times: dict[object, dict[Slot, list[Placed]]] = defaultdict(lambda: defaultdict(list))
    for gemm in placed:
        if gemm.slot.form == GEMM and gemm.item.ns > 0:
            times[gemm.item.token][gemm.slot].append(gemm)
    misplaced: set[int] = set()
    for slots in times.values():
        if len({slot.size for slot in slots}) < 2:
            continue
        usual = {slot: median(gemm.item.ns for gemm in own) for slot, own in slots.items()}
        for slot, own in slots.items():
            times_elsewhere = [
                usual[elsewhere] for elsewhere in slots if elsewhere.size != slot.size
            ]
            misplaced.update(
                gemm.item.row
                for gemm in own
                if not _may_be_one_gemm(gemm.item.ns, usual[slot])
                and any(_may_be_one_gemm(gemm.item.ns, ns) for ns in times_elsewhere)
            )
    return misplaced


def _may_be_one_gemm(a: float, b: float) -> bool:
    """Return whether two times may be those of one GEMM on one kernel."""
    return max(a, b) <= min(a, b) * time_limit(a, b, same=True)


def narrow_gemm_contradictions(
    placed: Sequence[Placed], rows: int | None, device: Device | None
) -> list[Notice]:
    """State that a GEMM narrower than a tile takes longer than its waves or its bytes explain.

    The time of a wider GEMM on the same kernel is the measure. N·K shows less, because a partly
    filled wave takes as long as a full one.
    """
    if rows is None or device is None or device.sm is None:
        return []
    times: dict[str, dict[Slot, list[int]]] = defaultdict(lambda: defaultdict(list))
    for gemm in placed:
        if gemm.slot.form == GEMM and gemm.slot.role != "lm_head" and gemm.item.ns > 0:
            times[gemm.item.name][gemm.slot].append(gemm.item.ns)
    for kernel, slots in times.items():
        tile, usual = tile_of(kernel), {slot: median(ns) for slot, ns in slots.items()}
        if tile is None:
            continue
        costs = {
            slot: slot.k * -(-(-(-slot.n // tile.rows) * -(-rows // tile.columns)) // device.sm)
            for slot in slots
        }
        for narrow, wide in product(slots, repeat=2):
            if not narrow.is_narrow or wide.is_narrow:
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
    """State that the activations (by their grids) have another width than the config's MLP.

    The result is empty if the times of its GEMMs, compared with others on the same kernels, clearly
    support the config. A small difference in times is noise.
    """
    usual: dict[tuple[Slot, str], list[int]] = defaultdict(list)
    for gemm in placed:
        if gemm.slot.form == GEMM and gemm.slot.role in _WHOLE and gemm.item.ns > 0:
            usual[gemm.slot, gemm.item.name].append(gemm.item.ns)
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
    """State that a GEMM would be faster than the device; empty if none would.

    It is compared by FLOPs where M is known, else by the bytes of weights too large for a cache (64
    MiB), where the bits of a weight are known.
    """
    times: dict[Slot, list[int]] = defaultdict(list)
    packed = {gemm.slot for gemm in placed if _PACKED.search(gemm.item.name)}
    for gemm in placed:
        if gemm.slot.form == GEMM and gemm.item.ns > 0:
            times[gemm.slot].append(gemm.item.ns)
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
    """State that the recorded N and K of a GEMM are not those of the config; empty if they are."""
    for gemm in placed:
        if gemm.item.nk is not None and gemm.item.nk != (gemm.slot.n, gemm.slot.k):
            n, k = gemm.item.nk
            config = {"config_n": gemm.slot.n, "config_k": gemm.slot.k}
            return [warning("another-recorded-size", role=gemm.slot.role, n=n, k=k, **config)]
    return []


def head_rows(gemm: Placed, heads: Sequence[int], sm: int | None) -> int | None:
    """Return M of lm_head: the only one of `heads` that its grid allows; None if several fit."""
    allowed = allowed_rows(gemm, sm)
    left = [m for m in heads if holds(allowed, m)]
    return left[0] if len(left) == 1 else None


def fitting_widths(
    gemms: Sequence[Placed], rows: int | None, sm: int | None, *, heads: Sequence[int] = ()
) -> list[Notice]:
    """Note the ranges of N that fit the trace; empty where nothing bounds a width.

    `heads` are the possible M of lm_head.
    """
    with_head = tuple(heads) == (rows,)
    of_slot: dict[Slot, list[Placed]] = defaultdict(list)
    for gemm in gemms:
        if gemm.slot.form == GEMM:
            of_slot[gemm.slot].append(gemm)
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
        allowed = meet(by_grid, _widths_by_time(slot, usual, Filling(rows, sm)))
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
    """Return the N that a kernel with a block for every tile allows, by the config's N.

    The widest launch of a kernel is left out: its blocks may be as many as fit on the device, with
    several tiles each.
    """
    widths_of_n: dict[int, Intervals] = {}
    for tile, times, widths, most in _block_for_every_tile(placed):
        for n, (_, launched) in widths.items():
            if launched < most and launched % times == 0:
                last = launched // times * tile.rows
                widths_of_n[n] = ((last - tile.rows + 1, last),)
    return widths_of_n


def _widths_by_grid(members: Sequence[Placed], rows: int, sm: int | None) -> Intervals | None:
    """Return the N that the grids of a slot's kernels allow; None allows any."""
    allowed: Intervals | None = None
    for gemm in {member.item.token: member for member in members}.values():
        allowed = meet(allowed, width_allowed(gemm, rows, sm))
    return allowed


def _widths_by_time(slot: Slot, usual: Usual, filling: Filling) -> Intervals | None:
    """Return the N at which the rate N·K/time agrees with that of every other GEMM.

    Agreement is within `time_limit`, which is narrower for two GEMMs on one kernel.
    """
    low, high = 0.0, math.inf
    for (own, name), ns in usual.items():
        if own != slot:
            continue
        for (rival, kernel), theirs in usual.items():
            if rival != slot:
                limit = time_limit(ns, theirs, same=name == kernel)
                n = rival.size / theirs * ns / slot.k
                one, other = (slot, name), (rival, kernel)
                low = max(low, n / limit / filling.handicap(one, other, ns))
                high = min(high, n * limit * filling.handicap(other, one, theirs))
    return ((math.ceil(low), int(high)),) if 0 < low < high < math.inf else None


# Attention kernels for heads up to a size: a smaller head runs on the next larger kernel.
_UP_TO = lazy_pattern(
    r"Flash_fwd_kernel_traits<(\d+)|[<_,]HDim(\d+)|fmha_fwd_d(\d+)_|flash_fwd_hdim(\d+)_"
)
# Attention kernels for one head dimension.
_EXACT = lazy_pattern(
    r"fmhaSm\d+\w*?H(\d+)(?:Paged|Hv|Q|V|Causal|_)"
    r"|paged_attention_v\d_kernel<[\w: ]+,[\w: ]+, *(\d+),"
    r"|paged_attention_ll4mi_QKV\w*<[^>]{0,200}, (\d+), 256, (?:false|true),"
)
_GROUP = lazy_pattern(r"paged_attention_ll4mi_QKV\w*<[^>]{0,200}, 256, (?:false|true), (\d+),")
_CACHED = lazy_pattern(r"store_kvcache<(\d+)")  # bytes of the keys of a token
_CACHE_TYPE = lazy_pattern(r"Fp8KVCacheDataType\)(\d)")  # of vLLM's attention; 0: the model's own
_NORM = lazy_pattern(r"add_rmsnorm_quant_kernelI\w{0,60}?Li(\d+)ELi(\d+)E")  # threads, each
_NAME_LIMIT = 400


@dataclass(frozen=True)
class NamedSizes:
    """The sizes in the names of kernels.

    `cached` is the number of bytes of a token's keys in the cache; `norm` is the most elements of a
    row in the widest norm kernel; `each` are the possible bytes of an element in the cache.
    """

    cached: int | None = None
    norm: int | None = None
    each: tuple[int, ...] = (1, 2, 4)


def read_named_sizes(names: Iterable[str]) -> NamedSizes:
    """Read the sizes in the names of a phase's kernels.

    A size is None where no name states it, or names disagree.
    """
    cached, norms, types = set(), set(), set()
    for name in names:
        if (match := _CACHED.search(name[:_NAME_LIMIT])) is not None:
            cached.add(int(match[1]))
        elif (match := _NORM.search(name[:_NAME_LIMIT])) is not None:
            norms.add(int(match[1]) * int(match[2]))
        elif (match := _CACHE_TYPE.search(name[:_NAME_LIMIT])) is not None:
            types.add(match[1] == "0")
    each = (2, 4) if types == {True} else (1,) if types == {False} else NamedSizes.each
    return NamedSizes(cached.pop() if len(cached) == 1 else None, max(norms, default=None), each)


def named_size_contradictions(named: NamedSizes, shape: ModelShape, ranks: int) -> list[Notice]:
    """State that the cache or the widest norm kernel does not fit the config; empty if both do.

    The width of the keys has to be that of the cache, and the hidden size at most that of the
    widest norm kernel.
    """
    keys = shape.attention.key_width // min(ranks, shape.attention.kv_heads)
    latent = (
        shape.attention.kv_rank is not None
        or shape.spread("kv_heads") != (shape.attention.kv_heads,) * 2
    )
    fits = named.cached in [keys * size for size in named.each]
    if named.cached is not None and not latent and not fits:
        numbers = {"bytes": named.cached, "keys": keys, "each": [*named.each]}
        return [warning("cache-of-another-width", **numbers)]
    if named.norm is not None and named.norm < shape.hidden:
        return [warning("norm-too-narrow", widest=named.norm, hidden=shape.hidden)]
    return []


def attention_name_contradictions(items: Iterable[Item], shape: ModelShape) -> list[Notice]:
    """State that the name of an attention kernel does not fit the config; empty if it does.

    The name may state a head dimension, or a number of query heads per KV head. Latent attention is
    not judged: its kernels run on the width of the latent or of the heads.
    """
    if shape.attention.kv_rank is not None:
        return []
    for name in {item.name[:_NAME_LIMIT] for item in items if item.form == ATTENTION}:
        group = _GROUP.search(name)
        groups = {part.attention.group for part in shape.attention_parts()}
        if group is not None and int(group[1]) not in groups:
            queries = int(group[1])
            return [
                warning("another-group-of-queries", queries=queries, config=shape.attention.group)
            ]
        ours = max(shape.attention.head_dim, shape.attention.value_dim)
        exact, most = _named_size(_EXACT, name), _named_size(_UP_TO, name)
        wrong = exact is not None and ours != exact
        if most is not None and (ours > most or ours <= most // 2 and most > 32):
            wrong = True
        if wrong:
            sizes = {"size": exact or most, "config": shape.attention.head_dim}
            return [warning("another-head-dimension", **sizes)]
    return []


def _named_size(pattern: re.Pattern[str], name: str) -> int | None:
    """Return the size in a kernel's name that a pattern finds; None without one."""
    match = pattern.search(name)
    return None if match is None else next((int(n) for n in match.groups() if n), None)


def attention_grid_contradictions(
    items: Iterable[Item], shape: ModelShape, ranks: int
) -> list[Notice]:
    """State that the grid of an attention kernel has another number of query heads than the config.

    The grid of FlashAttention 2 in prefill is query tiles × sequences × heads, that of
    memory-efficient attention query tiles × heads × sequences.
    """
    known = [part.attention.heads // ranks for part in shape.attention_parts()]
    for item in items:
        if item.form != ATTENTION or item.grid is None or len(item.grid) != 3:
            continue
        seen = known[0]
        if "flash_fwd_kernel" in item.name:
            seen = item.grid[2]
        elif "fmha_cutlassF" in item.name:
            seen = item.grid[1]
        if seen not in known:
            return [warning("another-number-of-heads", heads=seen, config=known)]
    return []
