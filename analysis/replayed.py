"""GEMMs replayed alone, compared with the kernel row of a run's ledger.

A report gives the cases to replay; with what `prunescope gemm` replayed of them it gets a `replay`
in each phase. A role's kernel efficiency is Σ t_p − R·Σ t_d over its GEMMs, where R is the share of
the dense time that remains by work, roofline and shape. Alone it is the same sum over calls that
ran alone, with the same R. Times are ns per step, in the time base of the ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from prunescope.analysis.device.tiles import tile_of
from prunescope.analysis.paying_alignment import alignment_times, paying_alignment
from prunescope.analysis.schema.replay import Replay, ReplayLine
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
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.words import ms, plural, when

_KINDS = ("gemm", "gemv", "batched_gemm")
# The formats that torch.matmul multiplies in; tf32 is a mode of fp32.
_DTYPES = {"fp32": "fp32", "tf32": "fp32", "bf16": "bf16", "fp16": "fp16"}


def cases_of(report: Report) -> tuple[list[GemmCase], list[str]]:
    """Return the distinct GEMMs of a report, and what is left out of it and why."""
    cases: dict[tuple[Gemm, Gemm | None, str], GemmCase] = {}
    left_out: dict[str, None] = {}
    for name, phase in report.phases.items():
        for row in phase.gemms:
            gemm = _gemm(row)
            dtype = _DTYPES.get(row.dtype or "")
            if row.axis == "gone" or row.kind == "attention":
                continue
            if row.kind not in _KINDS or gemm is None or dtype is None:
                number_format = row.dtype or "an unknown format"
                left_out[f"{name} {row.role}: {row.kind} in {number_format}"] = None
                continue
            key = gemm, _dense_gemm(row), dtype
            case = GemmCase(pruned=gemm, dense=key[1], dtype=dtype, role=row.role, phase=name)
            cases[key] = _with_role(cases.get(key, case), row.role)
    return list(cases.values()), list(left_out)


def with_tiles(replays: Replays) -> Replays:
    """Set the tile of each GEMM whose kernel's name states one."""
    for gemm in replays.gemms:
        tile = tile_of(gemm.kernel) if gemm.kernel else None
        gemm.tile = f"{tile.rows}x{tile.columns}" if tile else None
    return replays


def with_replays(report: Report, replays: Replays, run: Run | None) -> Report:
    """Return the report with a `replay` in each phase of which GEMMs were replayed.

    Raises PrunescopeError for replays on another device than the run's, and where none belongs to
    the run.
    """
    ran = run.device.name if run is not None and run.device is not None else None
    if ran and replays.device.name and ran != replays.device.name:
        raise PrunescopeError(
            f"the GEMMs were replayed on {replays.device.name}, and the run is of {ran}",
            hint="replay them where the run was traced: prunescope gemm RUN",
        )
    phases = {
        name: msgspec.structs.replace(phase, replay=_compare_phase(name, phase, replays))
        for name, phase in report.phases.items()
    }
    if all(phase.replay is None for phase in phases.values()):
        raise PrunescopeError(
            "none of the replayed GEMMs is one of this run",
            hint="give the gemms.json that `prunescope gemm` wrote for it",
        )
    return msgspec.structs.replace(report, phases=phases)


class _ReplayedRow(Struct, frozen=True):
    """A row of the GEMM table with its replays: the pruned GEMM and the dense one that it replaces.

    `dense_calls` counts the calls of the dense one per step.
    """

    row: GemmRow
    pruned: ReplayedGemm
    dense: ReplayedGemm | None
    dense_calls: float

    def kernel_ns(self, kept: float, *, cold: bool) -> list[float]:
        """Return count·τ_p − kept·dense_calls·τ_d for each placement.

        Nothing without a dense one.
        """
        pruned = _times(self.pruned, cold=cold).placements_ns
        dense = _times(self.dense, cold=cold).placements_ns if self.dense else []
        if not dense:
            return []
        return [
            self.row.count * p - kept * self.dense_calls * d
            for p, d in zip(pruned, dense, strict=False)
        ]


class _ReplayedRole(Struct, frozen=True):
    """The GEMMs of a role, in the ledger and alone.

    `part` is their part of the ledger's kernel row; `warm` and `cold` are what they make of it
    alone, by placement, with warm and with cold operands.
    """

    line: ReplayLine
    part: LedgerPart | None
    warm: list[float]
    cold: list[float]


def _compare_phase(name: str, phase: Phase, replays: Replays) -> Replay | None:
    """Compare the GEMMs of one phase with their replays; None where none was replayed."""
    by_shape = {
        (gemm.gemm, gemm.dtype): gemm
        for gemm in replays.gemms
        if {"pruned", "given"} & set(gemm.reasons)
    }
    dense_gemms = {
        (gemm.role, gemm.phase): gemm for gemm in replays.gemms if "dense" in gemm.reasons
    }
    rows: dict[str, list[_ReplayedRow]] = {}
    unknown = set()
    for row in phase.gemms:
        shape, dtype = _gemm(row), _DTYPES.get(row.dtype or "")
        pruned = by_shape.get((shape, dtype)) if shape and dtype else None
        if pruned is None:
            if row.kind in _KINDS and row.axis != "gone":
                unknown.add(row.role)
            continue
        dense = dense_gemms.get((pruned.role, pruned.phase))
        if dense is not None and dense.gemm != _dense_gemm(row):
            dense = None
        calls = (row.dense_count or 0.0) * _share_of_dense(row, phase.gemms)
        rows.setdefault(row.role, []).append(_ReplayedRow(row, pruned, dense, calls))
    if not rows:
        return None
    withheld = _why_withheld(phase, replays)
    roles = [
        _compare_role(phase, role, replayed, is_whole=role not in unknown, withheld=withheld)
        for role, replayed in rows.items()
    ]
    roles.sort(key=lambda role: -(role.line.inside_ns * role.line.count))
    compared = [role for role in roles if role.part is not None and role.warm and role.cold]
    ledger = sum(role.part.ns for role in compared if role.part) if compared else None
    ends = _interval_of_sum(compared)
    alone = _hull(
        _sum_placements(role.warm for role in compared),
        _sum_placements(role.cold for role in compared),
    )
    lines = [role.line for role in roles]
    if withheld is not None:
        text = f"No GEMM has a verdict: {withheld}."
    else:
        text = _summarise(len(compared), ledger, ends, alone, lines)
    # Alignments compare GEMMs alone, whatever the times of the run are.
    aligned = paying_alignment(name, replays.gemms, partial(_count_calls, phase))
    return Replay(
        lines=lines,
        ledger_ns=ledger,
        ledger_ci95=ends,
        alone_ci95=alone,
        explains=None if ends is None or alone is None or withheld else _overlap(alone, ends),
        text=f"{text} {aligned}".rstrip() if replays.timing_valid else text,
        curves=[curve for curve in replays.curves if curve.phase == name],
        alignments=alignment_times(name, replays.gemms),
        device=replays.device.name,
        placements=replays.placements,
        repeats=replays.repeats,
        disturbed=replays.disturbed,
        withheld=withheld,
    )


def _why_withheld(phase: Phase, replays: Replays) -> str | None:
    """Return why no GEMM gets a verdict; None where verdicts are allowed.

    They are where the times of the run and those alone are valid, and the two runs differ in the
    pruning alone.
    """
    reasons = [f"{finding.text} ({'; '.join(finding.evidence)})" for finding in phase.invalid_times]
    if not phase.shows_pruning:
        reasons.append("the two runs differ in more than the pruning")
    if not replays.timing_valid:
        reasons.append(f"the GEMMs alone were disturbed by {', '.join(replays.disturbed)}")
    return "; ".join(reasons) or None


def _compare_role(
    phase: Phase,
    role: str,
    rows: Sequence[_ReplayedRow],
    *,
    is_whole: bool,
    withheld: str | None,
) -> _ReplayedRole:
    """Compare the GEMMs of one role with their replays.

    `is_whole`: all GEMMs of the role were replayed; else the role has no part of the ledger to
    compare.
    """
    largest = max(rows, key=lambda replayed: replayed.row.busy_ns)
    row, alone = largest.row, largest.pruned
    part = _kernel_part(phase, role) if is_whole else None
    warm, cold = list[float](), list[float]()
    unpruned = is_whole and all(_gemm(each.row) == _dense_gemm(each.row) for each in rows)
    if part is not None and isinstance(part.expected, float) and not unpruned:
        kept = part.expected
        warm, cold = (
            _sum_placements(each.kernel_ns(kept, cold=is_cold) for each in rows)
            for is_cold in (False, True)
        )
    if unpruned:
        verdict, text = "unpruned", _describe_unpruned(role, part, is_valid=withheld is None)
    elif withheld is not None:
        verdict, text = "withheld", f"{role}: no verdict: {withheld}"
    else:
        verdict, text = _judge(role, part, warm, cold)
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
        inside_ns=phase.scale_to_step(row.busy_ns) / row.count,
        warm_ns=_times(alone, cold=False).ns,
        warm_ci95=_times(alone, cold=False).ci95,
        cold_ns=_times(alone, cold=True).ns,
        cold_ci95=_times(alone, cold=True).ci95,
        dense_warm_ns=_times(largest.dense, cold=False).ns if largest.dense else None,
        dense_cold_ns=_times(largest.dense, cold=True).ns if largest.dense else None,
        share_of_bound=alone.share_of_bound,
        ledger_ns=part.ns if part else None,
        ledger_ci95=_interval_of_part(part),
        alone_ci95=_hull(warm, cold),
        verdict=verdict,
        text=text,
    )
    return _ReplayedRole(line, part, warm, cold)


def _judge(
    role: str, part: LedgerPart | None, warm: list[float], cold: list[float]
) -> tuple[str, str]:
    """Return a verdict, and its sentence, on whether a role's GEMMs lose time alone, too."""
    hot, chilled, ends = interval_of(warm), interval_of(cold), _interval_of_part(part)
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
        more = when(ends[0] > high, f", and {ms(ends[0] - high)} more inside")
        return "library", f"{here} and {_range_text(low, high)} alone: the library{more}"
    if chilled[0] > 0:
        unexplained = ends[0] - high
        more = when(
            unexplained > 0, f", and {ms(unexplained)} at least are neighbours or the launch"
        )
        return (
            "inside",
            f"{here}, and alone only with a cold cache ({_range_text(*chilled)}): the cache{more}",
        )
    if high < ends[0]:
        return (
            "inside",
            f"{here}, and {_range_text(low, high)} alone: neither state of the cache explains it, "
            "so it is neighbours or the launch",
        )
    return "unknown", f"{here}, and {_range_text(low, high)} alone, which decides nothing"


def _describe_unpruned(role: str, part: LedgerPart | None, *, is_valid: bool) -> str:
    """Describe a GEMM that both models run: the model measured the same thing twice."""
    text = f"{role}: not pruned, both models run the same GEMM"
    ends = _interval_of_part(part)
    if part is None or ends is None or not is_valid:
        return text
    apart = (
        f"{text}; its two times in the model differ by {ms(part.ns)} (95 %: {_range_text(*ends)})"
    )
    if is_beyond_noise(part):
        return f"{apart}, beyond noise: so much comes from what runs around a GEMM, not its shape"
    return f"{apart}, within noise as they should"


def _summarise(
    count: int,
    ledger: float | None,
    ends: list[float] | None,
    alone: list[float] | None,
    lines: Sequence[ReplayLine],
) -> str:
    """Return the outcome in one sentence."""
    if lines and all(line.verdict == "unpruned" for line in lines):
        return "None of the replayed GEMMs was pruned: both models run the same ones."
    if ledger is None or alone is None or ends is None:
        return "The ledger has no kernel row to hold the replayed GEMMs against."
    text = (
        f"Replayed alone, the GEMMs of {count} role{plural(count)} account for "
        f"{_range_text(*alone)} of the {ms(ledger)} (95 %: {_range_text(*ends)}) that the ledger "
        "calls their kernel efficiency"
    )
    if _has_zero(alone) and _has_zero(ends):
        return f"{text}: both intervals include 0, so that neither shows a loss or a gain."
    if _overlap(alone, ends):
        return f"{text}: within its interval."
    apart = ends[0] - alone[1] if ends[0] > alone[1] else alone[0] - ends[1]
    inside = [line.role for line in lines if line.verdict == "inside"]
    where = when(bool(inside), f", in {', '.join(inside)}")
    side = "only inside the model" if ends[0] > alone[1] else "only alone"
    return f"{text}: {ms(apart)} at least are {side}{where}."


def _kernel_part(phase: Phase, role: str) -> LedgerPart | None:
    """Return the role's part of the kernel row for matrix products.

    A role that is not in the row has a part of 0, of which no expected share is known. Returns None
    without a kernel row.
    """
    rows = [row for row in phase.ledger or [] if row.row == "kernel_efficiency"]
    if not rows or rows[0].ns is None:
        return None
    parts = (part for part in rows[0].parts if part.role == role and part.cls == "matmul")
    return next(parts, LedgerPart(name=role, role=role, cls="matmul", ns=0.0))


def _interval_of_part(part: LedgerPart | None) -> list[float] | None:
    """Return the widest of a part's interval and twice its noise; None where it has neither."""
    if part is None:
        return None
    ends = list(part.ci95 or ())
    if part.noise_ns is not None:
        ends += [part.ns - 2 * part.noise_ns, part.ns + 2 * part.noise_ns]
    return [min(ends), max(ends)] if ends else None


def _interval_of_sum(roles: Iterable[_ReplayedRole]) -> list[float] | None:
    """Return the interval of a sum of parts, as if they were independent."""
    middle, low, high = 0.0, 0.0, 0.0
    for part in (role.part for role in roles):
        ends = _interval_of_part(part)
        if part is None or ends is None:
            return None
        middle += part.ns
        low += (part.ns - ends[0]) ** 2
        high += (ends[1] - part.ns) ** 2
    return [middle - low**0.5, middle + high**0.5]


def _hull(warm: Sequence[float], cold: Sequence[float]) -> list[float] | None:
    """Return the range from the lower end of two intervals to the upper one; None without both."""
    both = [ends for ends in (interval_of(warm), interval_of(cold)) if ends is not None]
    return [min(e[0] for e in both), max(e[1] for e in both)] if len(both) == 2 else None


def _sum_placements(by_gemm: Iterable[Sequence[float]]) -> list[float]:
    """Return the sums over GEMMs or roles, placement by placement."""
    return [sum(placement) for placement in zip(*by_gemm, strict=False)]


def _has_zero(ends: Sequence[float]) -> bool:
    """Return whether an interval includes 0."""
    return ends[0] <= 0 <= ends[1]


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two intervals overlap."""
    return first[0] <= second[1] and second[0] <= first[1]


def _count_calls(phase: Phase, gemm: ReplayedGemm) -> float:
    """Return how often a pruned GEMM runs in a step of a phase."""
    return sum(row.count for row in phase.gemms if _gemm(row) == gemm.gemm)


def _share_of_dense(row: GemmRow, rows: Sequence[GemmRow]) -> float:
    """Return a row's share, by FLOPs, of the dense GEMM that it is paired with.

    Both GEMMs of a low-rank pair stand for one dense GEMM.
    """
    if row.axis != "rank" or not row.flop:
        return 1.0
    pair = [r for r in rows if r.role == row.role and _dense_gemm(r) == _dense_gemm(row)]
    return row.flop / sum(r.flop or 0.0 for r in pair)


def _gemm(row: GemmRow) -> Gemm | None:
    """Return the GEMM of a row; None where a size is unknown."""
    return _known_gemm(row.m, row.n, row.k, row.batch)


def _dense_gemm(row: GemmRow) -> Gemm | None:
    """Return the dense GEMM of a row; None where a size is unknown."""
    return _known_gemm(row.dense_m, row.dense_n, row.dense_k, row.dense_batch)


def _known_gemm(*sizes: float | None) -> Gemm | None:
    """Return the GEMM of M, N, K and a batch; None where one of them is unknown."""
    return Gemm(*(int(size) for size in sizes if size)) if all(sizes) else None


def _with_role(case: GemmCase, role: str) -> GemmCase:
    """Return the case with a further role that has the same GEMM."""
    known = str(case.role).split(", ")
    return case if role in known else replace(case, role=", ".join([*known, role]))


def _times(gemm: ReplayedGemm, *, cold: bool) -> ReplayTimes:
    """Return the times of a GEMM with warm or cold operands; raise PrunescopeError without them."""
    times = gemm.cold if cold else gemm.warm
    if times is None:
        name = f"{gemm.role} {gemm.m}×{gemm.n}×{gemm.k}"
        raise PrunescopeError(f"{name} has no times", hint="run `prunescope gemm` again")
    return times


def _range_text(low: float, high: float) -> str:
    """Return an interval in ns as a text."""
    return f"{ms(low)} to {ms(high)}"
