"""`prunescope fix`: every repair that a finding advises, applied to a copy, checked and timed.

In: a FixCall. Out: fix.json and repairs.py in its folder. Findings come from analysis/, repairs and
times from tracer/; here the two meet.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

import prunescope
from prunescope.analysis.ledger.noise import speedup_interval
from prunescope.analysis.ledger.samples import Samples
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import INVALID_TIMES, Report
from prunescope.fix_store import Store
from prunescope.taxonomy.atomic_write import claimed, clean_termination, write_file
from prunescope.taxonomy.fixes import (
    FIXES,
    REPAIRS_FILE,
    TRACE,
    Fixes,
    FixTime,
    GainTrial,
    Outcome,
    TriedRepair,
)
from prunescope.taxonomy.formats import plain
from prunescope.taxonomy.numbers import ratio
from prunescope.taxonomy.repairs import REPAIRS, Repair, repairs_text
from prunescope.taxonomy.runs.run import are_disturbed
from prunescope.taxonomy.scrub import scrub
from prunescope.taxonomy.words import percent, when
from prunescope.tracer.capture.placements import plan_placements, separate_storages
from prunescope.tracer.capture.progress import Progress, Silent
from prunescope.tracer.capture.timing import heap_frozen
from prunescope.tracer.capture.turns import TimedPlacement, time_in_turns
from prunescope.tracer.machine.device import free_bytes, memory_explained, thread_count
from prunescope.tracer.model.packed_weights import weight_bytes
from prunescope.tracer.repairs.alignment import fastest_alignment
from prunescope.tracer.repairs.outputs import difference, loss_nats, tolerance_of
from prunescope.tracer.repairs.plain.linear_maps import FAILURES, DoesNotApply
from prunescope.tracer.repairs.request import FixCall
from prunescope.tracer.repairs.sides import FixSubject, TimedModel, copy_model
from prunescope.tracer.repairs.subject import fingerprint, prepare_subject
from prunescope.tracer.repairs.table import apply_repair

_ROOM = 1.3  # a copy needs so many times the size of its weights in free memory
_SPARE_ROOM = 2  # copies for which there is room, else sides are made again where they are needed
_LEAST_PLACEMENTS = 3  # of a measurement during which the budget is spent
_BEFORE, _COPY, _WHOLE = "before", "its copy", "whole"
_TRIES = 2  # a measurement that something disturbed is made once more
_MORE = 4  # times the samples that decide a side in doubt: they halve its interval
# What each phase predicts that a finding's change saves, ns a step; None: unknown. By finding.
Advice = Mapping[str, Mapping[str, float | None]]


def fix(call: FixCall) -> Fixes:
    """Find, try and combine the repairs of a model, and write fix.json and repairs.py.

    Args:
        call: The model, how it runs, and which repairs are tried.

    Returns:
        The repairs, and the times before and after.

    Raises:
        PrunescopeError: The request cannot be met.
    """
    call.check()
    folder, progress = call.folder, call.progress or Silent()
    begun = time.monotonic()
    with clean_termination(), claimed(folder):
        store = Store.open(folder, fingerprint(call), overwrite=call.overwrite)
        with thread_count(call.threads), memory_explained():
            subject, model = prepare_subject(call, progress)
            report = analyze(folder / TRACE).report
            fixer = _Fixer(call, subject, TimedModel(model), store, progress, begun)
            fixes = fixer.run(_advice(report))
        fixes.tool = f"prunescope {prunescope.__version__}"
        fixes.model = _model_name(call)
        fixes.method = None if call.method is None else scrub(call.method)
        _write(folder, fixes, fixer.arguments)
    return fixes


def _model_name(call: FixCall) -> str:
    """Return the name of a model, without a folder."""
    return Path(call.model).name if isinstance(call.model, str) else type(call.model).__name__


def _advice(report: Report) -> Advice:
    """Return what the findings of a report predict, by finding and phase."""
    advice: dict[str, dict[str, float | None]] = {}
    for name, phase in report.phases.items():
        for finding in phase.findings:
            advice.setdefault(finding.id, {})[name] = finding.predicted_ns
    return advice


@dataclass
class _Candidate:
    """A repair that applies, with its row of the result.

    `side` is None where memory is short: it is then made again where it is needed.
    """

    repair: Repair
    side: TimedModel | None
    row: TriedRepair


@dataclass
class _Fixer:
    """The repairs of a subject as they are tried, one stage after another."""

    call: FixCall
    subject: FixSubject
    before: TimedModel
    store: Store
    progress: Progress
    begun: float
    arguments: dict[str, dict[str, int]] = field(default_factory=dict)
    rows: list[TriedRepair] = field(default_factory=list)
    spare: tuple[TimedModel, TimedModel] | None = None  # a side, and a copy of it

    def run(self, advice: Advice) -> Fixes:
        """Try every repair alone, combine those that help, and measure the whole again."""
        self.progress.stage("check the outputs of each repair")
        self.outputs = self.subject.outputs(self.before)
        candidates = self._candidates(advice, self.before, [])
        alone = self._measure("", self.before, candidates)
        helpful = [c for c in candidates if self._judge(c.row, alone.get(c.row.id))]
        helpful.sort(key=lambda c: -(c.row.gain or 0.0))
        kept, side = self._combine(helpful, advice)
        first = next(iter(alone.values()), None)
        self._predict(advice, first)
        fixes = self._finish(kept, side, first)
        if not INVALID_TIMES.isdisjoint(advice):
            fixes.notes.append("the trace was disturbed: its findings predict no gain")
        return fixes

    # -- what is tried --------------------------------------------------------------------------

    def _candidates(self, advice: Advice, base: TimedModel, done: list[str]) -> list[_Candidate]:
        """Return the repairs that apply to a side, with a row for each that a finding advises."""
        open_again = ("nothing_to_change", "fails") if done else ()
        known = {row.id for row in self.rows if row.outcome not in open_again}
        candidates = []
        for repair in REPAIRS:
            finding = self._finding_of(repair, advice)
            if repair.id in known or repair.id in done or not self._is_wanted(repair, finding):
                continue
            row = TriedRepair(
                id=repair.id, does=repair.does, of=repair.of, finding=finding, on_top_of=list(done)
            )
            side = self._applied(repair, base, row)
            if side is not None:
                is_short = self._room() < _SPARE_ROOM
                candidates.append(_Candidate(repair, None if is_short else side, row))
            if side is not None or (finding is not None and not done):
                self.rows = [old for old in self.rows if old.id != repair.id] + [row]
        self.spare = None
        return candidates

    def _side_of(self, candidate: _Candidate, base: TimedModel) -> TimedModel:
        """Return the side of a candidate, made again from `base` where it was not kept."""
        if candidate.side is None:
            arguments = self.arguments.get(candidate.row.id)
            spare = TimedModel(copy_model(base.model), base.call)
            return apply_repair(candidate.repair, spare, self.subject, arguments)
        return candidate.side

    def _finding_of(self, repair: Repair, advice: Advice) -> str | None:
        """Return the finding that advises a repair, the one that predicts most; None: none does."""
        advising = [finding for finding in repair.advised_by if finding in advice]
        return max(advising, key=lambda finding: self._saved_ns(advice[finding]), default=None)

    def _saved_ns(self, predicted: Mapping[str, float | None]) -> float:
        """Return the ns of a whole run that a finding predicts; 0 where it predicts nothing."""
        return sum(
            self.subject.steps(phase) * (ns or 0.0)
            for phase, ns in predicted.items()
            if phase in self.subject.phases
        )

    def _is_wanted(self, repair: Repair, finding: str | None) -> bool:
        """Return whether a repair is tried: a finding or the model may call for it."""
        if repair.promises == "loss" and not self.call.allow_loss:
            return False
        if self.call.only:
            return repair.id in self.call.only
        return finding is not None or not repair.only_if_found

    def _applied(self, repair: Repair, base: TimedModel, row: TriedRepair) -> TimedModel | None:
        """Return a side with a repair whose outputs are equal; else None, and the row says why."""
        try:
            if repair.id == "pad-dimensions" and repair.id not in self.arguments:
                self.arguments[repair.id] = fastest_alignment(base.model, self.call, self.subject)
            spare = self._spare(base)
            side = apply_repair(repair, spare, self.subject, self.arguments.get(repair.id))
            self.spare = None  # it is the repaired one now
            outputs = self.subject.outputs(side)
        except DoesNotApply as reason:
            _refuse(row, "nothing_to_change", f"does not apply: {reason}")
            return None
        except FAILURES as error:
            self.spare = None
            _refuse(row, "fails", f"fails here: {type(error).__name__}: {scrub(str(error))[:200]}")
            return None
        moved, allowed = difference(self.outputs, outputs), tolerance_of(repair, self.outputs)
        row.difference = moved if math.isfinite(moved) else None
        row.call = _call_text(repair, side)
        if repair.promises == "loss":
            row.loss = loss_nats(self.outputs, outputs)
        if math.isfinite(moved) and moved <= allowed:
            return side
        why = "outputs have other shapes, or are no numbers"
        if math.isfinite(moved):
            why = f"outputs differ by {moved:.1e} of the largest, and {allowed:.0e} is promised"
        _refuse(row, "other_outputs", why)
        return None

    def _spare(self, base: TimedModel) -> TimedModel:
        """Return a copy of a side that a repair may change; one serves until a repair applies."""
        if self.spare is None or self.spare[0] is not base:
            self.spare = base, TimedModel(copy_model(base.model), base.call)
        return self.spare[1]

    # -- what is measured -----------------------------------------------------------------------

    def _measure(
        self, name: str, base: TimedModel, candidates: Sequence[_Candidate]
    ) -> dict[str, GainTrial]:
        """Time candidates against a side in turns, as many at once as memory has room for.

        Args:
            name: What the side has that they are timed on top of.
            base: The side.
            candidates: The repairs that apply to it.
        """
        trials = {}
        left = []
        for candidate in candidates:
            stored = self.store.trial(f"{name}>{candidate.row.id}")
            if stored is not None:
                trials[candidate.row.id] = stored
            else:
                left.append(candidate)
        while left and not self._is_over():
            group, left = left[: self._room()], left[self._room() :]
            sides = {candidate.row.id: self._side_of(candidate, base) for candidate in group}
            for id, trial in self._time(base, sides).items():
                self.store.keep(f"{name}>{id}", trial)
                trials[id] = trial
        return trials

    def _is_over(self) -> bool:
        """Return whether the budget is spent."""
        budget = self.call.budget
        return budget is not None and time.monotonic() - self.begun > 60 * budget

    def _room(self) -> int:
        """Return how many more sides memory has room for, beside a copy of the one before."""
        size = weight_bytes(self.before.model) or 1
        return max(1, int(free_bytes(self.subject.device) / (_ROOM * size)) - 1)

    def _time(self, base: TimedModel, sides: Mapping[str, TimedModel]) -> dict[str, GainTrial]:
        """Time sides against `base` and its copy; what looks faster and is in doubt, once more.

        The second time has `_MORE` times the placements and samples, and decides alone: samples
        that raised a doubt do not also settle it.
        """
        compared = {_BEFORE: base, _COPY: TimedModel(copy_model(base.model), base.call)}
        trials = self._time_undisturbed(compared, sides, of_each=1)
        doubted = {name: side for name, side in sides.items() if is_in_doubt(trials[name])}
        if doubted and not self._is_over():
            trials |= self._time_undisturbed(compared, doubted, of_each=_MORE)
        return trials

    def _time_undisturbed(
        self, compared: Mapping[str, TimedModel], sides: Mapping[str, TimedModel], *, of_each: int
    ) -> dict[str, GainTrial]:
        """Time sides in turns with those they are compared with; what is disturbed, once more."""
        for attempt in range(_TRIES):
            self.progress.stage(
                f"time {', '.join(sides)}{when(of_each > 1, ', in doubt')}"
                f"{when(attempt > 0, ', again: it was disturbed')}",
                of_each * self.call.repeats * len(self.subject.phases),
            )
            taken = self._take({**compared, **sides}, of_each)
            trials = {name: self._trial(taken, name) for name in sides}
            if not any(trial.disturbed_by for trial in trials.values()) or self._is_over():
                break
        return trials

    def _take(self, sides: Mapping[str, TimedModel], of_each: int) -> list[TimedPlacement]:
        """Take `of_each` times the requested samples, in as many times the placements."""
        call, taken = self.call, []
        repeats = of_each * call.repeats
        plans = plan_placements(
            min(of_each * call.placements, repeats),
            repeats=repeats,
            steps=0,
            step_in_each=False,
            phases=self.subject.phases,
        )
        with heap_frozen():
            for placement in time_in_turns(
                plans,
                [side.model for side in sides.values()],
                lambda phase: self.subject.loops(phase, sides),
                warmup=call.warmup,
                advance=self.progress.advance,
                mode=self.subject.mode,
            ):
                taken.append(placement)
                if len(taken) >= _LEAST_PLACEMENTS and self._is_over():
                    break
        for side in sides.values():  # a copy of one weight would be one of the whole block
            separate_storages(side.model, random.Random(0))
        return taken

    def _trial(self, taken: Sequence[TimedPlacement], name: str) -> GainTrial:
        """Return the measurement of one side against the one before."""
        before, after, twin = (
            Samples.of(self._whole_runs(taken, side)) for side in (_BEFORE, name, _COPY)
        )
        same = speedup_interval(before, twin, in_turns=True)
        sets = [samples for placement in taken for samples in placement.taken.values()]
        counts = [
            (samples.disturbed, len(next(iter(samples.samples.values())))) for samples in sets
        ]
        reasons = dict.fromkeys(reason for samples in sets for reason in samples.reasons)
        return GainTrial(
            gain=before.wall / after.wall,
            ci95=speedup_interval(before, after, in_turns=True),
            noise=None if same is None else max(same[1], 1 / same[0]),
            before=self._time_of(taken, _BEFORE),
            after=self._time_of(taken, name),
            placements=len(taken),
            disturbed_by=list(reasons) if are_disturbed(counts) else [],
            samples_ns={side: self._whole_runs(taken, side) for side in (_BEFORE, _COPY, name)},
        )

    def _whole_runs(self, taken: Sequence[TimedPlacement], name: str) -> list[list[int]]:
        """Return the samples of a side, by placement: a prompt and its further tokens, in ns."""
        runs = []
        for placement in taken:
            weighed = [
                [self.subject.steps(phase) * ns for ns in samples.samples[name]]
                for phase, samples in placement.taken.items()
            ]
            runs.append([sum(parts) for parts in zip(*weighed, strict=True)])
        return runs

    def _time_of(self, taken: Sequence[TimedPlacement], name: str) -> FixTime:
        """Return the time of a side: of a whole run, and of a step of each phase."""
        phases = {
            phase: Samples.of([placement.taken[phase].samples[name] for placement in taken]).wall
            for phase in self.subject.phases
        }
        return FixTime(ns=Samples.of(self._whole_runs(taken, name)).wall, phases=phases)

    # -- what is kept ---------------------------------------------------------------------------

    def _judge(self, row: TriedRepair, trial: GainTrial | None) -> bool:
        """Write a measurement into the row of a repair, and return whether it helps."""
        if trial is None:
            _refuse(row, "not_timed", f"not timed: the budget of {self.call.budget:g} min is spent")
            return False
        row.gain, row.ci95 = trial.gain, trial.ci95
        against = reason_against(trial)
        row.outcome, row.why = ("kept", None) if against is None else against
        return against is None

    def _combine(
        self, helpful: list[_Candidate], advice: Advice
    ) -> tuple[list[_Candidate], TimedModel]:
        """Apply the helpful repairs on top of one another, the one that gains most first.

        Each is kept if it still helps; what applies only now is tried as well.
        """
        kept: list[_Candidate] = []
        side, queue = self.before, list(helpful)
        while queue:
            candidate = queue.pop(0)
            if kept:
                done = [old.row.id for old in kept]
                candidate.row.on_top_of = done
                applied = self._applied(candidate.repair, side, candidate.row)
                if applied is None:
                    if candidate.row.outcome == "nothing_to_change":
                        why = f"nothing is left to change after {', '.join(done)}"
                        _refuse(candidate.row, "repeats_another", why)
                    continue
                candidate.side = applied
                trials = self._measure("+".join(done), side, [candidate])
                if not self._judge(candidate.row, trials.get(candidate.row.id)):
                    continue
            side = self._side_of(candidate, side)
            kept.append(candidate)
            queue += self._candidates(advice, side, [old.row.id for old in kept])
        return kept, side

    def _finish(self, kept: list[_Candidate], side: TimedModel, first: GainTrial | None) -> Fixes:
        """Measure the whole again, and return the result; without that nothing is kept."""
        fixes = Fixes(model="", phases=list(self.subject.phases), repairs=self.rows)
        if first is not None:
            fixes.before = fixes.after = first.before
            fixes.noise = first.noise
        if not kept:
            return fixes
        ids = [candidate.row.id for candidate in kept]
        whole = _Candidate(
            kept[-1].repair, side, TriedRepair(id=_WHOLE, does="", of="model", finding=None)
        )
        trial = self._measure("+".join(ids), self.before, [whole]).get(_WHOLE)
        against = _NOT_MEASURED if trial is None else reason_against(trial)
        for candidate in kept:
            candidate.row.kept = against is None
            if against is not None:
                _refuse(
                    candidate.row, against.outcome, f"{against.why} (the whole, measured again)"
                )
        if trial is not None:
            fixes.before, fixes.noise = trial.before, trial.noise
            fixes.gain, fixes.ci95 = trial.gain, trial.ci95
            fixes.after = trial.after if against is None else trial.before
        return fixes

    def _predict(self, advice: Advice, first: GainTrial | None) -> None:
        """Write the gain that the finding of each repair predicts into its row."""
        for row in self.rows:
            saved = self._saved_ns(advice[row.finding]) if row.finding is not None else 0.0
            if first is not None and 0 < saved < first.before.ns:
                row.predicted_gain = first.before.ns / (first.before.ns - saved)


class Against(NamedTuple):
    """Why a repair is not kept: the outcome, and a sentence."""

    outcome: Outcome
    why: str


_NOT_MEASURED = Against("not_timed", "not timed: the budget is spent")


def _refuse(row: TriedRepair, outcome: Outcome, why: str) -> None:
    """Write into a row why its repair is not kept."""
    row.outcome, row.why = outcome, why


def reason_against(trial: GainTrial) -> Against | None:
    """Return why a measurement supports no repair; None where it does."""
    if trial.disturbed_by:
        reasons = ", ".join(trial.disturbed_by)
        return Against("timing_not_valid", f"timing not valid: {reasons}")
    if trial.ci95 is None:
        return Against("not_faster", "not decided: one sample a side has no interval (--repeats)")
    low, high = trial.ci95
    if high < 1:
        return Against("not_faster", f"slower: {ratio(trial.gain)}")
    if low <= 1:
        return Against("not_faster", "not faster beyond noise: the interval contains 1")
    if trial.noise is not None and trial.gain <= trial.noise:
        differ = percent(trial.noise - 1, 1)
        why = f"within the noise: the model and its copy differ by up to {differ}"
        return Against("not_faster", why)
    return None


def is_in_doubt(trial: GainTrial) -> bool:
    """Return whether a side looks faster, and its samples are too few to say so."""
    is_timed = not trial.disturbed_by and trial.ci95 is not None
    return is_timed and trial.gain > 1 and reason_against(trial) is not None


def _call_text(repair: Repair, side: TimedModel) -> str:
    """Return the changed call as code."""
    return repair.call.format(threads=side.call.threads) if repair.of == "call" else ""


def _write(folder: Path, fixes: Fixes, arguments: Mapping[str, Mapping[str, int]]) -> None:
    """Write fix.json and repairs.py."""
    data = msgspec.json.format(msgspec.json.encode(plain(fixes)), indent=2) + b"\n"
    write_file(folder / FIXES, data)
    write_file(folder / REPAIRS_FILE, repairs_file(fixes, arguments).encode())


def repairs_file(fixes: Fixes, arguments: Mapping[str, Mapping[str, int]]) -> str:
    """Return the text of repairs.py, whose docstring says what was measured."""
    kept = [row for row in fixes.repairs if row.kept]
    order = sorted(kept, key=lambda row: len(row.on_top_of))
    lines = ["Repairs that `prunescope fix` measured, in plain torch and transformers."]
    lines += [
        f"{row.id}: {ratio(row.gain)} ({', '.join(ratio(end) for end in row.ci95 or ())})"
        for row in order
    ]
    more = {
        id: "".join(f", {name}={value}" for name, value in given.items())
        for id, given in arguments.items()
    }
    head = "\n\n".join([lines[0], "\n".join(lines[1:])]) + "\n" if kept else lines[0]
    calls = {row.id: row.call for row in order if row.of == "call"}
    return repairs_text([row.id for row in order], arguments=more, head=head, calls=calls)
