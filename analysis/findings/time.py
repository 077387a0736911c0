"""Where the time went: coverage, roofline, added work, dispatch."""

from __future__ import annotations

from prunescope.analysis.findings.added import residual_map
from prunescope.analysis.findings.context import (
    Context,
    communication,
    is_significant,
    ms,
    sized,
    without_communication,
)
from prunescope.analysis.findings.trust import timing_not_valid
from prunescope.analysis.kernels.waits import cause_sums
from prunescope.analysis.schema.report import Finding, LedgerPart, is_beyond_noise
from prunescope.taxonomy.roles import UNPLACED
from prunescope.taxonomy.words import percent

_DECODE = "decode"
_NET = 0.05  # of a row: what offsets it is named from here on
_MUCH = 0.03  # of the dense wall: a row worth a sentence


def dispatch_bound(c: Context) -> Finding | None:
    """On a CPU, time between ops is Python and dispatch."""
    phase = c.phase
    if c.pruned.on_device or not phase.wall_ns or phase.gap_ns < 0.25 * phase.wall_ns:
        return None
    return Finding(
        id="dispatch-bound",
        severity="info",
        text=f"{percent(phase.gap_ns / phase.wall_ns)} of the recorded step is between ops (Python "
        "and dispatch): pruning saves it only where it removes whole ops",
        evidence=[f"{ms(phase.gap_ns)} of gaps in a step of {ms(phase.wall_ns)}"],
        change=f"{_longer_ops(c)} make{'s' * _is_decode(c)} the ops outweigh the dispatch",
        predicted_ns=None,
    )


def _is_decode(c: Context) -> bool:
    """Whether a step is a token: no prompt, however long, makes its products larger."""
    return c.name == _DECODE or (c.own.kind is not None and c.own.kind["kind"] == _DECODE)


def _longer_ops(c: Context) -> str:
    return "a larger batch" if _is_decode(c) else "larger batches or longer prompts"


def coverage_limited(c: Context) -> Finding | None:
    """Part of the dense step is untouched by the pruning, or shrinks by less than was promised."""
    row = c.row("coverage")
    if row is None or row.moves_ns <= 0 or not is_significant(row, of=c.dense_ns, share=_MUCH):
        return None
    if c.phase.ladder and c.phase.ladder.flop and abs(c.phase.ladder.flop - 1) < 1e-6:
        return None  # nothing was shrunk at all: another finding says so
    parts = [p for p in row.parts if p.ns > 0 and p.ns >= 0.05 * row.moves_ns][:4]
    some = sum(p.ns for p in row.parts if p.ns > 0 and _shrank(c, p))
    less = f", or shrinks by less than that ({ms(some)})" if some > _NET * row.moves_ns else ""
    more = -sum(p.ns for p in row.parts if p.ns < 0)  # shrank by more than the promise
    net = f", less {ms(more)} by which other work shrank more" if more > _NET * row.moves_ns else ""
    saving = "promised saving" if c.phase.sparsity.get("nominal") else "saving that its FLOPs allow"
    return Finding(
        id="coverage-limited",
        severity="warning",
        text=f"{ms(row.moves_ns + more if net else row.moves_ns)} of the {saving} is in work that "
        f"this pruning does not shrink{less}{net}{_limit(c)}",
        evidence=[f"{p.name}: {ms(p.ns)}" for p in parts],
        change=_coverage_change(c),
        predicted_ns=None,
    )


def _shrank(c: Context, part: LedgerPart) -> bool:
    """Whether a part of the coverage row is work that shrank, and not untouched work or gaps."""
    return part.role is not None and (part.role, part.cls) not in c.untouched


def _limit(c: Context) -> str:
    """What the coverage bound says, true of a run that passed it too."""
    ladder = c.phase.ladder
    if ladder is None or ladder.coverage is None:
        return ""
    text = f": with kernels as fast as the dense ones the speedup is {ladder.coverage:.2f}× at most"
    if ladder.realised > ladder.coverage:
        low = (ladder.realised_ci95 or [ladder.realised])[0]
        why = f", {_beyond(c)}" if low > ladder.coverage else ", whose interval holds that"
        return f"{text}; {ladder.realised:.2f}× was realised{why}"
    return text


def _beyond(c: Context) -> str:
    """Which row gave most of what a run has beyond its coverage bound."""
    gains = {
        "kernel_efficiency": "for those that remain ran faster",
        "launch_idle": "for less time passed between them",
        "shape": "for tiles and waves fit the pruned shapes better",
        "roofline_shift": "for more bytes went than FLOPs",
    }
    rows = [row for name in gains if (row := c.row(name)) is not None and row.moves_ns < 0]
    most = min(rows, key=lambda row: row.moves_ns, default=None)
    return "which no row of the ledger explains" if most is None else gains[most.row]


def _coverage_change(c: Context) -> str:
    """The change that follows from the largest part."""
    row = c.row("coverage")
    parts = [p for p in row.parts if p.ns > 0] if row else []
    if not parts:
        return "prune what is untouched, or promise less"
    largest = max(parts, key=lambda p: p.ns)
    whole = (largest.role, largest.cls) in c.untouched
    if largest.role is None:
        return _gap_change(c)
    if largest.role in UNPLACED:
        return "prune what is untouched, or promise less"
    if largest.role == "lm_head" and whole and _more_logits_than_needed(c):
        return "ask for the logits of the last token only (--logits last)"
    if largest.role == "attention" and largest.cls == "attention" and whole:
        return "combine with a family that shrinks attention (heads, or fewer keys)"
    if whole:
        return f"combine with a family that touches {largest.role}, or promise less"
    return f"prune more of {largest.role}, of which less went than was promised"


def _gap_change(c: Context) -> str:
    """What shortens gaps, by what most of them wait for, where that can be told."""
    longer = f"longer kernels: {_longer_ops(c)}"
    if c.pruned.apart is not None:
        return longer
    causes = cause_sums(c.pruned.frame) if c.pruned.on_device else {"host": 1}
    most = max(causes, key=lambda cause: causes[cause])
    able = c.pruned.on_device and not c.pruned.is_replay and not c.pruned.stops
    graph = ", or a CUDA graph" if able else ""
    return {
        "host": f"fewer and larger ops: {_longer_ops(c)}{graph}",
        "sync": "wait for the device less often in a step",
        "memcpy": "copy between host and device less often in a step",
        "blocked": "compare steps without what their streams wait for",
    }.get(most, longer)


def _more_logits_than_needed(c: Context) -> bool:
    """Whether `trace` ran it, which has the option, and a sequence has more tokens than one."""
    run = c.run
    if run is None or run.logits != "all" or run.interleaved == "alone":
        return False
    return run.positions[1] - run.positions[0] > 1


def roofline_shift(c: Context) -> Finding | None:
    """FLOPs fell, compulsory bytes did not."""
    row = c.row("roofline_shift")
    if row is None or row.moves_ns <= 0 or not is_significant(row, of=c.dense_ns, share=_MUCH):
        return None
    return Finding(
        id="roofline-shift",
        severity="warning",
        text=f"FLOPs fall, bytes do not: {ms(row.moves_ns)} of the saving is lost to memory "
        "traffic",
        evidence=[f"{p.name}: {ms(p.ns)}" for p in row.parts[:4]],
        change="remove bytes too (N or K of the weights, layers), or batch more rows",
        predicted_ns=None,
    )


def slower_kernels(c: Context) -> Finding | None:
    """The kernels that remain are less efficient than the dense ones. Not communication, which is
    as long as the other ranks make it."""
    row = without_communication(c.row("kernel_efficiency"))
    if row is None or row.moves_ns <= 0 or not is_significant(row, of=c.dense_ns, share=_MUCH):
        return None
    if not c.pruned.on_device and timing_not_valid(c) is not None:
        return None  # what disturbed the samples of a CPU disturbed its ops
    lost = [p for p in row.parts if p.ns > 0]
    parts = ([p for p in lost if is_beyond_noise(p)] or lost)[:4]
    return Finding(
        id="slower-kernels",
        severity="warning",
        text=f"the remaining kernels lose {ms(row.moves_ns)} against what their shapes promise",
        evidence=[f"{p.name}: {ms(p.ns)}; {'; '.join(p.evidence)}" for p in parts],
        change="look at the kernels named: another tile, an aligned dimension or a larger batch"
        if c.pruned.on_device
        else "look at the ops named: an aligned dimension, another layout or a larger batch",
        predicted_ns=row.ns,
    )


def longer_communication(c: Context) -> Finding | None:
    """Communication takes longer than in the dense run, which is no matter of kernels."""
    row = c.row("kernel_efficiency")
    if row is None and c.phase.sparsity.get("nominal") is None:  # nothing of it was promised away
        row = c.row("not_explained")
    comm = communication(row)
    if comm.moves_ns <= 0 or not is_significant(comm, of=c.dense_ns, share=_MUCH):
        return None
    return Finding(
        id="longer-communication",
        severity="info",
        text=f"communication takes {ms(comm.moves_ns)} longer than in the dense run: its kernels "
        "run until the last rank has come, so that is time of the links or of waiting, not of "
        "pruned kernels",
        evidence=[f"{p.name}: {ms(p.ns)}; {'; '.join(p.evidence)}" for p in comm.parts[:4]],
        change="compare the traces of all ranks, which tell the slowest one",
        predicted_ns=None,
    )


def added_work(c: Context) -> Finding | None:
    """Kernels that the dense model does not have."""
    row = c.row("added_work")
    if row is None or not is_significant(row, of=c.dense_ns, share=0.01):
        return None
    maps = sum(part.ns for part in row.parts if part.role == "residual")
    if 2 * maps > (row.ns or 0.0) and residual_map(c) is not None:
        return None  # it has said so, and has the better advice
    return Finding(
        id="added-work",
        severity="warning",
        text=f"work that the dense model does not have takes {ms(row.moves_ns)}",
        evidence=[f"{p.name}: {ms(p.ns)}" for p in row.parts[:5]],
        change="fuse or batch the kernels named (routing, gather and scatter, layout copies, maps)",
        predicted_ns=row.ns,
    )


def second_gemm(c: Context) -> Finding | None:
    """Two GEMMs through a rank take as long as the one they replace."""
    rows = [g for g in c.phase.gemms if g.axis == "rank"]
    dense = sum(g.dense_busy_ns or 0 for g in rows)
    busy = sum(g.busy_ns for g in rows)
    if not rows or busy < 0.9 * dense or c.is_little(busy):
        return None
    return Finding(
        id="second-gemm",
        severity="warning",
        text=f"two GEMMs through a rank take {busy / dense:.2f} × the time of the dense one",
        evidence=[f"{sized(g)}: {ms(g.busy_ns)}" for g in rows[:4]],
        change="a lower rank, or leave the small matrices (k, v) dense",
        predicted_ns=busy - dense,
    )
