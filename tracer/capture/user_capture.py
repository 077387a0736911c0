"""`prunescope.capture`: a run folder from a user's own loop around a model.

In: any module and the loop, step by step. Out: F/dense, or F/pruned beside a baseline. The first
steps warm up, the next are unprofiled samples, one is thrown away, then come the profiled ones.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from prunescope.taxonomy.atomic_write import claimed, clean_termination
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run import PhaseRun, Run
from prunescope.tracer.capture.folder import check_out
from prunescope.tracer.capture.manifest import manifest
from prunescope.tracer.capture.profiled import ProfiledSession, label_of
from prunescope.tracer.capture.runs import Capture, baseline_folder, write_runs
from prunescope.tracer.capture.surroundings import Surroundings
from prunescope.tracer.capture.timing import timed
from prunescope.tracer.model import compat
from prunescope.tracer.model.load import Loaded

_VARIANT = "user"  # of the turns; the manifest says whether they are dense or pruned
_PHASE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}")


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
    overwrite: bool = False,
) -> Iterator[UserCapture]:
    """Capture the steps of a loop; writes `out` when the block ends without an exception.

    The block must run warmup + repeats + 1 + steps steps at least; more run untouched. `phase` is
    what the report calls them. None: "decode" where the first call has one token a sequence behind
    a filled cache, "prefill" for other calls of a model that takes a cache, and "forward" for a
    module that takes none (an encoder, an MLP, a convolutional net). Raises PrunescopeError where
    fewer steps ran, where `out` exists, and for a module without parameters.
    """
    folder = Path(out)
    _check_phase(phase)
    check_out(folder, overwrite=overwrite)
    twin = None if baseline is None else baseline_folder(Path(baseline))
    plan = _Plan(warmup=warmup, repeats=repeats, steps=steps)
    with claimed(folder):
        with ExitStack() as stack:
            steps_seen = UserCapture(model, plan, stack)
            yield steps_seen
        with clean_termination():
            name = "dense" if twin is None else "pruned"
            captured = steps_seen.finish(name, phase or steps_seen.usual_phase())
            check_out(folder, overwrite=overwrite)
            write_runs(folder, {name: captured}, twin)


def _check_phase(phase: str | None) -> None:
    if phase is not None and not _PHASE_NAME.fullmatch(phase):
        raise PrunescopeError(
            f"{phase[:40]!r} is no name of a phase",
            hint="letters, digits, - and _, as in prefill, decode or forward",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """How many steps of each kind, in this order."""

    warmup: int
    repeats: int
    steps: int

    @property
    def unprofiled(self) -> int:
        return self.warmup + self.repeats

    @property
    def total(self) -> int:
        return self.unprofiled + 1 + self.steps


class UserCapture:
    """The steps of one loop. `with c.step():` goes around each."""

    def __init__(self, model: torch.nn.Module, plan: _Plan, stack: ExitStack) -> None:
        self._model, self._plan, self._stack = model, plan, stack
        first = next(model.parameters(), None)
        if first is None:
            raise PrunescopeError(
                f"{type(model).__name__} has no parameters",
                hint="give capture() the module that holds the weights",
            )
        self._device = first.device
        self._count = 0
        self._samples_ns: list[int] = []
        self._inputs: dict[str, Any] = {}
        self._session: ProfiledSession | None = None
        self._around = Surroundings(self._device)

    @contextmanager
    def step(self) -> Iterator[None]:
        """One step of the loop, of the kind whose turn it is."""
        plan, index = self._plan, self._count - self._plan.unprofiled - 1
        self._count += 1
        if self._count == 1:
            with self._watched_inputs():
                yield
        elif self._count <= plan.unprofiled:
            with self._timed():
                yield
        elif self._count <= plan.total:
            with self._profiled(index):
                yield
            if self._count == plan.total:
                self._stack.close()
        else:
            yield

    def usual_phase(self) -> str:
        """What the first step was, by its cache."""
        first = self._inputs
        if not first or first["cache"] == "none":
            return "forward"
        return "decode" if first["past"] and first["length"] == 1 else "prefill"

    def finish(self, variant: str, phase: str) -> Capture:
        """The capture of the whole loop. Raises PrunescopeError where steps are missing."""
        if self._count < self._plan.total:
            raise PrunescopeError(
                f"the loop ran {self._count} steps, and {self._plan.total} are needed",
                hint="run more, or pass smaller warmup, repeats or steps to capture()",
            )
        assert self._session is not None
        traces = self._session.traces()
        captured = Capture(run=self._run(variant, phase), sessions={phase: [traces[_VARIANT]]})
        captured.run.extra["timing"] = self._around.close(captured.sessions[phase])
        return captured

    @contextmanager
    def _watched_inputs(self) -> Iterator[None]:
        """Shapes of the first step: tokens, cache and logits as the model was given them."""
        seen: list[dict[str, Any]] = []

        def look(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            # What torch.compile returns takes any arguments: the module inside says which it knows.
            original = getattr(self._model, "_orig_mod", self._model)
            seen.append(compat.call_shape(original, args, kwargs))

        handle = self._model.register_forward_pre_hook(look, with_kwargs=True)
        try:
            with self._timed():
                yield
        finally:
            handle.remove()
        if not seen:
            raise PrunescopeError(
                "the model was not called in the first step",
                hint="call the model that capture() was given inside `with c.step():`",
            )
        self._inputs = seen[0] | {"tokens": sum(call["batch"] * call["length"] for call in seen)}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        with timed(self._device) as found:
            yield
        if self._count > self._plan.warmup:
            self._samples_ns.append(found.ns)

    @contextmanager
    def _profiled(self, index: int) -> Iterator[None]:
        if self._session is None:
            self._session = ProfiledSession([self._model], self._device)
            self._stack.enter_context(self._session)
        with self._session.turn(_VARIANT, label_of(index)):
            yield

    def _run(self, variant: str, phase: str) -> Run:
        model, inputs = self._model, self._inputs
        config: Any = getattr(model, "config", None)
        name = Path(str(getattr(config, "_name_or_path", "") or type(model).__name__)).name
        loaded = Loaded(model=model, id=name, source="capture", notes=[])
        entry = PhaseRun(
            batch=inputs["batch"],
            prompt_len=inputs["length"],
            positions=[inputs["past"], inputs["past"] + inputs["length"]],
            context=inputs["past"] + inputs["length"],
            logits=inputs["logits"],
            cache=inputs["cache"],
            attention=str(getattr(config, "_attn_implementation", "unknown")),
            mode="eager",
            steps=self._plan.steps,
            tokens_per_step=inputs["tokens"],
            warmup=self._plan.warmup,
            samples_ns=self._samples_ns,
            interleaved="alone",
        )
        device = self._around.look(loaded.dtype)
        return manifest(variant, model, loaded, device, phases={phase: entry})
