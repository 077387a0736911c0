"""GEMMs replayed alone (`prunescope gemm`): the file that the tracer writes and the analysis reads.

Times are ns per call; null: not known. A time is the geometric mean over placements of a
placement's median, and its interval the t interval of the mean of their logarithms.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from prunescope.taxonomy.contradictions import differs, outside
from prunescope.taxonomy.dtypes import ITEMSIZE
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import Block, Count, Interval, Name, Names, Number, Size, decode
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.student_t import t_quantile_975

REPLAYS = "gemms.json"
MAX_BYTES = 64 << 20
# With two placements Student's t is 12.7, so that on logarithms the ends of an interval differ by
# orders of magnitude for times that differ by a few percent. With three it is 4.3.
LEAST_PLACEMENTS = 3
_HINT = "give the gemms.json that `prunescope gemm` wrote"


class GemmCase(Struct, frozen=True, kw_only=True):
    """A GEMM of a pruned model, and the dense one that it replaces if that is known.

    `role`: the roles that have it, as "gate, up".
    """

    pruned: Gemm
    dtype: str
    dense: Gemm | None = None
    role: str | None = None
    phase: str | None = None


class ReplayTimes(Block, kw_only=True):
    """The time of a call in one state of the cache."""

    ns: Number
    ci95: Interval | None = None  # null: fewer than three placements
    placements_ns: Annotated[list[Number], Meta(max_length=5000)] = []  # the median of each
    samples: Count = 0

    def contradictions(self) -> Iterator[str]:
        """Yield that its time or its interval is not that of its placements."""
        yield from _not_of_placements(self.ns, self.ci95, self.placements_ns)
        if self.samples and self.samples < len(self.placements_ns):
            yield "it has fewer samples than placements"


class ReplayedGemm(Block, kw_only=True):
    """One shape that was replayed.

    `warm`: its operands were just used; `cold`: the last-level cache was flushed.
    """

    # Why it was replayed: "given" on the command line, a GEMM of the "pruned" model, the "dense"
    # one that it replaces, a "good" dimension near it, one of each alignment near it ("aligned"),
    # a point of its "curve".
    reasons: Names = []
    role: Name | None = None
    phase: Name | None = None
    batch: Size = 1
    m: Size
    n: Size
    k: Size
    dtype: Name
    dense_m: Size | None = None  # of a pruned GEMM
    dense_n: Size | None = None
    dense_k: Size | None = None
    align: Count | None = None  # of the moved dimension of an aligned one: it divides, twice not
    warm: ReplayTimes | None = None
    cold: ReplayTimes | None = None
    flop: Number = 0
    bytes: Number = 0
    ideal_ns: Number | None = None  # the larger of FLOP/peak and bytes/bandwidth
    bound: Name | None = None  # compute or memory
    share_of_bound: Number | None = None  # ideal_ns / warm; may exceed 1 in a cache
    share_of_bound_cold: Number | None = None
    kernel: str | None = None  # its name on a GPU
    tile: Name | None = None  # rows x columns of the output, where the kernel's name states it

    def contradictions(self) -> Iterator[str]:
        """Yield work that is not that of its shape, or a share that is not that of its times."""
        size = ITEMSIZE.get(self.dtype)
        if self.flop and differs(self.flop, self.gemm.flop):
            yield "flop is not 2 x batch x M x N x K"
        if self.bytes and size is not None and differs(self.bytes, self.gemm.bytes(size)):
            yield "bytes are not those of its shape and dtype"
        if len({size is None for size in (self.dense_m, self.dense_n, self.dense_k)}) > 1:
            yield "it has a part of a dense shape"
        shares = (self.share_of_bound, self.share_of_bound_cold)
        for share, time in zip(shares, (self.warm, self.cold), strict=True):
            if self.ideal_ns is None or time is None or time.ns <= 0:
                continue
            if differs(share, self.ideal_ns / time.ns):
                yield "share_of_bound is not ideal_ns over its time"

    @property
    def gemm(self) -> Gemm:
        """The shape of the GEMM."""
        return Gemm(self.m, self.n, self.k, self.batch)


class StepCurve(Block, kw_only=True):
    """Time over N or K with the other dimensions fixed, operands warm.

    `width`: one more step every so many, null if a straight line describes time as well; fitted to
    the median over placements, so that one that was disturbed makes no step.
    """

    axis: Name
    role: Name | None = None
    phase: Name | None = None
    batch: Size = 1
    m: Size
    n: Size | None = None
    k: Size | None = None
    dtype: Name
    sizes: list[Size] = []
    ns: list[Number] = []  # the time of each size
    ci95: list[Interval | None] = []  # its interval; null: fewer than three placements
    placements_ns: list[Annotated[list[Number], Meta(max_length=5000)]] = []  # the median of each
    width: Size | None = None
    step_ns: Number | None = None
    base_ns: Number | None = None

    def contradictions(self) -> Iterator[str]:
        """Yield that its points do not have a time each, or one that is not of its placements."""
        if not len(self.sizes) == len(self.ns) >= len(self.ci95):
            yield "it has not one time for each size"
        if len(self.placements_ns) not in (0, len(self.ns)):
            yield "it has not the placements of each size"
        if self.axis not in ("N", "K") or getattr(self, self.axis.lower()) is not None:
            yield "its axis is not that of N and K which has no size"
        if self.width is None and (self.step_ns, self.base_ns) != (None, None):
            yield "it has steps without a width"
        for ns, placements in zip(self.ns, self.placements_ns, strict=False):
            yield from _not_of_placements(ns, None, placements)
        for ns, ends in zip(self.ns, self.ci95, strict=False):
            if ends is not None:
                yield from outside(ns, ends, "interval")

    def gemm(self, size: int) -> Gemm:
        """Return the shape of the point with a size."""
        n, k = (size, self.k) if self.axis == "N" else (self.n, size)
        return Gemm(self.m, n or 1, k or 1, self.batch)


class ReplayPeaks(Block, kw_only=True):
    """The peaks behind the bounds: FLOP/s by dtype, byte/s, and their source."""

    flop_per_s: dict[str, Number] = {}
    byte_per_s: Number | None = None
    source: str | None = None

    def ideal_ns(self, gemm: Gemm, dtype: str) -> tuple[float, str] | None:
        """Return the roofline time of a call in ns and what bounds it.

        None means that a peak is not known.
        """
        rate, size = self.flop_per_s.get(dtype), ITEMSIZE.get(dtype)
        if not rate or not self.byte_per_s or size is None:
            return None
        compute, memory = gemm.flop / rate * 1e9, gemm.bytes(size) / self.byte_per_s * 1e9
        return (compute, "compute") if compute >= memory else (memory, "memory")


class ReplayDevice(Block, kw_only=True):
    """The device on which the GEMMs were replayed."""

    kind: Name | None = None
    name: str | None = None
    threads: Count | None = None


class Replays(Block, kw_only=True):
    """The whole of a gemms.json.

    `disturbed`: what disturbed rounds; `left_out`: the GEMMs that were not replayed, and why.
    """

    schema: Literal[1] = 1
    tool: str = ""
    device: ReplayDevice
    versions: dict[str, str] = {}
    peaks: ReplayPeaks
    placements: Count = 0
    repeats: Count = 0
    warmup: Count = 0
    seed: Count = 0
    flush_bytes: Count | None = None
    gemms: Annotated[list[ReplayedGemm], Meta(max_length=10_000)] = []
    curves: Annotated[list[StepCurve], Meta(max_length=1000)] = []
    disturbed: Names = []
    left_out: Annotated[list[str], Meta(max_length=1000)] = []

    def contradictions(self) -> Iterator[str]:
        """Yield that the bound of a GEMM is not the one that the peaks give."""
        for index, gemm in enumerate(self.gemms):
            ideal = self.peaks.ideal_ns(gemm.gemm, gemm.dtype)
            if ideal is None:
                continue
            if differs(gemm.ideal_ns, ideal[0]) or gemm.bound not in (None, ideal[1]):
                yield f"gemms.{index}: ideal_ns or bound is not that of the peaks"

    @property
    def timing_valid(self) -> bool:
        """Whether the times are evidence: no round that counts was disturbed.

        Disturbed rounds are taken again; a round counts as disturbed if its repetition was
        disturbed too.
        """
        return not self.disturbed


def read_replays(path: Path) -> Replays:
    """Read a gemms.json.

    Raises:
        PrunescopeError: There is no file, or it holds no replays.
    """
    if not path.is_file() or path.stat().st_size > MAX_BYTES:
        raise PrunescopeError(f"{path.name} is not a file of replayed GEMMs", hint=_HINT)
    return decode(path.read_bytes(), Replays, where=path.name, hint=_HINT)


def _not_of_placements(
    ns: float, ends: Sequence[float] | None, placements: Sequence[float]
) -> Iterator[str]:
    """Yield that a time is not positive, or that it or its interval is not that of placements."""
    if min(ns, *placements, 1) <= 0:
        yield "a time is not above 0"
        return
    if placements and differs(ns, statistics.geometric_mean(placements)):
        yield "ns is not the geometric mean of placements_ns"
    logs = interval_of([math.log(of) for of in placements])
    if logs is not None and ends is not None:
        wrong = any(differs(end, math.exp(log)) for end, log in zip(ends, logs, strict=True))
        if wrong:
            yield "ci95 is not the interval of placements_ns"


def interval_of(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % t interval of the mean of a value for each placement.

    None means fewer than LEAST_PLACEMENTS.
    """
    if len(values) < LEAST_PLACEMENTS:
        return None
    mean = statistics.fmean(values)
    half = t_quantile_975(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return [mean - half, mean + half]


def times_of(placements: Sequence[Sequence[float]]) -> ReplayTimes:
    """Return the time of a call from its samples in ns, by placement."""
    medians = [statistics.median(samples) for samples in placements]
    logs = [math.log(ns) for ns in medians]
    ends = interval_of(logs)
    return ReplayTimes(
        ns=math.exp(statistics.fmean(logs)),
        ci95=None if ends is None else [math.exp(end) for end in ends],
        placements_ns=medians,
        samples=sum(map(len, placements)),
    )
