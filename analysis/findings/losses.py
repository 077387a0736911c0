"""Findings on promised time that was lost.

It is lost to dispatch, unpruned work, bytes, less efficient kernels and communication.

In: a Context. Out: Found, or None. Times are ns a step.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import polars as pl

from prunescope.analysis.findings.allocate import allocation
from prunescope.analysis.findings.context import (
    Context,
    communication,
    enumerate_words,
    is_significant,
    without_communication,
)
from prunescope.analysis.findings.host import long_gaps, repeated_gaps
from prunescope.analysis.findings.interruptions import CORES, interrupted_ns
from prunescope.analysis.findings.registry import Found, finding
from prunescope.analysis.findings.shape import nearest_dimension
from prunescope.analysis.kernels.assignment import LEAST
from prunescope.analysis.kernels.frame import ATTENTION, MATMUL, PRODUCTS, Kernels
from prunescope.analysis.schema.report import SLOWER_KERNELS, LedgerPart, Row, is_beyond_noise
from prunescope.taxonomy.families import cutting
from prunescope.taxonomy.roles import RESIDUAL, UNPLACED
from prunescope.taxonomy.words import ms, percent, when

_DECODE = "decode"
_WITH_PROMPTS = ("prefill", "mixed", "trace")  # kinds of phases, or an unknown one
_NET = 0.05  # of a row: parts of opposite sign worth a mention
_SAME = 1e-3  # of a share of FLOPs: rounding
_MUCH = 0.03  # of the dense wall: a row worth a finding


@finding("dispatch-bound", "info")
def dispatch_bound(c: Context) -> Found | None:
    """Report that on a CPU much of the step is Python and dispatch between ops."""
    wall = c.phase.wall_ns
    dispatch = c.kernels.idle_by_cause["host"] / c.kernels.num_steps
    # Of a device run without a recording it is unknown whether anything waited for the host.
    if c.kernels.on_device or c.kernels.profiler.lacks_device or dispatch <= 0.25 * wall:
        return None
    repeated = repeated_gaps(c.kernels.frame)
    at_one_place = 0 if repeated is None else c.per_step(repeated, "long")
    if long_gaps(c.kernels.frame) is not None or 2 * at_one_place > dispatch:
        return None
    return Found(
        text=f"{percent(dispatch / wall)} of the recorded step is between ops (Python and "
        "dispatch): pruning saves that only where it removes whole ops",
        evidence=[f"{c.idle_ms(dispatch)} of gaps in a step of {ms(c.step_ns)}"],
        change=f"{_lengthen_ops(c)} make{when(_is_decode(c), 's')} the ops outweigh the dispatch",
    )


def _kind(c: Context) -> str:
    """Return the kind of phase: what the trace shows, or the name that a run gives it."""
    return c.candidate.kind["kind"] if c.candidate.kind is not None else c.name


def _is_decode(c: Context) -> bool:
    """Return whether a step is a token, so that longer prompts do not make its GEMMs larger."""
    return _DECODE in (c.name, _kind(c))


def _lengthen_ops(c: Context) -> str:
    """Say what makes ops longer; only a step that may hold a prompt has longer prompts."""
    if _is_decode(c):
        return "a larger batch"
    return f"larger batches{when(_kind(c) in _WITH_PROMPTS, ' or longer prompts')}"


def _large_loss(c: Context, row: Row | None) -> Row | None:
    """Return a ledger row if it costs at least 3 % of the dense wall, beyond its noise."""
    if row is None or row.moves_ns <= 0:
        return None
    return row if is_significant(row, of=c.baseline_ns, share=_MUCH) else None


@finding("coverage-limited", "warning", needs_valid_times=True, compares=True)
def coverage_limited(c: Context) -> Found | None:
    """Report that part of the dense step is not pruned, or shrinks by less than was promised."""
    row = _large_loss(c, c.row("coverage"))
    if row is None:
        return None
    if c.phase.ladder and c.phase.ladder.flop and abs(c.phase.ladder.flop - 1) < 1e-6:
        return None  # nothing was pruned: nothing-removed says so
    if (c.phase.coverage.get("work") or 0.0) < LEAST:
        return None  # what no model reads may have shrunk as much as all else
    lost = [part for part in row.parts if part.ns > 0]
    parts = [part for part in lost if part.ns >= 0.05 * row.moves_ns][:4]
    saving = "promised saving" if c.phase.sparsity.get("nominal") else "saving that its FLOPs allow"
    text = (
        f"part of the {saving} is missed in work that this pruning does not shrink, or shrinks by "
        "less; how much is not known, as the timing is not valid"
    )
    if not c.is_disturbed:
        text = f"{_missed_saving(c, row, lost, saving)}{_limit(c)}"
    return Found(
        text=text,
        evidence=[f"{part.name}{when(not c.is_disturbed, f': {ms(part.ns)}')}" for part in parts],
        change=_shrink_more(c, max(lost, key=lambda part: part.ns, default=None)),
        allocate=allocation(c),
        explains_roles=_roles(parts),
    )


def _missed_saving(c: Context, row: Row, lost: list[LedgerPart], saving: str) -> str:
    """Say how much of a saving is missed, in which kinds of work, and mostly in which parts."""
    least = _NET * row.moves_ns
    stays = c.untouched | c.regrouped
    shrunk = sum(part.ns for part in lost if part.role and (part.role, part.cls) not in stays)
    # Work that shrank by more than was promised.
    more = -sum(part.ns for part in row.parts if part.ns < 0)
    missed = row.moves_ns + more if more > least else row.moves_ns
    kinds = []
    if shrunk <= least or missed - shrunk > least:
        kinds.append("untouched work")
    if shrunk > least:
        kinds.append("work that shrinks by less than was promised")
    costs: dict[str, float] = defaultdict(float)
    for part in lost:
        role = "work without a role" if part.role in UNPLACED else part.role
        costs[role or "gaps"] += part.ns
    largest = sorted(costs, key=lambda role: -costs[role])[:2]
    names = [f"{role} ({ms(costs[role])})" for role in largest if costs[role] >= least]
    mostly = when(bool(names), f", mostly {enumerate_words(names)}")
    net = when(more > least, f"; other work shrank more and gives {ms(more)} back")
    cost = "cost" if len(kinds) > 1 else "costs"
    return f"{' and '.join(kinds)} {cost} {ms(missed)} of the {saving}{mostly}{net}"


def _roles(parts: list[LedgerPart]) -> frozenset[str]:
    return frozenset(part.role for part in parts if part.role is not None)


def _limit(c: Context) -> str:
    """Format the coverage bound, and whether a speedup above it agrees with it or exceeds it.

    The finding above-bound names the rows of the ledger that gave the rest.
    """
    ladder = c.phase.ladder
    if ladder is None or ladder.coverage is None:
        return ""
    limit = f"; limit: {ladder.coverage:.2f}×"
    if ladder.realised <= ladder.coverage:
        return limit
    exceeds = (ladder.realised_ci95 or [ladder.realised])[0] > ladder.coverage
    return f"{limit}, measured {ladder.realised:.2f}× {'exceeds it' if exceeds else 'agrees'}"


def _shrink_more(c: Context, part: LedgerPart | None) -> str:
    """Say how to shrink a part of the coverage row; None: no part is known."""
    if part is None or (part.cls in PRODUCTS and part.role in UNPLACED):
        return "prune what is untouched, or promise less"
    if part.role is None:
        return _shorten_gaps(c)
    work, role = (part.role, part.cls), part.role
    if part.cls not in PRODUCTS and role in (*UNPLACED, RESIDUAL):
        return "fuse that work (torch.compile), or promise less: no pruning removes it alone"
    if work in c.regrouped:
        return (
            f"promise less: each token goes to as many {role} as before, and fewer of them "
            f"save no FLOPs; {cutting('routes')} (fewer a token) does"
        )
    if work in c.untouched:
        if role == "lm_head" and _has_more_logits_than_needed(c):
            return "ask for the logits of the last token only (--logits last)"
        if work == ("attention", "attention"):
            return "combine with a family that shrinks attention (heads, or fewer keys)"
        return f"combine with a family that touches {role}, or promise less"
    if (shares := _kept_as_promised(c, role)) is not None:
        kept, promised = (percent(share, 1) for share in shares)
        return (
            f"promise less: {role} keeps {kept} of its FLOPs and {promised} was promised, "
            "but what it keeps takes a larger share of its dense time"
        )
    return f"prune more of {role}, which shrank by less than was promised"


def _kept_as_promised(c: Context, role: str) -> tuple[float, float] | None:
    """Return the share of their FLOPs that the GEMMs of a role keep, and the promised one.

    Returns None where the first is larger, or unknown.
    """
    ladder = c.phase.ladder
    pairs = [pair for pair in c.pairs if pair.key[1] == role]
    calls = (
        {id(pair.dense): pair.dense for pair in pairs},  # several may share a call
        {id(pair.pruned): pair.pruned for pair in pairs},
    )
    dense, pruned = (
        sum(call.flop * call.count for call in side.values() if call and call.flop is not None)
        for side in calls
    )
    if ladder is None or not ladder.nominal or not dense:
        return None
    kept, promised = pruned / dense, 1 / ladder.nominal
    return None if kept > (1 + _SAME) * promised else (kept, promised)


def _shorten_gaps(c: Context) -> str:
    """Say how to shorten gaps, by their main cause where it is known."""
    longer = f"longer kernels: {_lengthen_ops(c)}"
    if c.kernels.profiler.clock_skew is not None:
        return longer
    causes = c.kernels.idle_by_cause if c.kernels.on_device else {"host": 1}
    has_graph = c.kernels.is_replay or bool(c.kernels.host.graph_blockers)
    graph = when(c.kernels.on_device and not has_graph, ", or a CUDA graph")
    return {
        "host": f"fewer and larger ops: {_lengthen_ops(c)}{graph}",
        "first_call": "compare warm steps",
        "allocator": "keep memory in the caching allocator",
        "collective": "overlap communication with work",
        "sync": "wait for the device less often in a step",
        "memcpy": "copy between host and device less often in a step",
        "blocked": "find out what the streams wait for, and compare steps without it",
    }.get(max(causes, key=lambda cause: causes[cause]), longer)


def _has_more_logits_than_needed(c: Context) -> bool:
    """Return whether `trace` computed the logits of all tokens of a sequence."""
    run = c.phase_run
    if run is None or run.logits != "all" or run.interleaved == "alone":
        return False
    return run.positions[1] - run.positions[0] > 1


@finding("roofline-shift", "warning", needs_valid_times=True, compares=True)
def roofline_shift(c: Context) -> Found | None:
    """Report that FLOPs fell, but bytes fell less."""
    row, ladder = _large_loss(c, c.row("roofline_shift")), c.phase.ladder
    if row is None:
        return None
    if ladder is not None and ladder.flop is not None and ladder.flop <= 1 + _SAME:
        return None  # FLOPs did not fall, so no bytes stayed behind
    parts, is_valid = row.parts[:4], not c.is_disturbed
    return Found(
        text=f"FLOPs fall more than bytes: {ms(row.moves_ns) if is_valid else 'part'} of the "
        "saving is lost to memory traffic",
        evidence=[f"{part.name}{when(is_valid, f': {ms(part.ns)}')}" for part in parts],
        change="remove bytes too (N or K of the weights, layers), or batch more rows",
        allocate=allocation(c),
        explains_roles=_roles(parts),
    )


@finding(SLOWER_KERNELS, "warning", needs_valid_times=True, compares=True)
def slower_kernels(c: Context) -> Found | None:
    """Report that the remaining kernels are less efficient than the dense ones.

    Communication is left out: how long it takes depends on other ranks.
    """
    row = _large_loss(c, without_communication(c.row("kernel_efficiency")))
    if row is None or (c.is_disturbed and not c.kernels.on_device):
        return None  # what disturbed the samples of a CPU disturbed its ops too
    lost = [part for part in row.parts if part.ns > 0]
    parts = ([part for part in lost if is_beyond_noise(part)] or lost)[:4]
    change, gain = _speed_up_kernels(c, parts, row)
    interrupted = c.scale_to_step(interrupted_ns(c.kernels))
    is_interrupted = interrupted >= row.moves_ns / 2
    if is_interrupted:
        change, gain = CORES, None  # whatever their shapes are
    hold = f"; calls that were interrupted hold {ms(interrupted)} of the step"
    return Found(
        text=f"the remaining kernels take {ms(row.moves_ns)} longer than expected of their shapes"
        f"{when(is_interrupted, hold)}",
        evidence=_with_evidence(parts),
        change=change,
        predicted_ns=gain,
        explains_roles=_roles(parts),
    )


def _with_evidence(parts: list[LedgerPart]) -> list[str]:
    return [f"{part.name}: {ms(part.ns)}; {'; '.join(part.evidence)}" for part in parts]


def _speed_up_kernels(c: Context, parts: list[LedgerPart], row: Row) -> tuple[str, float | None]:
    """Say how to make the kernels of some parts faster, and what that saves at most, ns a step.

    The advice is on their shapes if the pruning moved those of the largest part. A change that
    names one role saves no time of another.
    """
    as_before = (
        "compare clocks, threads, libraries and what else ran, and capture both models in turns in "
        "one process"
    )
    if (others := _other_ops(c, parts[0])) is not None:
        return others, parts[0].ns
    if not any(_has_moved(c, part) for part in parts):
        return f"no shape of the ops named has moved: {as_before}", row.ns
    better = nearest_dimension(c)
    if better is not None and better.change and (better.predicted_ns or 0.0) >= row.moves_ns / 2:
        return better.change, better.predicted_ns  # most of the loss has a cause with a name
    first = parts[0]
    if not _has_moved(c, first):
        return f"no shape of {first.name} has moved: {as_before}", first.ns
    ops = "kernels" if c.kernels.on_device else "ops"
    how = "an aligned dimension, another layout"
    if c.kernels.on_device and first.cls in PRODUCTS:
        how = "another tile, an aligned dimension"
    of_part = f"{ops} of {first.name}" if first.role not in UNPLACED else f"{first.cls} {ops}"
    return f"for the {of_part} try {how} or a larger batch", first.ns


def _other_ops(c: Context, part: LedgerPart) -> str | None:
    """Say which op does the work of a part instead of that of the dense run; None for the same.

    Each of the two is the one that takes most of the time of the part, and the other side lacks it.
    """
    times = [
        side.kernels.frame.filter((pl.col("role") == part.role) & (pl.col("class") == part.cls))
        .drop_nulls("op")
        .group_by("op")
        .agg(pl.col("busy").sum())
        .sort("busy", "op", descending=True)["op"]
        .to_list()
        for _, side in c.sides
    ]
    if not all(times) or times[0][0] in times[-1] or times[-1][0] in times[0]:
        return None
    dense, pruned = times[0][0], times[-1][0]
    return f"{pruned} does the work of {dense}: run the op of the dense model, and compare again"


def _has_moved(c: Context, part: LedgerPart) -> bool:
    """Return whether the pruning moved a dimension of the ops of a part.

    That is an axis of its GEMMs, else the shapes of the operands of its other ops.
    """
    if part.cls in (MATMUL, ATTENTION):
        axes = {pair.axis for pair in c.pairs if pair.key[1] == part.role}
        return not axes <= {"none", "unknown"}
    shapes = [_shapes_of(side.kernels, part) for _, side in c.sides]
    return all(shapes) and shapes[0] != shapes[-1]


def _shapes_of(kernels: Kernels, part: LedgerPart) -> set[tuple[str, tuple[Any, ...]]]:
    """Return the ops of a part that have shapes, each with those of its operands."""
    frame = kernels.frame
    rows = (frame["role"] == part.role) & (frame["class"] == part.cls)
    calls = [kernels.shapes.calls[i] for i in frame["call"].filter(rows).drop_nulls().unique()]
    return {(call.name, call.shapes) for call in calls if any(call.shapes)}


@finding("longer-communication", "info", compares=True)
def longer_communication(c: Context) -> Found | None:
    """Report that communication, not kernels, takes longer than in the dense run."""
    row = c.row("kernel_efficiency")
    if row is None and c.phase.sparsity.get("nominal") is None:  # no saving of it was promised
        row = c.row("not_explained")
    comm = _large_loss(c, communication(row))
    if comm is None:
        return None
    return Found(
        text=f"communication takes {ms(comm.moves_ns)} longer than in the dense run: its kernels "
        "run until the last rank arrives, so this is time of links or of waiting, not of pruned "
        "kernels",
        evidence=_with_evidence(comm.parts[:4]),
        change="compare the traces of all ranks, which show the slowest one",
        explains_roles=_roles(comm.parts[:4]),
    )
