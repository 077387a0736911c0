"""`prunescope.capture`: a run folder from a user's own loop around a model.

Any module and the loop, step by step, come in. F/dense goes out, or F/pruned with a baseline. In
each placement the first steps warm up, the next are unprofiled samples, one is thrown away, and the
last are profiled.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.atomic_write import claimed, clean_termination
from prunescope.taxonomy.errors import PrunescopeError, helpful
from prunescope.taxonomy.option import as_path, check_count
from prunescope.taxonomy.runs.run import PhaseRun, Placement, Run
from prunescope.tracer.capture.chrome import has_backward
from prunescope.tracer.capture.device_state import DeviceState
from prunescope.tracer.capture.joined import Joined
from prunescope.tracer.capture.manifest import manifest
from prunescope.tracer.capture.placements import (
    PlacementPlan,
    placed,
    plan_placements,
    separate_storages,
)
from prunescope.tracer.capture.profiled import ProfiledSession, label_of
from prunescope.tracer.capture.routing import RoutingCount
from prunescope.tracer.capture.runs import Capture, baseline_folder, check_out, write_runs
from prunescope.tracer.capture.timing import timed
from prunescope.tracer.machine.backends import PROFILER
from prunescope.tracer.machine.device import require_feature
from prunescope.tracer.machine.disturbance import DisturbanceMonitor, distinct, most_disturbed
from prunescope.tracer.model.calls import PHASE_NAME, call_shape, inner, inputs_of, usual_phase
from prunescope.tracer.model.forwards import hooked
from prunescope.tracer.model.load import Loaded

_VARIANT = "user"  # of the trace's steps; the manifest says whether they are dense or pruned

StepContext = AbstractContextManager[None]


@helpful
@contextmanager
def capture(  # noqa: PLR0913 - the options of `prunescope trace` that apply to a user's loop
    model: torch.nn.Module,
    *,
    out: Path | str,
    phase: str | None = None,
    baseline: Path | str | None = None,
    warmup: int = 3,
    repeats: int = 20,
    steps: int = 5,
    placements: int = 1,
    overwrite: bool = False,
) -> Iterator[UserCapture]:
    """Capture the steps of a loop, and write `out` when the block ends without an exception.

    The block must run at least warmup + repeats + 1 + steps steps; further steps are not measured.
    With several placements it must run placements x (warmup + 1) + repeats + steps steps, with one
    profiled step a placement at least.

    Args:
        model: Any module with parameters.
        out: The folder of the run.
        phase: The name of the phase in the report. None takes "training" if a step computes
            gradients, "decode" if the first call has one token a sequence and a filled cache,
            "prefill" for other calls of a model that takes a cache, and "forward" for a module
            that takes none (an encoder, an MLP, a convolutional net).
        baseline: The dense run that this pruned one is compared with; None makes this run the
            dense one.
        warmup: Steps that are dropped at the start of each placement.
        repeats: Steps that are timed without the profiler, over all placements.
        steps: Steps that the profiler records, over all placements.
        placements: How often the weights move to fresh memory before steps (the model stays the
            same object). Leave it at 1 for a model whose CUDA graphs or optimizer hold
            addresses of weights.
        overwrite: Whether an existing folder is replaced.

    Yields:
        The steps: `with c.step():` goes around each of them.

    Raises:
        PrunescopeError: Fewer steps ran, `out` exists, or the module has no parameters.
    """
    folder = _path(out)
    warmup = check_count("warmup", warmup, least=0)
    repeats, steps, placements = (
        check_count(name, value, least=1)
        for name, value in (("repeats", repeats), ("steps", steps), ("placements", placements))
    )
    if not isinstance(model, torch.nn.Module):
        raise PrunescopeError(
            f"model is a {type(model).__name__}", hint="accepted: a torch.nn.Module"
        )
    _check_phase(phase)
    check_out(folder, overwrite=overwrite)
    baseline_run = None if baseline is None else baseline_folder(_path(baseline))
    count = min(placements, max(1, repeats))
    plans = plan_placements(count, repeats=repeats, steps=steps)
    with claimed(folder):
        with ExitStack() as stack:
            user_capture = UserCapture(model, plans, warmup, stack)
            try:
                yield user_capture
            finally:
                user_capture.restore_storages()
        with clean_termination():
            name = "dense" if baseline_run is None else "pruned"
            captured = user_capture.finish(name, phase)
            check_out(folder, overwrite=overwrite)
            write_runs(folder, {name: captured}, baseline_run)


def _path(given: Path | str) -> Path:
    """Return a path; None is refused."""
    path = as_path(given)
    if path is None:
        raise PrunescopeError("out is None", hint="accepted: a path or a text")
    return path


def _check_phase(phase: str | None) -> None:
    """Refuse a name that no phase can have."""
    if phase is not None and not (isinstance(phase, str) and PHASE_NAME.fullmatch(phase)):
        raise PrunescopeError(
            f"{str(phase)[:40]!r} is not a valid phase name",
            hint="letters, digits, - and _, as in prefill, decode or forward",
        )


class UserCapture:
    """The steps of one loop. `with c.step():` goes around each."""

    def __init__(
        self, model: torch.nn.Module, plans: list[PlacementPlan], warmup: int, stack: ExitStack
    ) -> None:
        self._model, self._plans, self._warmup, self._stack = model, plans, warmup, stack
        first = next(model.parameters(), None)
        if first is None:
            raise PrunescopeError(
                f"{type(model).__name__} has no parameters",
                hint="give capture() the module that holds the weights",
            )
        self._device = first.device
        require_feature(self._device, PROFILER)
        self._inside_step = False
        self._steps_run = 0
        self._contexts = self._planned_steps()
        self._samples_ns: list[int] = []
        self._placements: list[Placement] = []
        self._inputs: dict[str, Any] = {}
        self._routing = RoutingCount(model)
        self._joined = Joined()
        self._trains = False
        self._state = DeviceState(self._device)
        self._state.open(self._describe_model().dtype)
        self._rng = random.Random()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Run one step of the loop: warm-up, sample or profiled step, in the planned order.

        Raises:
            PrunescopeError: The step was started inside another step, so that both would be
                timed and counted.
        """
        if self._inside_step:
            raise PrunescopeError(
                "a step was started inside another step",
                hint="`with c.step():` goes once around each step of the loop",
            )
        self._inside_step = True
        try:
            context = next(self._contexts, nullcontext())
            self._steps_run += 1
            with self._record_inputs() if self._steps_run == 1 else nullcontext(), context:
                yield
        finally:
            self._inside_step = False

    def restore_storages(self) -> None:
        """Give weights that moved storages of their own again, after the loop."""
        if len(self._plans) > 1:
            separate_storages(self._model, self._rng)

    def finish(self, variant: str, phase: str | None) -> Capture:
        """Return the capture of the whole loop.

        Args:
            variant: "dense" or "pruned".
            phase: The name of the phase; None takes that of `usual_phase`.

        Returns:
            The manifest and the trace.

        Raises:
            PrunescopeError: Steps are missing.
        """
        needed = sum(self._warmup + plan.repeats + 1 + plan.steps for plan in self._plans)
        if self._steps_run < needed:
            raise PrunescopeError(
                f"the loop ran {self._steps_run} steps, and {needed} are needed",
                hint="run more, or pass smaller warmup, repeats or steps to capture()",
            )
        phase = phase or usual_phase(self._inputs, trains=self._trains)
        captured = Capture(run=self._make_run(variant, phase), traces={phase: self._joined})
        captured.run.timing = self._state.close()
        self._routing.write(captured.run, phase)
        return captured

    def _planned_steps(self) -> Iterator[StepContext]:
        """Yield the context of each planned step, placement by placement."""
        move = len(self._plans) > 1
        for plan, cost_ns in placed(self._plans, [self._model], self._rng, move=move):
            placement = Placement(samples=0, steps=0, cost_ns=cost_ns)
            self._placements.append(placement)
            for _ in range(self._warmup):
                yield self._warm_up(placement)
            samples = DisturbanceMonitor(self._device)
            for _ in range(plan.repeats):
                yield self._sample(placement, samples)
            # Samples are steps of the user's loop: disturbed ones cannot be repeated.
            reasons = samples.reasons()
            placement.disturbed = sum(map(bool, reasons))
            placement.reasons = distinct(reasons)
            placement.switches = sum(samples.switches())
            yield from self._profiled_steps(plan, placement)

    @contextmanager
    def _warm_up(self, placement: Placement) -> Iterator[None]:
        with timed(self._device) as elapsed:
            yield
        placement.cost_ns += elapsed.ns

    @contextmanager
    def _sample(self, placement: Placement, watch: DisturbanceMonitor) -> Iterator[None]:
        with watch.sample(), timed(self._device) as elapsed:
            yield
        self._samples_ns.append(elapsed.ns)
        placement.samples += 1

    def _profiled_steps(self, plan: PlacementPlan, placement: Placement) -> Iterator[StepContext]:
        """Yield the contexts of the placement's profiled steps, in one session.

        The first is step −1, which is thrown away.
        """
        session = self._stack.enter_context(ProfiledSession([self._model], self._device))
        watch = DisturbanceMonitor(self._device)
        first = sum(placement.steps for placement in self._placements)
        for index in (-1, *range(first, first + plan.steps)):
            yield self._profile_step(session, placement, watch, index=index, plan=plan)

    @contextmanager
    def _profile_step(
        self,
        session: ProfiledSession,
        placement: Placement,
        watch: DisturbanceMonitor,
        *,
        index: int,
        plan: PlacementPlan,
    ) -> Iterator[None]:
        # The step that is thrown away is the one that counts tokens of experts.
        watched = watch.sample() if index >= 0 else self._routing.step()
        with watched, session.turn(_VARIANT, label_of(index)):
            yield
        placement.steps += index >= 0
        if placement.steps < plan.steps:
            return
        self._stack.close()
        placement.steps_disturbed = most_disturbed(watch.reasons())
        trace = session.traces()[_VARIANT]
        self._state.achieved.add(trace)
        self._trains |= has_backward(trace)
        self._joined.add(trace)

    @contextmanager
    def _record_inputs(self) -> Iterator[None]:
        """Record tokens, cache and logits of the calls in the first step."""
        calls: list[dict[str, Any]] = []

        def record(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            # A compiled model takes any arguments: the module inside has the real signature.
            original = getattr(self._model, "_orig_mod", self._model)
            calls.append(call_shape(original, args, kwargs))

        handle = self._model.register_forward_pre_hook(record, with_kwargs=True)
        with hooked([handle]):
            yield
        if not calls:
            raise PrunescopeError(
                "the model was not called in the first step",
                hint="call the model that capture() was given inside `with c.step():`",
            )
        self._inputs = inputs_of(calls)

    def _describe_model(self) -> Loaded:
        """Describe the model as if a loader had loaded it."""
        config: Any = getattr(self._model, "config", None)
        name = str(getattr(config, "_name_or_path", "") or type(inner(self._model)).__name__)
        return Loaded(model=self._model, id=Path(name).name, source="capture", notes=[])

    def _make_run(self, variant: str, phase: str) -> Run:
        """Return the manifest of the loop."""
        model, inputs = self._model, self._inputs
        config: Any = getattr(model, "config", None)
        loaded = self._describe_model()
        entry = PhaseRun(
            batch=inputs["batch"],
            prompt_len=inputs["length"],
            positions=[inputs["past"], inputs["past"] + inputs["length"]],
            context=inputs["past"] + inputs["length"],
            logits=inputs["logits"],
            cache=inputs["cache"],
            attention=str(getattr(config, "_attn_implementation", "unknown")),
            mode="eager",
            steps=sum(placement.steps for placement in self._placements),
            tokens_per_step=inputs["tokens"],
            warmup=self._warmup,
            samples_ns=self._samples_ns,
            interleaved="alone",
            placements=self._placements,
        )
        device = self._state.open(loaded.dtype)
        return manifest(variant, model, loaded, device, phases={phase: entry})
