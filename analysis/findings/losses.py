"""Findings on promised time that was lost: dispatch, unpruned work, bytes, less efficient kernels,
communication.

In: a Context. Out: Found, or None. Times are ns a step.
"""

from __future__ import annotations

from prunescope.analysis.findings.allocate import allocation
from prunescope.analysis.findings.context import (
    Context,
    communication,
    is_significant,
    without_communication,
)
from prunescope.analysis.findings.host import long_gaps, repeated_gaps
from prunescope.analysis.findings.interruptions import CORES, interrupted_ns
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.findings.shape import nearest_dimension
from prunescope.analysis.kernels.frame import PRODUCTS
from prunescope.analysis.kernels.graph_replay import LEAST
from prunescope.analysis.schema.report import SLOWER_KERNELS, LedgerPart, Row, is_beyond_noise
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import RESIDUAL, UNPLACED
from prunescope.taxonomy.words import ms, percent

_DECODE = "decode"
_WITH_PROMPTS = ("prefill", "mixed", "trace")  # kinds of phases, or an unknown one
_NET = 0.05  # of a row: parts of opposite sign worth a mention
_SAME = 1e-3  # of a share of FLOPs: rounding
_MUCH = 0.03  # of the dense wall: a row worth a finding


@finding("dispatch-bound", "info")
def dispatch_bound(c: Context) -> Found | None:
    """On a CPU, much of the step is Python and dispatch between ops."""
    phase = c.phase
    dispatch = c.kernels.idle_by_cause["host"] / c.kernels.num_steps
    # Of a device run without a recording it is unknown whether anything waited for the host.
    if c.kernels.on_device or c.kernels.profiler.lacks_device or dispatch <= 0.25 * phase.wall_ns:
        return None
    repeated = repeated_gaps(c.kernels.frame)
    at_one_place = 0 if repeated is None else repeated["long"].sum() / c.kernels.num_steps
    if long_gaps(c.kernels.frame) is not None or 2 * at_one_place > dispatch:
        return None
    return Found(
        text=f"{percent(dispatch / phase.wall_ns)} of the recorded step is between ops (Python "
        "and dispatch): pruning saves that only where it removes whole ops",
        evidence=[f"{c.idle_ms(dispatch)} of gaps in a step of {ms(c.step_ns)}"],
        change=f"{_longer_ops(c)} make{'s' * _is_decode(c)} the ops outweigh the dispatch",
    )


def _kind(c: Context) -> str:
    """The kind of phase: what the trace shows, or the name that a run gives it."""
    return c.candidate.kind["kind"] if c.candidate.kind is not None else c.name


def _is_decode(c: Context) -> bool:
    """Whether a step is a token, so that longer prompts do not make its GEMMs larger."""
    return _DECODE in (c.name, _kind(c))


def _longer_ops(c: Context) -> str:
    """The advice that makes ops longer. A step that is no prompt (a forward of images, training)
    has none."""
    if _is_decode(c):
        return "a larger batch"
    return "larger batches" + " or longer prompts" * (_kind(c) in _WITH_PROMPTS)


@finding("coverage-limited", "warning", needs_valid_times=True, compares=True)
def coverage_limited(c: Context) -> Found | None:
    """Part of the dense step is not pruned, or shrinks by less than was promised."""
    row = c.row("coverage")
    if row is None or row.moves_ns <= 0 or not is_significant(row, of=c.baseline_ns, share=_MUCH):
        return None
    if c.phase.ladder and c.phase.ladder.flop and abs(c.phase.ladder.flop - 1) < 1e-6:
        return None  # nothing was pruned: nothing-removed says so
    if (c.phase.coverage.get("work") or 0.0) < LEAST:
        return None  # what no model reads may have shrunk as much as the rest
    parts = [p for p in row.parts if p.ns > 0 and p.ns >= 0.05 * row.moves_ns][:4]
    some = sum(p.ns for p in row.parts if p.ns > 0 and _shrank(c, p))
    more = -sum(p.ns for p in row.parts if p.ns < 0)  # work that shrank by more than was promised
    has_both = more > _NET * row.moves_ns
    missed = row.moves_ns + more if has_both else row.moves_ns
    idle = sum(p.ns for p in row.parts if p.ns > 0 and p.role is None) > _NET * row.moves_ns
    kept = "work and idle time" if idle else "work"
    where = f"in {kept} that this pruning does not shrink"
    if some > _NET * row.moves_ns:
        rest = missed - some
        whole = f"{ms(rest)} {where} and " if rest > _NET * row.moves_ns else ""
        where = f"{whole}{ms(some)} in work that it shrinks by less"
    net = f"; other work shrank more and offsets {ms(more)}" if has_both else ""
    saving = "promised saving" if c.phase.sparsity.get("nominal") else "saving that its FLOPs allow"
    if c.is_disturbed:
        return Found(
            text=f"part of the {saving} is missed in work that this pruning does not shrink, or "
            "shrinks by less; how much is not known, as the timing is not valid",
            evidence=[p.name for p in parts],
            change=_coverage_change(c) + allocation(c),
            explains_roles=_roles(parts),
        )
    return Found(
        text=f"{ms(missed)} of the {saving} is missed: {where}{net}{_limit(c)}",
        evidence=[f"{p.name}: {ms(p.ns)}" for p in parts],
        change=_coverage_change(c) + allocation(c),
        explains_roles=_roles(parts),
    )


def _roles(parts: list[LedgerPart]) -> frozenset[str]:
    return frozenset(part.role for part in parts if part.role is not None)


def _shrank(c: Context, part: LedgerPart) -> bool:
    """Whether a part of the coverage row is work that shrank, not unpruned work or gaps."""
    return part.role is not None and (part.role, part.cls) not in c.untouched | c.regrouped


def _limit(c: Context) -> str:
    """The coverage bound as text, and by how much and why a run exceeded it."""
    ladder = c.phase.ladder
    if ladder is None or ladder.coverage is None:
        return ""
    text = f"; with kernels as fast as the dense ones the speedup is {ladder.coverage:.2f}× at most"
    if ladder.realised > ladder.coverage:
        low = (ladder.realised_ci95 or [ladder.realised])[0]
        why = _beyond(c) if low > ladder.coverage else "whose interval contains the bound"
        return f"{text}, and {ladder.realised:.2f}× was realised, {why}"
    return text


def _beyond(c: Context) -> str:
    """Which ledger row contributed most to a speedup beyond the coverage bound; only a row that is
    evidence did."""
    what = "kernels" if c.kernels.on_device else "ops"
    gains = {
        "kernel_efficiency": f"because the remaining {what} ran faster",
        "launch_idle": f"because there was less idle time between {what}",
        "shape": "because tiles and waves fit the pruned shapes better",
        "roofline_shift": "because bytes fell more than FLOPs",
    }
    rows = [row for name in gains if (row := c.row(name)) is not None and row.moves_ns < 0]
    most = min(filter(is_beyond_noise, rows), key=lambda row: row.moves_ns, default=None)
    if most is None:
        return f"which no row of the ledger{' beyond its noise' * bool(rows)} explains"
    return gains[most.row]


def _coverage_change(c: Context) -> str:
    """How to shrink the largest part."""
    row = c.row("coverage")
    parts = [p for p in row.parts if p.ns > 0] if row else []
    if not parts:
        return "prune what is untouched, or promise less"
    largest = max(parts, key=lambda p: p.ns)
    whole = (largest.role, largest.cls) in c.untouched
    if largest.role is None:
        return _gap_change(c)
    if largest.cls not in PRODUCTS and largest.role in (*UNPLACED, RESIDUAL):
        return "fuse that work (torch.compile), or promise less: no pruning removes it alone"
    if largest.role in UNPLACED:
        return "prune what is untouched, or promise less"
    if (largest.role, largest.cls) in c.regrouped:
        return (
            f"promise less: each token goes to as many {largest.role} as before, and fewer of them "
            f"save no FLOPs; {cutting('routes')} (fewer a token) does"
        )
    if largest.role == "lm_head" and whole and _more_logits_than_needed(c):
        return "ask for the logits of the last token only (--logits last)"
    if largest.role == "attention" and largest.cls == "attention" and whole:
        return "combine with a family that shrinks attention (heads, or fewer keys)"
    if whole:
        return f"combine with a family that touches {largest.role}, or promise less"
    if (shares := _kept_as_promised(c, largest.role)) is not None:
        kept, promised = (percent(share, 1) for share in shares)
        return (
            f"promise less: {largest.role} keeps {kept} of its FLOPs and {promised} was promised, "
            "but what it keeps takes a larger share of its dense time"
        )
    return f"prune more of {largest.role}, which shrank by less than was promised"


def _kept_as_promised(c: Context, role: str) -> tuple[float, float] | None:
    """The share of their FLOPs that the GEMMs of a role keep, and the promised one, where the first
    is not larger; None where it is, or is not known."""
    ladder = c.phase.ladder
    pairs = [p for p in c.pairs or [] if p.key[1] == role]
    sums = [
        sum(call.flop * call.count for call in calls if call.flop is not None)
        for calls in (
            {id(p.dense): p.dense for p in pairs if p.dense is not None}.values(),
            {id(p.pruned): p.pruned for p in pairs if p.pruned is not None}.values(),
        )
    ]
    if ladder is None or not ladder.nominal or not sums[0]:
        return None
    kept, promised = sums[1] / sums[0], 1 / ladder.nominal
    return None if kept > (1 + _SAME) * promised else (kept, promised)


def _gap_change(c: Context) -> str:
    """How to shorten gaps, by their main cause where it is known."""
    longer = f"longer kernels: {_longer_ops(c)}"
    if c.kernels.profiler.clock_skew is not None:
        return longer
    causes = c.kernels.idle_by_cause if c.kernels.on_device else {"host": 1}
    most = max(causes, key=lambda cause: causes[cause])
    able = c.kernels.on_device and not c.kernels.is_replay and not c.kernels.host.graph_blockers
    graph = ", or a CUDA graph" if able else ""
    return {
        "host": f"fewer and larger ops: {_longer_ops(c)}{graph}",
        "first_call": "compare warm steps",
        "allocator": "keep memory in the caching allocator",
        "collective": "overlap communication with work",
        "sync": "wait for the device less often in a step",
        "memcpy": "copy between host and device less often in a step",
        "blocked": "find out what the streams wait for, and compare steps without it",
    }.get(most, longer)


def _more_logits_than_needed(c: Context) -> bool:
    """Whether `trace` computed the logits of all tokens of a sequence."""
    run = c.phase_run
    if run is None or run.logits != "all" or run.interleaved == "alone":
        return False
    return run.positions[1] - run.positions[0] > 1


@finding("roofline-shift", "warning", needs_valid_times=True, compares=True)
def roofline_shift(c: Context) -> Found | None:
    """FLOPs fell, but bytes fell less."""
    row = c.row("roofline_shift")
    if row is None or row.moves_ns <= 0 or not is_significant(row, of=c.baseline_ns, share=_MUCH):
        return None
    ladder = c.phase.ladder
    if ladder is not None and ladder.flop is not None and ladder.flop <= 1 + _SAME:
        return None  # FLOPs did not fall, so no bytes stayed behind
    is_valid = not c.is_disturbed
    lost = ms(row.moves_ns) if is_valid else "part"
    return Found(
        text=f"FLOPs fall more than bytes: {lost} of the saving is lost to memory traffic",
        evidence=[p.name + f": {ms(p.ns)}" * is_valid for p in row.parts[:4]],
        change="remove bytes too (N or K of the weights, layers), or batch more rows"
        + allocation(c),
        explains_roles=_roles(row.parts[:4]),
    )


@finding(SLOWER_KERNELS, "warning", needs_valid_times=True, compares=True)
def slower_kernels(c: Context) -> Found | None:
    """The remaining kernels are less efficient than the dense ones.

    Communication is left out: how long it takes depends on other ranks.
    """
    row = without_communication(c.row("kernel_efficiency"))
    if row is None or row.moves_ns <= 0 or not is_significant(row, of=c.baseline_ns, share=_MUCH):
        return None
    if not c.kernels.on_device and c.is_disturbed:
        return None  # what disturbed the samples of a CPU disturbed its ops too
    lost = [p for p in row.parts if p.ns > 0]
    parts = ([p for p in lost if is_beyond_noise(p)] or lost)[:4]
    change, saved = _faster_kernels(c, parts, row)
    gain, stopped = row.ns if saved is None else saved, ""
    if (stood := c.in_step(interrupted_ns(c.kernels))) >= row.moves_ns / 2:
        stopped = f"; calls that were interrupted hold {ms(stood)} of the step"
        change, gain = CORES, None  # whatever their shapes are
    return Found(
        text=f"the remaining kernels take {ms(row.moves_ns)} longer than expected of their shapes"
        f"{stopped}",
        evidence=[f"{p.name}: {ms(p.ns)}; {'; '.join(p.evidence)}" for p in parts],
        change=change,
        predicted_ns=gain,
        explains_roles=_roles(parts),
    )


def _faster_kernels(c: Context, parts: list[LedgerPart], row: Row) -> tuple[str, float | None]:
    """Advice for the kernels of these parts: their shapes, if the pruning moved those of the
    largest. With it what that saves at most, in ns a step, where it is of less than the whole row:
    a change that names one role saves no time of another. Else None."""
    as_before = (
        "compare clocks, threads, libraries and what else ran, and capture both models in turns in "
        "one process"
    )
    moved = [part for part in parts if _has_moved(c, part)]
    if not moved:
        return f"no shape of the ops named has moved: {as_before}", None
    better = nearest_dimension(c)
    if better is not None and better.change and (better.predicted_ns or 0.0) >= row.moves_ns / 2:
        return better.change, better.predicted_ns  # most of the loss has a cause with a name
    where, of_role = parts[0].name, parts[0].ns
    if moved[0] is not parts[0]:
        return f"no shape of {where} has moved: {as_before}", of_role
    if not c.kernels.on_device or parts[0].cls not in PRODUCTS:
        ops = "kernels" if c.kernels.on_device else "ops"
        return (
            f"for the {ops} of {where} try an aligned dimension, another layout or a larger batch"
        ), of_role
    return (
        f"for the kernels of {where} try another tile, an aligned dimension or a larger batch"
    ), of_role


def _has_moved(c: Context, part: LedgerPart) -> bool:
    """Whether the pruning moved a dimension of the ops of a part: an axis of its GEMMs, else how
    much a call of the others moves."""
    if part.cls in PRODUCTS:
        axes = {p.axis for p in c.pairs or () if p.key[1] == part.role}
        return not axes <= {"none", "unknown"}
    sides = [side for side in (c.kernels, c.baseline_kernels) if side is not None]
    frames = [side.frame for side in sides]
    of_part = [(one["role"] == part.role) & (one["class"] == part.cls) for one in frames]
    sizes = [
        set(one["bytes"].filter(rows).drop_nulls().unique())
        for one, rows in zip(frames, of_part, strict=True)
    ]
    return all(sizes) and sizes[0] != sizes[-1]


@finding("longer-communication", "info", compares=True)
def longer_communication(c: Context) -> Found | None:
    """Communication takes longer than in the dense run, not because of kernel efficiency."""
    row = c.row("kernel_efficiency")
    if row is None and c.phase.sparsity.get("nominal") is None:  # no saving of it was promised
        row = c.row("not_explained")
    comm = communication(row)
    if comm.moves_ns <= 0 or not is_significant(comm, of=c.baseline_ns, share=_MUCH):
        return None
    return Found(
        text=f"communication takes {ms(comm.moves_ns)} longer than in the dense run: its kernels "
        "run until the last rank arrives, so this is time of links or of waiting, not of pruned "
        "kernels",
        evidence=[f"{p.name}: {ms(p.ns)}; {'; '.join(p.evidence)}" for p in comm.parts[:4]],
        change="compare the traces of all ranks, which show the slowest one",
        explains_roles=_roles(comm.parts[:4]),
    )
