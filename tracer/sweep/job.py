"""One model of a sweep: prepared once, judged once, then timed and traced in each of its results.

In: a Job, plain values that any worker can be given. Out: run folders, quality and failures in the
sweep's folder, so that a worker that dies loses the result in hand alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prunescope.taxonomy.arguments import asks_json
from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.run import read_run
from prunescope.taxonomy.run_blocks import MeasuredPeaks, MeasuredRates
from prunescope.taxonomy.run_quality import TaskScore
from prunescope.taxonomy.scoring import may_decide, scoring_of
from prunescope.taxonomy.scrub import scrub, scrub_values
from prunescope.taxonomy.sweep_files import DONE, Planned
from prunescope.tracer.calibration.collect import Statistics, statistics_cached
from prunescope.tracer.capture.memory import release
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace
from prunescope.tracer.capture.variants import (
    BaselineDoesNotFit,
    Prepared,
    Variant,
    check_method,
    make_variants,
)
from prunescope.tracer.machine.calibrate import slug
from prunescope.tracer.machine.device import (
    device_info,
    memory_explained,
    pick_device,
    thread_count,
)
from prunescope.tracer.machine.disturbance import PASSING
from prunescope.tracer.machine.peaks import better_peaks, measure_peaks, rates_of
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.load import load_tokenizer
from prunescope.tracer.model.weights import weights_fingerprint
from prunescope.tracer.quality.quality import (
    CONTEXT,
    TOKENS,
    Dense,
    Passage,
    QualityPair,
    compare,
    looks_ahead,
    text_passage,
)
from prunescope.tracer.quality.tasks import TaskList, changes, score_tasks
from prunescope.tracer.recovery.storage import trainings_stored
from prunescope.tracer.sweep.control import control_nats
from prunescope.tracer.sweep.plan import SweepConfig, model_name, request_of
from prunescope.tracer.sweep.state import (
    EvaluatedModel,
    KeptPeaks,
    SweepFolder,
    read_json,
    write_json,
)
from prunescope.tracer.sweep.watch import HangWatchdog

# A bug or a limit of one family must not end the sweep; a full disk or a signal must.
FAILURES = (
    PrunescopeError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

# On a machine that is never quiet peaks are measured so often, and then taken as they are.
_MOST_MEASURED = 5


@dataclass(frozen=True, kw_only=True)
class Job:
    """The results of one model that are not done."""

    config: SweepConfig
    folder: Path
    results: tuple[Planned, ...]
    argv: tuple[str, ...] = ()
    call: str = ""  # names the call of the command: what failed in it is not tried again in it

    def request(self, result: Planned) -> TraceRequest:
        """The capture of one of its results."""
        out = SweepFolder(self.folder).run(result)
        return request_of(self.config, result, out=out, argv=self.argv)


class JobRunner:
    """Runs jobs one after another. `on_result` is called with each result before it begins. Between
    jobs it keeps what they share: text, the dense model's logits and scores, statistics, peaks."""

    def __init__(self, on_result: Callable[..., None]) -> None:
        self.on_result = on_result
        # By whether it is the other text, and the length of its windows.
        self._passages: dict[tuple[bool, int], Passage] = {}
        self._dense: dict[str, Dense] = {}
        self._statistics: dict[str, Statistics] = {}
        self._tasks: dict[tuple[str, str], dict[str, TaskScore]] = {}
        self._peaks: MeasuredPeaks | None = None
        self.watch: HangWatchdog

    def run(self, job: Job) -> None:
        """Run the results that are left; one that fails is recorded with its error."""
        folder = SweepFolder(job.folder)
        remaining = [result for result in job.results if folder.state(result) != DONE]
        remaining = [result for result in remaining if not folder.failed_in(result, job.call)]
        folder.remove_partial_captures(remaining)
        prepared: Prepared | str | None = None
        self.watch = HangWatchdog(
            folder, job.call, as_json=asks_json(job.argv), on_result=self.on_result
        )
        with self.watch.watching():
            for result in remaining:
                self.on_result(result)
                with _begun(folder, result), self.watch.of(result):
                    if prepared is None:
                        prepared = self._prepare(job, result)
                    if isinstance(prepared, str):
                        error: str | None = prepared
                    else:
                        error = self._trace(job, result, prepared)
                if error is None or folder.state(result) == DONE:
                    folder.clear_failure(result)
                else:
                    folder.fail(result, error, job.call)
                folder.refresh()
        del prepared
        release()

    def _prepare(self, job: Job, result: Planned) -> Prepared | str:
        """The models, judged, or why there are none."""
        if result.problem is not None:
            return result.problem
        try:
            request = job.request(result)
            request.check()
            check_method(request)
            device = pick_device(request.device)
            with thread_count(request.threads), memory_explained(), contextlib.ExitStack() as stack:
                trains = job.config.recover is not None
                # Loading and pruning take the very cores that are timed, and training the device.
                if device.type == "cpu" or trains:
                    stack.enter_context(self.watch.slot(str(device)))
                stack.enter_context(trainings_stored(job.folder / "recovery", self.watch))
                with statistics_cached(self._statistics):
                    variants = make_variants(request, device, ("dense", "pruned"))
                prepared = Prepared(variants=variants)
                if device.type != "cpu" and not trains:
                    stack.enter_context(self.watch.slot(str(device)))
                return self._evaluated(job, result, prepared)
        except BaselineDoesNotFit:
            return "dense and pruned do not fit in memory together, and a sweep judges both"
        except FAILURES as error:
            return _error_line(error)

    def _trace(self, job: Job, result: Planned, prepared: Prepared) -> str | None:
        """Capture a result; repeat it once if it was disturbed, and keep the repeat. Returns an
        error in one line, or None."""
        try:
            request = job.request(result)
            device = pick_device(request.device)
            with self.watch.slot(str(device)):
                if prepared.evaluated_for != (_eval_len(result), result.phase):
                    with thread_count(request.threads), memory_explained():
                        self._evaluated(job, result, prepared)
                peaks = self._measured(job, device, prepared)
                trace(request, progress=self.watch, peaks=peaks, prepared=prepared)
                if peaks is None:
                    peaks = self._kept(_peaks_file(job, device, prepared), request.folder)
                if _was_disturbed(request.folder):
                    self.watch.describe("repeats: other work disturbed it")
                    again = replace(request, overwrite=True)
                    trace(again, progress=self.watch, peaks=peaks, prepared=prepared)
        except FAILURES as error:
            return _error_line(error)
        return None

    def _evaluated(self, job: Job, result: Planned, prepared: Prepared) -> Prepared:
        """`prepared` with the quality of both models in the result's phase, behind prompts of its
        length: measured now, or kept from before."""
        dense, pruned = prepared.variants
        scoring = _scoring(result)
        path = SweepFolder(job.folder).quality(
            model_name(result) + _of_length(result) + _of_scoring(result)
        )
        fingerprints = {v.name: weights_fingerprint(v.model) for v in (dense, pruned)}
        found = read_json(path, EvaluatedModel)
        names, folder = job.config.tasks, job.config.tasks_path
        tasks = TaskList(names=names, folder=folder) if names else None
        source = None if tasks is None else tasks.source()
        kept = found is not None and found.dense.scoring == scoring
        if found is None or not kept or found.weights != fingerprints or found.tasks != source:
            with trainings_stored(job.folder / "recovery", self.watch):
                scored = self._compared(job, result, prepared, fingerprints["dense"])
            if tasks is not None:
                self._add_tasks(scored, tasks, prepared, fingerprints["dense"], result)
            found = EvaluatedModel(
                weights=fingerprints, tasks=source, dense=scored.dense, pruned=scored.pruned
            )
            write_json(path, found)
        prepared.quality = {
            name: changed(one, weights_fingerprint=fingerprints[name], phase=result.phase)
            for name, one in (("dense", found.dense), ("pruned", found.pruned))
        }
        prepared.evaluated_for = (_eval_len(result), result.phase)
        return prepared

    def _compared(
        self, job: Job, result: Planned, prepared: Prepared, fingerprint: str
    ) -> QualityPair:
        """Compare both models on the text that judges, and on the other one, where there is one."""
        dense, pruned = prepared.variants
        scoring, length = _scoring(result), _eval_len(result)
        passages = {"text": self._text(job, dense, length)}
        if job.config.other_text is not None and load_tokenizer(dense.loaded) is not None:
            passages["other"] = self._text(job, dense, length, other=True)
        control: dict[str, torch.Tensor] = {}
        if pruned.pruning is not None and pruned.pruning.recovery is not None:
            wanted = job.request(job.results[0]).recovery
            assert wanted is not None
            control = control_nats(
                job.folder,
                dense,
                wanted,
                passages,
                scoring=scoring,
                mark=fingerprint,
                seed=job.config.seed,
                part=_of_length(result),
            )
        found: dict[str, QualityPair] = {}
        for name, passage in passages.items():
            reference = self._reference(dense, f"{fingerprint}-{name}-{length}", passage, scoring)
            found[name] = compare(pruned.model, reference, control=control.get(name))
        found["text"].dense.looks_ahead = False
        found["text"].pruned.looks_ahead = may_decide(result.family) and looks_ahead(
            pruned.model, passages["text"], scoring=scoring
        )
        if "other" in found:
            found["text"].dense.other_text = found["other"].dense
            found["text"].pruned.other_text = found["other"].pruned
        return found["text"]

    def _add_tasks(
        self,
        found: QualityPair,
        tasks: TaskList,
        prepared: Prepared,
        fingerprint: str,
        result: Planned,
    ) -> None:
        """Scores of both models, and the losses. Kept: those of an equal dense model, and of this
        one, which several lengths of prompts may ask for."""
        dense, pruned = prepared.variants
        tokenizer = load_tokenizer(dense.loaded)
        alone, scoring = may_decide(result.family), _scoring(result)
        # What decides nothing answers in one forward as it does token by token.
        wanted = {
            ("dense", fingerprint): (dense.model, False, "prefill"),
            ("pruned", model_name(result) + scoring): (pruned.model, alone, scoring),
        }
        self._tasks = {
            key: self._tasks[key]
            if key in self._tasks
            else score_tasks(model, tokenizer, tasks, one_by_one=decides, scoring=way)
            for key, (model, decides, way) in wanted.items()
        }
        before, after = self._tasks.values()
        found.dense.tasks, found.pruned.tasks = before, after
        found.pruned.tasks_change = changes(before, after)

    def _text(self, job: Job, dense: Variant, length: int, *, other: bool = False) -> Passage:
        if (other, length) not in self._passages:
            config = text_config(dense.model)
            self._passages[other, length] = text_passage(
                load_tokenizer(dense.loaded),
                job.config.other_text if other else job.config.text,
                vocabulary=dense.model.get_input_embeddings().num_embeddings,
                longest=getattr(config, "max_position_embeddings", None),
                seed=job.config.seed,
                tokens=TOKENS,
                prompt_len=length,
            )
        return self._passages[other, length]

    def _reference(self, dense: Variant, fingerprint: str, passage: Passage, scoring: str) -> Dense:
        """The dense model as reference; its logits are kept for the next job where it is equal."""
        key = f"{fingerprint}-{scoring}"
        if key not in self._dense:
            alike = [known for known, one in self._dense.items() if one.scoring == scoring]
            for known in alike[:-1]:  # of a scoring those of the text and of the other one stay
                self._dense.pop(known)
            self._dense[key] = Dense(dense.model, passage, scoring=scoring)
        else:
            self._dense[key].model = dense.model
        return self._dense[key]

    def _measured(self, job: Job, device: torch.device, prepared: Prepared) -> MeasuredPeaks | None:
        """Peaks of this device, one for all results, so that all bounds rest on the same ones. None
        for the first: its capture measures them, before and after. Where that was disturbed they
        are measured again before the next result, and the better count from there on; a result that
        is written keeps what it has."""
        found = self._peaks
        if found is not None and not _should_remeasure(found):
            return found
        path = _peaks_file(job, device, prepared)
        if found is None:
            found = read_json(path, KeptPeaks)
        if found is not None and _should_remeasure(found):
            with thread_count(job.config.threads):
                again = measure_peaks(device, _dtype(prepared))
            each = [*_measurements(found), rates_of(again)]
            found = changed(better_peaks(found, again), measurements=each)
            write_json(path, found)
        self._peaks = found
        return found

    def _kept(self, path: Path, out: Path) -> MeasuredPeaks:
        """The peaks that the first capture measured, for all results after it."""
        peaks = read_run(out / "dense").device.peaks
        assert peaks is not None
        self._peaks = changed(peaks, reached=None)
        write_json(path, self._peaks)
        return self._peaks


def _peaks_file(job: Job, device: torch.device, prepared: Prepared) -> Path:
    with thread_count(job.config.threads):
        info = device_info(device)
    return job.folder / f"peaks-{slug(str(info.name))}-{_dtype(prepared)}-{info.threads}.json"


def _dtype(prepared: Prepared) -> str:
    return dtype_name(prepared.variants[0].loaded.dtype) or "fp32"


def _measurements(peaks: MeasuredPeaks) -> list[MeasuredRates]:
    """Each measurement of peaks that rest on several: those of a sweep, or before and after."""
    either = [one for one in (peaks.before, peaks.after) if one is not None]
    return peaks.measurements or either or [rates_of(peaks)]


def _should_remeasure(peaks: MeasuredPeaks) -> bool:
    """Whether every measurement was disturbed and the limit of measurements is not reached."""
    return bool(peaks.disturbed) and len(peaks.measurements) < _MOST_MEASURED


def _was_disturbed(out: Path) -> bool:
    """Whether the times of a capture are not valid, by something that may have passed meanwhile."""
    runs = [read_run(out / name) for name in ("dense", "pruned")]
    placements = [s for run in runs for phase in run.phases.values() for s in phase.placements]
    reasons = {why for one in placements for why in (*one.reasons, *one.steps_disturbed)}
    return any(run.is_disturbed for run in runs) and not reasons.isdisjoint(PASSING)


@contextlib.contextmanager
def _begun(folder: SweepFolder, result: Planned) -> Iterator[None]:
    """A process that dies inside leaves a failure; an error that ends the sweep leaves none."""
    folder.begin(result)
    try:
        yield
    except BaseException:
        folder.clear_failure(result)
        raise


def _eval_len(result: Planned) -> int:
    """The windows that judge it: as long as its prompts, where those are longer than usual ones."""
    return max(CONTEXT, result.prompt_len)


def _of_length(result: Planned) -> str:
    """Names what is kept of windows that are not the usual ones."""
    length = _eval_len(result)
    return "" if length == CONTEXT else f"-p{length}"


def _scoring(result: Planned) -> str:
    return scoring_of(result.family, result.phase)


def _of_scoring(result: Planned) -> str:
    """Names what is kept of a scoring that is not that of the model in every phase."""
    ways = {scoring_of(result.family, phase) for phase in PHASES}
    return "" if len(ways) == 1 else f"-{_scoring(result)}"


def _error_line(error: BaseException) -> str:
    """An error in one line, without secrets and the paths of this machine."""
    if isinstance(error, PrunescopeError):
        return scrub(f"{error.problem} ({error.hint})")
    lines = str(error).strip().splitlines() or [""]
    words = (str(scrub_values(word)) for word in lines[0].split())
    return scrub(f"{type(error).__name__}: {' '.join(words)}")[:500]
