"""One model of a sweep: prepared and judged once, then timed and traced in each result.

In: a Job, whose plain values any worker can be given. Out: run folders, quality and failures in the
folder of the sweep, so that a worker that dies loses only the result that it works on.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prunescope.taxonomy.arguments import asks_json
from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import changed
from prunescope.taxonomy.kept_calibrations import slug
from prunescope.taxonomy.plan import PHASES
from prunescope.taxonomy.runs.run import read_run
from prunescope.taxonomy.runs.run_blocks import MeasuredPeaks, MeasuredRates
from prunescope.taxonomy.runs.run_quality import TaskScore
from prunescope.taxonomy.runs.sweep_files import DONE, Planned
from prunescope.taxonomy.scoring import may_decide, scoring_of
from prunescope.taxonomy.scrub import scrub, scrub_values
from prunescope.taxonomy.timings import part
from prunescope.tracer.calibration.collect import Statistics, statistics_cached
from prunescope.tracer.capture.memory import release
from prunescope.tracer.capture.placements import separate_storages
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.trace import trace
from prunescope.tracer.capture.variants import (
    BaselineDoesNotFit,
    Prepared,
    Variant,
    check_method,
    make_variants,
)
from prunescope.tracer.machine.device import (
    device_info,
    memory_explained,
    pick_device,
    thread_count,
)
from prunescope.tracer.machine.disturbance import PASSING
from prunescope.tracer.machine.peaks import better_peaks, measure_peaks, rates_of
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.load import Loaded, load_tokenizer
from prunescope.tracer.model.weights import weights_fingerprint
from prunescope.tracer.quality.quality import (
    CONTEXT,
    TOKENS,
    DenseReference,
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
    PrunescopeError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError,
    MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip

# On a machine that is never quiet, peaks are measured so often and then taken as they are.
_MOST_MEASURED = 5


@dataclass(frozen=True, kw_only=True)
class Job:
    """The results of one model that are not done."""

    config: SweepConfig
    folder: Path
    results: tuple[Planned, ...]
    argv: tuple[str, ...] = ()
    call: str = ""  # the id of the call; results that failed in it are not tried again in it

    def request(self, result: Planned) -> TraceRequest:
        """Return the request that captures one of the results."""
        folder = SweepFolder(self.folder).run(result)
        return request_of(self.config, result, out=folder, argv=self.argv)


class JobRunner:
    """A runner of jobs, one after another.

    `on_result` is called with each result before it begins. Between jobs it keeps what they share:
    the dense model, its text, logits and scores, statistics, peaks.
    """

    def __init__(self, on_result: Callable[..., None]) -> None:
        self.on_result = on_result
        # The passages by whether they are of the other text, and by the length of their windows.
        self._passages: dict[tuple[bool, int], Passage] = {}
        self._dense: dict[str, DenseReference] = {}
        self._statistics: dict[str, Statistics] = {}
        self._tasks: dict[tuple[str, str], dict[str, TaskScore]] = {}
        self._peaks: MeasuredPeaks | None = None
        self._loaded: dict[tuple[str, str, str], Loaded] = {}  # one at most, by what loads it
        self.watch: HangWatchdog

    def run(self, job: Job) -> None:
        """Run the results that are left. One that fails is recorded with its error."""
        folder = SweepFolder(job.folder)
        remaining = [
            result
            for result in job.results
            if folder.state(result) != DONE and not folder.failed_in(result, job.call)
        ]
        folder.remove_partial_captures(remaining)
        prepared: Prepared | str | None = None
        failed = False
        self.watch = HangWatchdog(
            folder, job.call, as_json=asks_json(job.argv), on_result=self.on_result
        )
        with self.watch.watching():
            for result in remaining:
                self.on_result(result)
                with _recording_begin(folder, result), self.watch.working_on(result):
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
                    failed = True
                folder.refresh()
        if isinstance(prepared, Prepared):
            self._keep_dense(job, prepared, is_whole=not failed)
        del prepared
        release()

    def _prepare(self, job: Job, result: Planned) -> Prepared | str:
        """Return the models, judged, or the reason why there are none."""
        if result.problem is not None:
            return result.problem
        try:
            request = job.request(result)
            request.check()
            check_method(request)
            device = pick_device(request.device)
            with thread_count(request.threads), memory_explained(), contextlib.ExitStack() as stack:
                trains = job.config.recover is not None
                # Loading and pruning take the cores that are timed, and training takes the device.
                if device.type == "cpu" or trains:
                    stack.enter_context(self.watch.slot(str(device)))
                stack.enter_context(trainings_stored(job.folder / "recovery", self.watch))
                with statistics_cached(self._statistics):
                    variants = make_variants(
                        request, device, ("dense", "pruned"), dense=self._kept_dense(request)
                    )
                prepared = Prepared(variants=variants)
                if device.type != "cpu" and not trains:
                    stack.enter_context(self.watch.slot(str(device)))
                return self._evaluate(job, result, prepared)
        except BaselineDoesNotFit:
            return "dense and pruned do not fit in memory together, and a sweep judges both"
        except FAILURES as error:
            return _error_line(error)

    def _kept_dense(self, request: TraceRequest) -> Loaded | None:
        """Return the dense model of a request if the last job had it, else make room for it."""
        key = _dense_key(request)
        if key not in self._loaded:
            self._loaded.clear()
            release()
        return self._loaded.get(key)

    def _keep_dense(self, job: Job, prepared: Prepared, *, is_whole: bool) -> None:
        """Keep the dense model for the next job, if nothing of a capture can have stayed in it.

        Its weights get storages of their own, as a copy of one of them would copy the whole block
        that a placement made. What is recorded for a mode, and a capture that failed (`is_whole`
        is False), may leave something behind: it is loaded again then.
        """
        loaded = prepared.variants[0].loaded
        self._loaded.clear()
        if is_whole and all(result.setting.mode == "eager" for result in job.results):
            separate_storages(loaded.model, random.Random())
            self._loaded[_dense_key(job.request(job.results[0]))] = loaded

    def _trace(self, job: Job, result: Planned, prepared: Prepared) -> str | None:
        """Capture a result. If other work disturbed it, repeat it once and keep the repeat.

        Returns:
            The error in one line, or None.
        """
        try:
            request = job.request(result)
            device = pick_device(request.device)
            with self.watch.slot(str(device)):
                if prepared.evaluated_for != (_evaluation_window(result), result.phase):
                    with thread_count(request.threads), memory_explained():
                        self._evaluate(job, result, prepared)
                peaks = self._choose_peaks(job, device, prepared)
                trace(request, progress=self.watch, peaks=peaks, prepared=prepared)
                if peaks is None:
                    # All results after the first are judged by the peaks of its capture.
                    measured = read_run(request.folder / "dense").device.peaks
                    assert measured is not None
                    peaks = self._peaks = changed(measured, reached=None)
                    write_json(_peaks_file(job, device, prepared), peaks)
                if _was_disturbed(request.folder):
                    self.watch.describe("repeats: other work disturbed it")
                    again = replace(request, overwrite=True)
                    trace(again, progress=self.watch, peaks=peaks, prepared=prepared)
        except FAILURES as error:
            return _error_line(error)
        return None

    @part("quality")
    def _evaluate(self, job: Job, result: Planned, prepared: Prepared) -> Prepared:
        """Set the quality of both models in the phase of a result, after prompts of its length.

        The quality is read from the folder of the sweep if the same weights and tasks were judged
        before, else it is measured.
        """
        dense, pruned = prepared.variants
        scoring = _scoring(result)
        path = SweepFolder(job.folder).quality(
            model_name(result) + _length_suffix(result) + _scoring_suffix(result)
        )
        fingerprints = {v.name: weights_fingerprint(v.model) for v in (dense, pruned)}
        stored = read_json(path, EvaluatedModel)
        names, folder = job.config.tasks, job.config.tasks_path
        tasks = TaskList(names=names, folder=folder) if names else None
        source = None if tasks is None else tasks.source()
        expected = (scoring, fingerprints, source)
        if stored is None or (stored.dense.scoring, stored.weights, stored.tasks) != expected:
            with trainings_stored(job.folder / "recovery", self.watch):
                scored = self._compare(job, result, prepared, fingerprints["dense"])
            if tasks is not None:
                self._add_tasks(scored, tasks, prepared, fingerprints["dense"], result)
            stored = EvaluatedModel(
                weights=fingerprints, tasks=source, dense=scored.dense, pruned=scored.pruned
            )
            write_json(path, stored)
        prepared.quality = {
            name: changed(quality, weights_fingerprint=fingerprints[name], phase=result.phase)
            for name, quality in (("dense", stored.dense), ("pruned", stored.pruned))
        }
        prepared.evaluated_for = (_evaluation_window(result), result.phase)
        return prepared

    def _compare(
        self, job: Job, result: Planned, prepared: Prepared, fingerprint: str
    ) -> QualityPair:
        """Compare both models on the text that judges, and on the other text if there is one."""
        dense, pruned = prepared.variants
        scoring, length = _scoring(result), _evaluation_window(result)
        passages = {"text": self._passage(job, dense, length)}
        if job.config.other_text is not None and load_tokenizer(dense.loaded) is not None:
            passages["other"] = self._passage(job, dense, length, is_other=True)
        control: dict[str, torch.Tensor] = {}
        if pruned.pruning is not None and pruned.pruning.recovery is not None:
            settings = job.request(job.results[0]).recovery
            assert settings is not None
            control = control_nats(
                job.folder,
                dense,
                settings,
                passages,
                scoring=scoring,
                fingerprint=fingerprint,
                seed=job.config.seed,
                part=_length_suffix(result),
            )
        pairs: dict[str, QualityPair] = {}
        for name, passage in passages.items():
            reference = self._reference(dense, f"{fingerprint}-{name}-{length}", passage, scoring)
            pairs[name] = compare(pruned.model, reference, control=control.get(name))
        judged = pairs["text"]
        judged.dense.looks_ahead = False
        judged.pruned.looks_ahead = may_decide(result.family) and looks_ahead(
            pruned.model, passages["text"], scoring=scoring
        )
        if "other" in pairs:
            judged.dense.other_text = pairs["other"].dense
            judged.pruned.other_text = pairs["other"].pruned
        return judged

    def _add_tasks(
        self,
        pair: QualityPair,
        tasks: TaskList,
        prepared: Prepared,
        fingerprint: str,
        result: Planned,
    ) -> None:
        """Add the scores of both models on the tasks, and the losses.

        The scores of the last dense and pruned model are kept, as several lengths of prompts need
        them.
        """
        dense, pruned = prepared.variants
        tokenizer = load_tokenizer(dense.loaded)
        alone, scoring = may_decide(result.family), _scoring(result)
        # A model that decides nothing answers in one forward as it does token by token.
        requested = {
            ("dense", fingerprint): (dense.model, False, "prefill"),
            ("pruned", model_name(result) + scoring): (pruned.model, alone, scoring),
        }
        self._tasks = {
            key: self._tasks[key]
            if key in self._tasks
            else score_tasks(model, tokenizer, tasks, one_by_one=decides, scoring=way)
            for key, (model, decides, way) in requested.items()
        }
        before, after = self._tasks.values()
        pair.dense.tasks, pair.pruned.tasks = before, after
        pair.pruned.tasks_change = changes(before, after)

    def _passage(self, job: Job, dense: Variant, length: int, *, is_other: bool = False) -> Passage:
        if (is_other, length) not in self._passages:
            config = text_config(dense.model)
            self._passages[is_other, length] = text_passage(
                load_tokenizer(dense.loaded),
                job.config.other_text if is_other else job.config.text,
                vocabulary=dense.model.get_input_embeddings().num_embeddings,
                longest=getattr(config, "max_position_embeddings", None),
                seed=job.config.seed,
                tokens=TOKENS,
                prompt_len=length,
            )
        return self._passages[is_other, length]

    def _reference(
        self, dense: Variant, fingerprint: str, passage: Passage, scoring: str
    ) -> DenseReference:
        """Return the dense model as a reference, with the logits of an equal earlier model."""
        key = f"{fingerprint}-{scoring}"
        if key not in self._dense:
            alike = [name for name, kept in self._dense.items() if kept.scoring == scoring]
            for old in alike[:-1]:  # for each scoring, those of the text and the other text stay
                self._dense.pop(old)
            self._dense[key] = DenseReference(dense.model, passage, scoring=scoring)
        else:
            self._dense[key].model = dense.model
        return self._dense[key]

    def _choose_peaks(
        self, job: Job, device: torch.device, prepared: Prepared
    ) -> MeasuredPeaks | None:
        """Return the peaks of this device that all results are judged by.

        None for the first result, whose capture measures them before and after. If that was
        disturbed, they are measured again before the next result, and the better ones count from
        there on. A result that is written keeps the peaks that it has.
        """
        peaks = self._peaks
        if peaks is not None and not _should_remeasure(peaks):
            return peaks
        path = _peaks_file(job, device, prepared)
        if peaks is None:
            peaks = read_json(path, KeptPeaks)
        if peaks is not None and _should_remeasure(peaks):
            with thread_count(job.config.threads):
                again = measure_peaks(device, _dtype(prepared))
            each = [*_measurements(peaks), rates_of(again)]
            peaks = changed(better_peaks(peaks, again), measurements=each)
            write_json(path, peaks)
        self._peaks = peaks
        return peaks


def _dense_key(request: TraceRequest) -> tuple[str, str, str]:
    """Return what the loading of a dense model depends on."""
    return request.baseline_model or request.model, request.dtype, request.attn


def _peaks_file(job: Job, device: torch.device, prepared: Prepared) -> Path:
    with thread_count(job.config.threads):
        info = device_info(device)
    return job.folder / f"peaks-{slug(str(info.name))}-{_dtype(prepared)}-{info.threads}.json"


def _dtype(prepared: Prepared) -> str:
    return dtype_name(prepared.variants[0].loaded.dtype) or "fp32"


def _measurements(peaks: MeasuredPeaks) -> list[MeasuredRates]:
    """Return each measurement that peaks rest on: those of a sweep, or before and after."""
    either = [rates for rates in (peaks.before, peaks.after) if rates is not None]
    return peaks.measurements or either or [rates_of(peaks)]


def _should_remeasure(peaks: MeasuredPeaks) -> bool:
    """Return whether every measurement was disturbed and their number is below the limit."""
    return bool(peaks.disturbed) and len(peaks.measurements) < _MOST_MEASURED


def _was_disturbed(folder: Path) -> bool:
    """Return whether the times of a capture are invalid for a reason that may have passed."""
    runs = [read_run(folder / name) for name in ("dense", "pruned")]
    placements = [p for run in runs for phase in run.phases.values() for p in phase.placements]
    reasons = {reason for p in placements for reason in (*p.reasons, *p.steps_disturbed)}
    return any(run.is_disturbed for run in runs) and not reasons.isdisjoint(PASSING)


@contextlib.contextmanager
def _recording_begin(folder: SweepFolder, result: Planned) -> Iterator[None]:
    """Record that a result has begun, so that a process that dies inside leaves a failure.

    An error that ends the sweep removes the record again.
    """
    folder.begin(result)
    try:
        yield
    except BaseException:
        folder.clear_failure(result)
        raise


def _evaluation_window(result: Planned) -> int:
    """Return the tokens of the windows that judge a result: the usual, or those of its prompts."""
    return max(CONTEXT, result.prompt_len)


def _length_suffix(result: Planned) -> str:
    """Return the part of a name that tells unusual windows apart; empty for usual ones."""
    length = _evaluation_window(result)
    return "" if length == CONTEXT else f"-p{length}"


def _scoring(result: Planned) -> str:
    return scoring_of(result.family, result.phase)


def _scoring_suffix(result: Planned) -> str:
    """Return the part of a name that tells the scoring apart; empty if all phases share one."""
    ways = {scoring_of(result.family, phase) for phase in PHASES}
    return "" if len(ways) == 1 else f"-{_scoring(result)}"


def _error_line(error: BaseException) -> str:
    """Return an error in one line, without secrets and paths of this machine."""
    if isinstance(error, PrunescopeError):
        return scrub(f"{error.problem} ({error.hint})")
    lines = str(error).strip().splitlines() or [""]
    words = (str(scrub_values(word)) for word in lines[0].split())
    return scrub(f"{type(error).__name__}: {' '.join(words)}")[:500]
