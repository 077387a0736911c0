"""`prunescope.capture`: a run folder from a user's own loop around a model.

In: any module and the loop, step by step. Out: F/dense, or F/pruned beside a baseline. The first
steps warm up, the next are unprofiled samples, one is thrown away, then come the profiled ones.
"""

from __future__ import annotations

import dataclasses
import random
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.atomic_write import claimed, clean_termination
from prunescope.taxonomy.errors import PrunescopeError, helpful
from prunescope.taxonomy.run import PhaseRun, Placement, Run
from prunescope.tracer.capture.device_state import DeviceState
from prunescope.tracer.capture.joined import Joined
from prunescope.tracer.capture.manifest import manifest
from prunescope.tracer.capture.placements import place, settle, shares
from prunescope.tracer.capture.profiled import ProfiledSession, label_of
from prunescope.tracer.capture.runs import Capture, baseline_folder, check_out, write_runs
from prunescope.tracer.capture.timing import Watch, timed
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import Loaded

_VARIANT = "user"  # of the turns; the manifest says whether they are dense or pruned
_KINDS = ("warmup", "sample", "profile")  # of steps
_BACKWARD = "autograd::engine::evaluate_function"  # of the ops of a backward pass
_PHASE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


@helpful
@contextmanager
def capture(  # noqa: PLR0913 - the options of `prunescope trace` that a loop of one's own has
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
    """Capture the steps of a loop; writes `out` when the block ends without an exception.

    The block must run warmup + repeats + 1 + steps steps at least; more run untouched. With several
    `placements` the weights move to fresh memory before each (the model is the same object), which
    warms up, samples and profiles its share: placements x (warmup + 1) + repeats + steps steps,
    with one profiled step a placement at least. Leave it at 1 for a model whose CUDA graphs or
    optimizer know where its weights lie. `phase` is what the report calls them. None: "training"
    where a step computes gradients, "decode" where the first call has one token a sequence behind a
    filled cache, "prefill" for other calls of a model that takes a cache, and "forward" for a
    module that takes none (an encoder, an MLP, a convolutional net). Raises PrunescopeError where
    fewer steps ran, where `out` exists, and for a module without parameters.
    """
    folder = Path(out)
    _check_phase(phase)
    check_out(folder, overwrite=overwrite)
    twin = None if baseline is None else baseline_folder(Path(baseline))
    plan = _plan(warmup=warmup, repeats=repeats, steps=steps, placements=placements)
    with claimed(folder):
        with ExitStack() as stack:
            steps_seen = UserCapture(model, plan, stack)
            try:
                yield steps_seen
            finally:
                steps_seen.settle()
        with clean_termination():
            name = "dense" if twin is None else "pruned"
            captured = steps_seen.finish(name, phase)
            check_out(folder, overwrite=overwrite)
            write_runs(folder, {name: captured}, twin)


def _check_phase(phase: str | None) -> None:
    if phase is not None and not _PHASE_NAME.fullmatch(phase):
        raise PrunescopeError(
            f"{phase[:40]!r} is no name of a phase",
            hint="letters, digits, - and _, as in prefill, decode or forward",
        )


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one step of the loop is for. `index`: of a profiled step, in its placement and in all;
    -1 is thrown away."""

    kind: str  # one of _KINDS
    placement: int
    begins: bool = False  # its placement
    index: int = -1
    ends: bool = False  # the profiled steps of its placement


def _plan(*, warmup: int, repeats: int, steps: int, placements: int) -> list[_Step]:
    """Every step in order."""
    if placements < 1:
        raise PrunescopeError(
            f"placements is {placements}, not from 1 on", hint="8 draws where weights lie in memory"
        )
    count = min(placements, max(1, repeats))
    plan: list[_Step] = []
    profiled = 0
    for i, (samples, share) in enumerate(
        zip(shares(repeats, count), shares(max(steps, count), count), strict=True)
    ):
        own = [_Step("warmup", i)] * warmup + [_Step("sample", i)] * samples
        own += [_Step("profile", i, index=-1)]
        own += [_Step("profile", i, index=profiled + j) for j in range(share)]
        own[0] = dataclasses.replace(own[0], begins=True)
        own[-1] = dataclasses.replace(own[-1], ends=True)
        profiled += share
        plan += own
    return plan


class UserCapture:
    """The steps of one loop. `with c.step():` goes around each."""

    def __init__(self, model: torch.nn.Module, plan: list[_Step], stack: ExitStack) -> None:
        self._model, self._plan, self._stack = model, plan, stack
        first = next(model.parameters(), None)
        if first is None:
            raise PrunescopeError(
                f"{type(model).__name__} has no parameters",
                hint="give capture() the module that holds the weights",
            )
        self._device = first.device
        self._count = 0
        self._inside = False  # a step
        self._samples_ns: list[int] = []
        self._placements = [Placement(samples=0, steps=0) for _ in range(plan[-1].placement + 1)]
        self._watches: dict[str, Watch] = {}  # of the placement, by kind of step
        self._inputs: dict[str, Any] = {}
        self._session: ProfiledSession | None = None
        self._joined = Joined()
        self._trains = False
        self._around = DeviceState(self._device)
        self._around.open(self._loaded().dtype)
        self._draw = random.Random()

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step of the loop, of the kind whose turn it is. Raises PrunescopeError inside of
        another: the outer one would be timed with it, and each counted."""
        if self._inside:
            raise PrunescopeError(
                "a step is inside of another step",
                hint="`with c.step():` goes once around each step of the loop",
            )
        self._inside = True
        try:
            with self._stepped():
                yield
        finally:
            self._inside = False

    @contextmanager
    def _stepped(self) -> Iterator[None]:
        number, self._count = self._count, self._count + 1
        if number >= len(self._plan):
            yield
            return
        step = self._plan[number]
        placement = self._placements[step.placement]
        if step.begins:
            self._watches = {kind: Watch(self._device) for kind in _KINDS}
        if step.begins and len(self._placements) > 1:
            start = time.perf_counter_ns()
            place([self._model], self._draw)
            placement.cost_ns += time.perf_counter_ns() - start
        if step.kind == "profile":
            with self._profiled(step):
                yield
        elif number == 0:
            with self._watched_inputs(step):
                yield
        else:
            with self._timed(step):
                yield

    def settle(self) -> None:
        """After the loop: weights that moved get storages of their own again."""
        if len(self._placements) > 1:
            settle(self._model, self._draw)

    def usual_phase(self) -> str:
        """What the steps were: training where gradients were computed, mixed where one called the
        model for a prompt and for single tokens, as `generate` does, else by the first one's cache.
        """
        if self._trains:
            return "training"
        first = self._inputs
        if not first or first["cache"] == "none":
            return "forward"
        if min(first["lengths"]) == 1 < max(first["lengths"]):
            return "mixed"
        return "decode" if first["past"] and first["length"] == 1 else "prefill"

    def finish(self, variant: str, phase: str | None) -> Capture:
        """The capture of the whole loop; `phase` None: its usual one. Raises PrunescopeError where
        steps are missing."""
        if self._count < len(self._plan):
            raise PrunescopeError(
                f"the loop ran {self._count} steps, and {len(self._plan)} are needed",
                hint="run more, or pass smaller warmup, repeats or steps to capture()",
            )
        phase = phase or self.usual_phase()
        captured = Capture(run=self._run(variant, phase), traces={phase: self._joined})
        captured.run.timing = self._around.close()
        return captured

    @contextmanager
    def _watched_inputs(self, step: _Step) -> Iterator[None]:
        """Shapes of the first step: tokens, cache and logits as the model was given them."""
        seen: list[dict[str, Any]] = []

        def look(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            # What torch.compile returns takes any arguments: the module inside says which it knows.
            original = getattr(self._model, "_orig_mod", self._model)
            seen.append(compat.call_shape(original, args, kwargs))

        handle = self._model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with self._timed(step):
                yield
        finally:
            handle.remove()
        if not seen:
            raise PrunescopeError(
                "the model was not called in the first step",
                hint="call the model that capture() was given inside `with c.step():`",
            )
        self._inputs = seen[0] | {
            "tokens": sum(call["batch"] * call["length"] for call in seen),
            "lengths": [call["length"] for call in seen],
        }

    @contextmanager
    def _timed(self, step: _Step) -> Iterator[None]:
        with self._watches[step.kind].sample(), timed(self._device) as found:
            yield
        placement = self._placements[step.placement]
        if step.kind == "warmup":
            placement.cost_ns += found.ns
            return
        self._samples_ns.append(found.ns)
        placement.samples += 1

    @contextmanager
    def _profiled(self, step: _Step) -> Iterator[None]:
        placement = self._placements[step.placement]
        if self._session is None:
            self._judge_samples(placement)
            self._session = self._stack.enter_context(ProfiledSession([self._model], self._device))
        watch = self._watches["profile" if step.index >= 0 else "warmup"]
        with watch.sample(), self._session.turn(_VARIANT, label_of(step.index)):
            yield
        placement.steps += step.index >= 0
        if step.ends:
            self._stack.close()
            self._judge_steps(placement)
            trace = self._session.traces()[_VARIANT]
            self._session = None
            self._around.achieved.add(trace)
            names = (str(event.get("name", "")) for event in trace["traceEvents"])
            self._trains |= any(name.startswith(_BACKWARD) for name in names)
            self._joined.add(trace)

    def _judge_samples(self, placement: Placement) -> None:
        """Which of a placement's samples something ran beside: the user's steps, so that none is
        taken again."""
        found = self._watches["sample"].reasons()
        placement.disturbed = sum(map(bool, found))
        placement.reasons = list(dict.fromkeys(chain.from_iterable(found)))
        placement.switches = sum(self._watches["sample"].switches())

    def _judge_steps(self, placement: Placement) -> None:
        """What ran beside most of a placement's profiled steps, which are marked as one."""
        found = self._watches["profile"].reasons()
        if 2 * sum(map(bool, found)) > len(found):
            placement.steps_disturbed = list(dict.fromkeys(chain.from_iterable(found)))

    def _loaded(self) -> Loaded:
        config: Any = getattr(self._model, "config", None)
        name = str(getattr(config, "_name_or_path", "") or type(compat.inner(self._model)).__name__)
        return Loaded(model=self._model, id=Path(name).name, source="capture", notes=[])

    def _run(self, variant: str, phase: str) -> Run:
        model, inputs = self._model, self._inputs
        config: Any = getattr(model, "config", None)
        loaded = self._loaded()
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
            warmup=sum(s.kind == "warmup" and s.placement == 0 for s in self._plan),
            samples_ns=self._samples_ns,
            interleaved="alone",
            placements=self._placements,
        )
        device = self._around.open(loaded.dtype)
        return manifest(variant, model, loaded, device, phases={phase: entry})
