"""What lies behind an outcome, for everything that tells it: causes, doubts and the change to make.

In: a Phase of the Report, or rows of its ledger. Out: words and findings, of which the answer
(answer.py) and the paragraph with every share (paragraph.py) make their sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from prunescope.analysis.schema.pair_comparison import OWN_CONFIG
from prunescope.analysis.schema.report import (
    CUT_OFF,
    INVALID_TIMES,
    LATE_RANK,
    NOT_COMPARABLE,
    NOT_VALID,
    OTHER_TIME,
    SIDE_CAVEATS,
    Finding,
    Phase,
    Row,
    is_beyond_noise,
)
from prunescope.taxonomy import numbers
from prunescope.taxonomy.families import known
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.recorder import NSYS, recorder_called
from prunescope.taxonomy.words import when

NAMED = 3  # rows of the ledger, or kinds of work, that are named
# Of the time of GEMMs: with less of it in roles or shapes, the answer lacks them.
LEAST_KNOWN = 0.5
_MODULES = (
    "record modules (torch.profiler: with_stack=True, or record_function scopes as "
    "prunescope.capture makes them; NVTX ranges only with Nsight Systems)"
)
# The kernel that torch runs for the fast path of its attention, in encoder layers and alone.
_FAST_PATH = "transform_bias_rescale_qkv"
_SLOW_PATH = (
    "torch's fast path runs attention or a whole layer as one operator, without its modules: "
    "record with torch.backends.mha.set_fastpath_enabled(False)"
)
SAME_RATIO = 0.005  # of a speedup: it prints as 1.00×
SAME_SHARE = 5e-4  # of FLOPs and bytes: a share that prints as 0.0 %
LEAST = 0.05  # of the difference, or of the busy time: a cause, or a kind of work, worth naming
# Rows of the ledger in plain words: where time was lost, and where it was gained.
_MORE_FLOPS = ("bytes that grew more than the FLOPs", "bytes that grew less than the FLOPs")
_IN_WORDS = {
    "coverage": ("work that the pruning never touched", "work that shrank more than promised"),
    "roofline_shift": ("bytes that did not fall with the FLOPs", "bytes that fell with the FLOPs"),
    "shape": ("tiles and waves of the new dimensions", "tiles and waves of the new dimensions"),
    "kernel_efficiency": ("slower kernels", "faster kernels"),
    "added_work": ("kernels that only the pruned model runs", "kernels that only dense runs"),
    "launch_idle": ("longer gaps between kernels", "shorter gaps between kernels"),
    "not_explained": ("slower kernels of unknown shapes", "faster kernels of unknown shapes"),
}
# Of a row that is mostly attention whose keys nobody counted.
_KEYS_UNKNOWN = (
    "longer attention over a number of keys that the trace does not show",
    "shorter attention over a number of keys that the trace does not show, as with key eviction",
)
_OF_SHAPES = ("kernel_efficiency", "not_explained")  # a shape that is not known may be the cause
# What most of a row may be besides kernels and gaps of the model's own, by the finding on it.
_EXPLAINED_BY = {"interrupted-ops": "interrupted calls", "long-gap": "single long gaps"}


def find_moved(rows: Sequence[Row], over: float) -> list[Row]:
    """Return the rows that are evidence and worth naming beside a difference, the largest first.

    Args:
        rows: The rows of a ledger.
        over: The difference that they explain, ns.
    """
    moved = [
        row
        for row in rows
        if row.effect in ("loss", "gain") and abs(row.moves_ns) >= LEAST * abs(over)
    ]
    return sorted(moved, key=lambda row: -abs(row.moves_ns))


def largest_kinds(phase: Phase) -> Iterator[tuple[str, float, str]]:
    """Yield the kinds on which a step spends most of its busy time.

    Each has its time in the step, ns, and its share of the busy time in words.
    """
    kinds = sorted(phase.busy_by_kind.items(), key=lambda item: -item[1])
    for kind, ns in kinds[:NAMED]:
        share = numbers.share_of(ns, phase.busy_ns)
        if share is not None and share >= LEAST:
            yield kind, phase.scale_to_step(ns), numbers.percent(share, decimals=0)


def words_of_cause(phase: Phase, row: Row) -> str:
    """Return a row of the ledger in plain words: what lost the time, or what saved it."""
    if words := _explanation(phase, row):
        return words
    if row.row == "kernel_efficiency" and _is_communication(row):
        return "communication that takes longer" if row.moves_ns > 0 else "shorter communication"
    if row.row in _OF_SHAPES and phase.is_mostly_of_unknown_keys(row):
        return _KEYS_UNKNOWN[row.moves_ns < 0]
    return _IN_WORDS[row.row][row.moves_ns < 0]


def _explanation(phase: Phase, row: Row) -> str:
    """Return the cause of most of a row by a finding, or by the FLOPs; empty without one."""
    for finding in phase.findings:
        accounts = finding.accounts_for
        ns = 0.0 if accounts is msgspec.UNSET else accounts.get(row.row, 0.0)
        is_most = ns * row.moves_ns > 0 and 2 * abs(ns) >= abs(row.moves_ns)
        if finding.id in _EXPLAINED_BY and is_most:
            return f"mostly {_EXPLAINED_BY[finding.id]}{when(ns < 0, ' of the dense run')}"
    if (ladder := phase.ladder) is None:
        return ""
    if row.row == "roofline_shift" and ladder.flop is not None and ladder.flop <= 1:
        return _MORE_FLOPS[row.moves_ns < 0]
    if row.row == "coverage" and row.moves_ns < 0 and abs((ladder.nominal or 1) - 1) < SAME_RATIO:
        return "work that shrank"  # nothing was promised
    return ""


def _is_communication(row: Row) -> bool:
    """Return whether most of a row is communication, whose time depends on the other ranks."""
    comm = sum(part.ns for part in row.parts if part.cls == "comm")
    return comm * row.moves_ns > 0 and 2 * abs(comm) > abs(row.moves_ns)


def no_excess(phase: Phase, dense_ns: float, promised_ns: float, pruned: Row) -> str:
    """Return why the time of a step above the promised one is no evidence; empty where it is."""
    if (expected := _overlapping(phase, promised_ns, dense_ns)) is not None:
        low, high = map(numbers.time, expected)
        return f"at that ratio single dense steps take {low} to {high}, and so do pruned ones"
    # The interval is that of the speedup, whose samples took turns, at the dense time: it includes
    # 0 where that of the speedup includes the promised one. Without one, the noise of the step.
    ci95 = phase.ladder.realised_ci95 if phase.ladder is not None else None
    excess = Row(row="excess", ns=pruned.moves_ns - promised_ns, noise_ns=pruned.noise_ns)
    if ci95 and min(ci95) > 0:
        ends = [dense_ns / ci95[1] - promised_ns, dense_ns / ci95[0] - promised_ns]
        excess = Row(row="excess", ns=excess.ns, ci95=ends)
    if is_beyond_noise(excess):
        return ""
    if excess.ci95:
        return "the interval of the speedup includes the promised one"
    return why_quiet(excess)


def _overlapping(phase: Phase, promised: float, dense: float) -> tuple[float, float] | None:
    """Return the shortest and the longest dense step at the promised ratio, ns, where both overlap.

    They overlap where, without an interval, some pruned step is no longer than one of them, and
    another no shorter: single steps then tell no difference. None where they do not.
    """
    has_interval = phase.ladder is not None and phase.ladder.realised_ci95 is not None
    steps = [] if has_interval or phase.unprofiled_ns is not None else phase.step_ns
    dense_steps = phase.baseline.step_ns if phase.baseline else []
    if len(steps) < 2 or not dense_steps or dense <= 0:
        return None
    expected = [ns * promised / dense for ns in dense_steps]
    low, high = min(expected), max(expected)
    return (low, high) if min(steps) <= high and low <= max(steps) else None


def why_quiet(row: Row) -> str:
    """Return why a row is no evidence."""
    if row.ci95 and row.ci95[0] <= 0 <= row.ci95[1]:
        return "its interval includes 0"
    return f"it is inside twice its noise (±{numbers.time(row.noise_ns)})"


def unread_work(phase: Phase) -> Iterator[str]:
    """Yield how much work of the device is not read, where any is not: no time holds it."""
    for notice in phase.notices:
        if notice.kind == "unread-device-work":
            count, ns = notice.numbers["count"], notice.numbers["ns"]
            yield (
                f"{count:,} events of the device ({numbers.brief_time(ns)}) are not read, and in "
                "none of these times"
            )


def moved_convolutions(phase: Phase) -> Iterator[str]:
    """Yield how many convolutions went or came, and how many have other shapes, and which."""
    for moved in phase.moved:
        if moved.axis in ("gone", "added"):
            is_are = "are" if moved.count > 1 else "is"
            yield f"{moved.count} of {moved.of} convolutions {is_are} {moved.axis}"
    others = [moved for moved in phase.moved if moved.dense]
    if others:
        count = sum(moved.count for moved in others)
        axes = " or ".join(moved.axis for moved in others)
        before, after = (
            "×".join(map(str, side[1])) for side in (others[0].dense, others[0].pruned)
        )
        example = when(before != after, f": a weight of {before} → {after}")
        yield f"{count} of {others[0].of} convolutions have other shapes ({axes}{example})"


def refused_configs(phase: Phase) -> Iterator[str]:
    """Yield why a side takes no shapes from the given config, and which config it needs."""
    for lack in phase.comparison.one_sided if phase.comparison else ():
        if lack.refused is not None:
            yield f"for {lack.trace} {lack.refused}: {OWN_CONFIG[lack.missing]}"


def keeps_shapes(phase: Phase) -> bool:
    """Return whether every dense GEMM runs in the pruned step, in the same shape and format.

    Where products were added that choose what later steps leave out, or a family does, those steps
    have other shapes.
    """
    if not is_whole_step(phase) or not phase.is_speedup or phase.has_two_formats:
        return False
    if phase.pairing is None or phase.pairing.removed or phase.moved:
        return False
    if abs(phase.sparsity.get("flop") or 0.0) >= SAME_SHARE:  # work of another kind moved or went
        return False
    seen = known(phase.family.ids) if phase.family is not None else []
    axes = {gemm.axis for gemm in phase.gemms if gemm.role != "adapter"}
    return axes == {"none"} and not choose_at_run_time(seen)


def is_whole_step(phase: Phase) -> bool:
    """Return whether the step shows all GEMMs: one that was captured or cut off does not."""
    is_whole = all(finding.id == NOT_VALID for finding in phase.invalid_times)
    return is_whole and phase.finding(CUT_OFF) is None


def choose_at_run_time(families: Iterable[Family]) -> bool:
    """Return whether one of the families chooses at run time what it leaves out."""
    return any(family.is_dynamic or family.scorer for family in families)


def side_caveats(phase: Phase) -> list[Finding]:
    """Return the findings that the sides may be swapped, or of another config than was given."""
    return [finding for finding in phase.findings if finding.id in SIDE_CAVEATS]


def recommended_changes(phase: Phase) -> list[Finding]:
    """Return the findings whose changes end the paragraph; none where none has a change.

    It is the first in the order of findings: a critical one without a gain, else the one that would
    gain most, whatever its severity, else a warning. One that leaves the times no evidence comes
    first, and behind it the first that is critical whatever the times are.
    Where a finding says that the sides are uncertain, it stands alone: other advice would be of
    another comparison.
    """
    if (caveats := side_caveats(phase)) and not phase.invalid_times:
        return caveats[:1]
    advice = [finding for finding in phase.findings if finding.change]
    invalid = [finding for finding in phase.invalid_times if finding.change][:1]
    # Where times are not valid, what is critical by a measured time alone is a warning.
    critical = [
        finding
        for finding in advice
        if finding.severity == "critical" and finding.id not in INVALID_TIMES
    ]
    if invalid:
        return invalid + critical[:1]
    worth = [finding for finding in advice if finding.predicted_ns or finding.severity != "info"]
    # Nothing is known of a gain before the two runs compare; and what all ranks wait for comes
    # before the communication in which they wait.
    # Where nothing was pruned, what tells the two captures apart comes before what each could gain.
    first = (NOT_COMPARABLE, LATE_RANK, OTHER_TIME)
    return sorted(worth, key=lambda f: (*(f.id != id for id in first), f.order))[:1]


def few_roles(phase: Phase) -> Iterator[str]:
    """Yield a hint to record modules where most GEMMs of a model with attention have no role.

    Only a trace with ops and without modules gets it. Modules without attention or a head identify
    no roles either, and neither may the names of those that were recorded.
    """
    whole = sum(gemm.busy_ns for gemm in phase.gemms)
    named = sum(gemm.busy_ns for gemm in phase.gemms if gemm.role != "unknown")
    has_attention = "attention" in phase.busy_by_kind
    lacks_modules = not phase.has_modules and any(gemm.op for gemm in phase.gemms)
    if has_attention and lacks_modules and named < LEAST_KNOWN * whole:
        share = numbers.percent(numbers.share_of(named, whole), decimals=0)
        is_fast = any(_FAST_PATH in f"{row.op} {row.name}" for row in phase.kernels)
        change = _SLOW_PATH if is_fast else how_to_record_modules(phase)
        yield f"only {share} of the time of GEMMs has a role: {change}"


def how_to_record_modules(phase: Phase) -> str:
    """Return how to record modules, by what the trace was recorded with."""
    if phase.profiler == NSYS:
        return f"record {recorder_called(NSYS).modules}, or trace with torch.profiler and stacks"
    return _MODULES
