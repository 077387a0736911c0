"""GEMMs replayed alone, held against the kernel row of a run's ledger.

In: a report, and what `prunescope gemm` replayed of it. Out: the cases to replay; the report with a
`replay` in each phase. A role's kernel efficiency is Σ t_p − R·Σ t_d over its GEMMs, where R is
what remains of the dense time by work, roofline and shape; alone it is the same sum over calls that
ran alone, with the same R. Times in ns a step, in the time base of the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from prunescope.analysis.device.tiles import tile_of
from prunescope.analysis.paying_alignment import paying_alignment
from prunescope.analysis.schema.replay import AlignedTime, Replay, ReplayLine
from prunescope.analysis.schema.report import GemmRow, LedgerPart, Phase, Report, is_beyond_noise
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.gemm import Gemm
from prunescope.taxonomy.replays import (
    GemmCase,
    ReplayedGemm,
    Replays,
    ReplayTimes,
    interval_of,
)
from prunescope.taxonomy.run import Run
from prunescope.taxonomy.words import ms

_KINDS = ("gemm", "gemv", "batched_gemm")
# What torch.matmul multiplies; tf32 is a mode of fp32.
_DTYPES = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16"}


def cases_of(report: Report) -> tuple[list[GemmCase], list[str]]:
    """The distinct GEMMs of a report, and what is left out of it and why."""
    found: dict[tuple[Gemm, Gemm | None, str], GemmCase] = {}
    left_out: dict[str, None] = {}
    for name, phase in report.phases.items():
        for row in phase.gemms:
            gemm = _gemm(row)
            dtype = _DTYPES.get(row.dtype or "")
            if row.axis == "gone" or row.kind == "attention":
                continue
            if row.kind not in _KINDS or gemm is None or dtype is None:
                left_out[f"{name} {row.role}: {row.kind} in {row.dtype or 'an unknown format'}"] = (
                    None
                )
                continue
            key = gemm, _dense_gemm(row), dtype
            if key in found:
                found[key] = _with_role(found[key], row.role)
            else:
                found[key] = GemmCase(
                    pruned=gemm, dense=key[1], dtype=dtype, role=row.role, phase=name
                )
    return list(found.values()), list(left_out)


def with_tiles(replays: Replays) -> Replays:
    """With the tile of each kernel whose name states one."""
    for one in replays.gemms:
        tile = tile_of(one.kernel) if one.kernel else None
        one.tile = f"{tile.rows}x{tile.columns}" if tile else None
    return replays


def with_replays(report: Report, replays: Replays, run: Run | None) -> Report:
    """The report with a `replay` in each phase of which GEMMs were replayed.

    Raises PrunescopeError for replays of another device than the run's.
    """
    ran = run.device.name if run is not None and run.device is not None else None
    if ran and replays.device.name and ran != replays.device.name:
        raise PrunescopeError(
            f"the GEMMs were replayed on {replays.device.name}, and the run is of {ran}",
            hint="replay them where the run was traced: prunescope gemm RUN",
        )
    phases = {
        name: msgspec.structs.replace(phase, replay=_replay(name, phase, replays))
        for name, phase in report.phases.items()
    }
    if all(phase.replay is None for phase in phases.values()):
        raise PrunescopeError(
            "none of the replayed GEMMs is one of this run",
            hint="give the gemms.json that `prunescope gemm` wrote for it",
        )
    return msgspec.structs.replace(report, phases=phases)


@dataclass(frozen=True)
class _Alone:
    """The GEMM of a row alone, and the dense one; `dense_calls`: a step."""

    row: GemmRow
    pruned: ReplayedGemm
    dense: ReplayedGemm | None
    dense_calls: float

    def kernel_ns(self, kept: float, *, cold: bool) -> list[float]:
        """count·τ_p − kept·dense_calls·τ_d for each placement."""
        pruned = _times(self.pruned, cold=cold).placements_ns
        dense = _times(self.dense, cold=cold).placements_ns if self.dense else []
        if not dense:
            return []
        return [
            self.row.count * p - kept * self.dense_calls * d
            for p, d in zip(pruned, dense, strict=False)
        ]


@dataclass(frozen=True)
class _Role:
    """The GEMMs of a role: its part of the ledger's kernel row, and what they make of it alone, by
    placement, with warm and with cold operands."""

    line: ReplayLine
    part: LedgerPart | None
    warm: list[float]
    cold: list[float]


def _replay(name: str, phase: Phase, replays: Replays) -> Replay | None:
    by_shape = {
        (one.gemm, one.dtype): one
        for one in replays.gemms
        if {"pruned", "given"} & set(one.reasons)
    }
    dense = {(one.role, one.phase): one for one in replays.gemms if "dense" in one.reasons}
    rows: dict[str, list[_Alone]] = {}
    unknown = set()
    for row in phase.gemms:
        gemm, dtype = _gemm(row), _DTYPES.get(row.dtype or "")
        pruned = by_shape.get((gemm, dtype)) if gemm and dtype else None
        if pruned is None:
            unknown |= {row.role} if row.kind in _KINDS and row.axis != "gone" else set()
            continue
        base = dense.get((pruned.role, pruned.phase))
        base = base if base is not None and base.gemm == _dense_gemm(row) else None
        calls = (row.dense_count or 0.0) * _share_of_dense(row, phase.gemms)
        rows.setdefault(row.role, []).append(_Alone(row, pruned, base, calls))
    if not rows:
        return None
    withheld = _withheld(phase, replays)
    roles = [
        _role(phase, role, found, is_whole=role not in unknown, withheld=withheld)
        for role, found in rows.items()
    ]
    roles.sort(key=lambda one: -(one.line.inside_ns * one.line.count))
    compared = [one for one in roles if one.part is not None and one.warm and one.cold]
    ledger = sum(one.part.ns for one in compared if one.part) if compared else None
    ends = _sum_ends(compared)
    alone = _hull(_summed(one.warm for one in compared), _summed(one.cold for one in compared))
    lines = [one.line for one in roles]
    if withheld is not None:
        text = f"No GEMM has a verdict: {withheld}."
    else:
        text = _summary(len(compared), ledger, ends, alone, lines)
    # Alignments compare GEMMs alone, whatever the times of the run are.
    aligned = paying_alignment(name, replays.gemms, partial(_calls, phase))
    return Replay(
        lines=lines,
        ledger_ns=ledger,
        ledger_ci95=ends,
        alone_ci95=alone,
        explains=None if ends is None or alone is None or withheld else _meet(alone, ends),
        text=f"{text} {aligned}".rstrip() if replays.timing_valid else text,
        curves=[one for one in replays.curves if one.phase == name],
        alignments=_alignments(name, replays.gemms),
        device=replays.device.name,
        placements=replays.placements,
        repeats=replays.repeats,
        disturbed=replays.disturbed,
        withheld=withheld,
    )


def _withheld(phase: Phase, replays: Replays) -> str | None:
    """Why no GEMM gets a verdict; None where the times of the run and those alone are valid, and
    what differs between the two runs is the pruning."""
    reasons = [f"{one.text} ({'; '.join(one.evidence)})" for one in phase.invalid_times]
    if not phase.shows_pruning:
        reasons.append("the two runs differ in more than the pruning")
    if not replays.timing_valid:
        reasons.append(f"the GEMMs alone were disturbed by {', '.join(replays.disturbed)}")
    return "; ".join(reasons) or None


def _role(
    phase: Phase,
    role: str,
    found: Sequence[_Alone],
    *,
    is_whole: bool,
    withheld: str | None,
) -> _Role:
    largest = max(found, key=lambda one: one.row.busy_ns)
    row, alone = largest.row, largest.pruned
    part = _kernel_part(phase, role) if is_whole else None
    warm, cold = list[float](), list[float]()
    unpruned = is_whole and all(_gemm(one.row) == _dense_gemm(one.row) for one in found)
    if part is not None and isinstance(part.expected, float) and not unpruned:
        kept = part.expected
        warm, cold = (
            _summed(one.kernel_ns(kept, cold=state) for one in found) for state in (False, True)
        )
    if unpruned:
        verdict, text = "unpruned", _same_twice(role, part, is_valid=withheld is None)
    elif withheld is not None:
        verdict, text = "withheld", f"{role}: no verdict: {withheld}"
    else:
        verdict, text = _verdict(role, part, warm, cold)
    line = ReplayLine(
        role=role,
        axis=row.axis,
        m=alone.m,
        n=alone.n,
        k=alone.k,
        dense_n=row.dense_n,
        dense_k=row.dense_k,
        dtype=alone.dtype,
        count=row.count,
        inside_ns=phase.in_step(row.busy_ns) / row.count,
        warm_ns=_times(alone, cold=False).ns,
        warm_ci95=_times(alone, cold=False).ci95,
        cold_ns=_times(alone, cold=True).ns,
        cold_ci95=_times(alone, cold=True).ci95,
        dense_warm_ns=_times(largest.dense, cold=False).ns if largest.dense else None,
        dense_cold_ns=_times(largest.dense, cold=True).ns if largest.dense else None,
        share_of_bound=alone.share_of_bound,
        ledger_ns=part.ns if part else None,
        ledger_ci95=_part_ends(part),
        alone_ci95=_hull(warm, cold),
        verdict=verdict,
        text=text,
    )
    return _Role(line, part, warm, cold)


def _verdict(
    role: str, part: LedgerPart | None, warm: list[float], cold: list[float]
) -> tuple[str, str]:
    """Whether a role's GEMMs lose time alone, too."""
    hot, chilled, ends = interval_of(warm), interval_of(cold), _part_ends(part)
    if part is None or hot is None or chilled is None or ends is None:
        return "unknown", f"{role}: the ledger or the replay has no interval to compare"
    if not is_beyond_noise(part):
        return "none", f"{role}: its kernels lose no time beyond the ledger's interval"
    lost = ms(abs(part.ns))
    if part.ns < 0:
        return "faster", f"{role}: its kernels are {lost} faster than work and shape say"
    low, high = min(hot[0], chilled[0]), max(hot[1], chilled[1])
    here = f"{role}: its kernels lose {lost} in the model"
    if hot[0] > 0:
        more = f", and {ms(ends[0] - high)} more inside" if ends[0] > high else ""
        return "library", f"{here} and {_range(low, high)} alone: the library{more}"
    if chilled[0] > 0:
        rest = ends[0] - high
        more = f", and {ms(rest)} at least are neighbours or the launch" if rest > 0 else ""
        return (
            "inside",
            f"{here}, and alone only with a cold cache ({_range(*chilled)}): the cache{more}",
        )
    if high < ends[0]:
        return (
            "inside",
            f"{here}, and {_range(low, high)} alone: neither state of the cache explains it, so "
            "it is neighbours or the launch",
        )
    return "unknown", f"{here}, and {_range(low, high)} alone, which decides nothing"


def _same_twice(role: str, part: LedgerPart | None, *, is_valid: bool) -> str:
    """A GEMM that both models run: two measurements of one thing in the model."""
    text = f"{role}: not pruned, both models run the same GEMM"
    ends = _part_ends(part)
    if part is None or ends is None or not is_valid:
        return text
    apart = f"{text}; its two times in the model differ by {ms(part.ns)} (95 %: {_range(*ends)})"
    if is_beyond_noise(part):
        return f"{apart}, beyond noise: so much comes from what runs around a GEMM, not its shape"
    return f"{apart}, within noise as they should"


def _summary(
    count: int,
    ledger: float | None,
    ends: list[float] | None,
    alone: list[float] | None,
    lines: Sequence[ReplayLine],
) -> str:
    """The outcome in one sentence."""
    if lines and all(line.verdict == "unpruned" for line in lines):
        return "None of the replayed GEMMs was pruned: both models run the same ones."
    if ledger is None or alone is None or ends is None:
        return "The ledger has no kernel row to hold the replayed GEMMs against."
    text = (
        f"Replayed alone, the GEMMs of {count} role{'s' if count != 1 else ''} account for "
        f"{_range(*alone)} of the {ms(ledger)} (95 %: {_range(*ends)}) that the ledger calls "
        "their kernel efficiency"
    )
    if _has_zero(alone) and _has_zero(ends):
        return f"{text}: both intervals include 0, so that neither shows a loss or a gain."
    if _meet(alone, ends):
        return f"{text}: within its interval."
    apart = ends[0] - alone[1] if ends[0] > alone[1] else alone[0] - ends[1]
    inside = [line.role for line in lines if line.verdict == "inside"]
    where = f", in {', '.join(inside)}" if inside else ""
    side = "only inside the model" if ends[0] > alone[1] else "only alone"
    return f"{text}: {ms(apart)} at least are {side}{where}."


def _kernel_part(phase: Phase, role: str) -> LedgerPart | None:
    """The role's part of the kernel row for matrix products; one of 0 where the row has none, of
    which it is not known what was expected."""
    rows = [row for row in phase.ledger or [] if row.row == "kernel_efficiency"]
    if not rows or rows[0].ns is None:
        return None
    found = [one for one in rows[0].parts if one.role == role and one.cls == "matmul"]
    return found[0] if found else LedgerPart(name=role, role=role, cls="matmul", ns=0.0)


def _part_ends(part: LedgerPart | None) -> list[float] | None:
    """The widest of a part's interval and twice its noise; None where it has neither."""
    if part is None:
        return None
    ends = list(part.ci95 or ())
    if part.noise_ns is not None:
        ends += [part.ns - 2 * part.noise_ns, part.ns + 2 * part.noise_ns]
    return [min(ends), max(ends)] if ends else None


def _sum_ends(roles: Iterable[_Role]) -> list[float] | None:
    """The interval of a sum of parts, as if they were independent."""
    middle, low, high = 0.0, 0.0, 0.0
    for one in roles:
        ends = _part_ends(one.part)
        if one.part is None or ends is None:
            return None
        middle += one.part.ns
        low += (one.part.ns - ends[0]) ** 2
        high += (ends[1] - one.part.ns) ** 2
    return [middle - low**0.5, middle + high**0.5]


def _hull(warm: Sequence[float], cold: Sequence[float]) -> list[float] | None:
    """From the lower end of the two intervals to the upper one."""
    both = [ends for ends in (interval_of(warm), interval_of(cold)) if ends is not None]
    return [min(e[0] for e in both), max(e[1] for e in both)] if len(both) == 2 else None


def _summed(by_placement: Iterable[Sequence[float]]) -> list[float]:
    """The sums over GEMMs or roles, placement by placement."""
    return [sum(each) for each in zip(*by_placement, strict=False)]


def _has_zero(ends: Sequence[float]) -> bool:
    return ends[0] <= 0 <= ends[1]


def _meet(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _alignments(phase: str, gemms: Sequence[ReplayedGemm]) -> list[AlignedTime]:
    """The time at each alignment, by pruned GEMM and axis that moved."""
    found = []
    kept = {(one.role, one.phase): one for one in gemms if "pruned" in one.reasons}
    for one in gemms:
        now = kept.get((one.role, one.phase))
        if one.align is None or one.phase != phase or now is None or not (one.warm and now.warm):
            continue
        for axis in ("n", "k"):
            size, was = getattr(one, axis), getattr(now, axis)
            moved = was != getattr(now, f"dense_{axis}")
            other = "k" if axis == "n" else "n"
            if moved and getattr(one, other) == getattr(now, other):
                found.append(
                    AlignedTime(
                        role=str(one.role),
                        axis=axis.upper(),
                        now=was,
                        align=one.align,
                        size=size,
                        ns=one.warm.ns,
                        relative=one.warm.ns / size / (now.warm.ns / was),
                    )
                )
    return sorted(found, key=lambda each: (each.role, each.axis, each.align))


def _calls(phase: Phase, one: ReplayedGemm) -> float:
    """How often a pruned GEMM runs in a step of a phase."""
    return sum(row.count for row in phase.gemms if _gemm(row) == one.gemm)


def _share_of_dense(row: GemmRow, rows: Sequence[GemmRow]) -> float:
    """A row's share, by FLOPs, of the dense GEMM that it is paired with: both GEMMs of a low-rank
    pair stand for one."""
    if row.axis != "rank" or not row.flop:
        return 1.0
    pair = [one for one in rows if one.role == row.role and _dense_gemm(one) == _dense_gemm(row)]
    return row.flop / sum(one.flop or 0.0 for one in pair)


def _gemm(row: GemmRow) -> Gemm | None:
    sizes = (row.m, row.n, row.k, row.batch)
    return Gemm(*map(int, sizes)) if all(sizes) else None  # type: ignore[arg-type]


def _dense_gemm(row: GemmRow) -> Gemm | None:
    sizes = (row.dense_m, row.dense_n, row.dense_k, row.dense_batch)
    return Gemm(*map(int, sizes)) if all(sizes) else None  # type: ignore[arg-type]


def _with_role(case: GemmCase, role: str) -> GemmCase:
    known = str(case.role).split(", ")
    return case if role in known else replace(case, role=", ".join([*known, role]))


def _times(one: ReplayedGemm, *, cold: bool) -> ReplayTimes:
    times = one.cold if cold else one.warm
    if times is None:
        raise PrunescopeError(
            f"{one.role} {one.m}×{one.n}×{one.k} has no times", hint="run `prunescope gemm` again"
        )
    return times


def _range(low: float, high: float) -> str:
    return f"{ms(low)} to {ms(high)}"
