"""Loops for --mode compile and graph: one recorded step on a static cache, run repeatedly.

A model, its token ids [B, S] and a recorder of steps come in; loops as in phases.py go out. The
model has no hooks, so that the roles of kernels come from a separate eager pass of the same loops
(`record_nothing`).
"""

from __future__ import annotations

import types
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.phases import DecodeLoop, Loop, PrefillLoop, prefill
from prunescope.tracer.capture.request import TraceRequest, not_recorded
from prunescope.tracer.machine.backends import GRAPHS, backend_of
from prunescope.tracer.machine.device import require_feature
from prunescope.tracer.model import compat
from prunescope.tracer.model.static_step import StaticStep

Step = Callable[[torch.Tensor], Any]
# A recorder takes the step, its ids, and a function that rewinds the cache to the start of the
# step; it returns a function that replays the step.
Record = Callable[[Step, torch.Tensor, Callable[[], None]], Step]
# The most characters of a break's reason, and the most breaks, that a run keeps.
_LONGEST, _MOST_BREAKS = 200, 16
_WARMUP = 3  # runs before recording: libraries allocate and choose kernels in the first runs


def record_nothing(step: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> Step:  # noqa: ARG001
    """Return the eager step itself, for the pass that shows which module launches which kernel."""
    return step


def compile_step(step: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> Step:
    """Compile the step by torch.compile, and run it until it is compiled.

    The returned function says of how many `graphs` it is made, and in `breaks` why it is more than
    one.
    """
    if ids.device.type == "cpu":
        from torch._inductor import config

        # Without it the profiler shows one op for the whole step, as fused kernels are functions.
        config.cpp.enable_kernel_profile = True
    before, reasons = _graphs_and_breaks()
    run: Any = torch.compile(_copy_code(step), dynamic=False)
    with warnings.catch_warnings():
        # The warning is about a cache of the signatures of forwards, which do not change.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru")
        _warm(run, ids, rewind)
    graphs, all_reasons = _graphs_and_breaks()
    run.graphs = graphs - before
    lines = {reason.splitlines()[0][:_LONGEST] for reason in all_reasons - reasons if reason}
    run.breaks = sorted(lines)[:_MOST_BREAKS]
    return run


def _graphs_and_breaks() -> tuple[int, Counter[str]]:
    """Return how many graphs torch.compile made in this process, and why it broke graphs off."""
    from torch._dynamo.utils import counters  # takes a second

    return counters["stats"]["unique_graphs"], Counter(counters["graph_break"])


def _copy_code(step: Any) -> Step:
    """Copy a function or method, with a code object of its own.

    torch.compile keeps what it compiled by the code object, and runs eagerly what it has compiled
    too often.
    """
    function = getattr(step, "__func__", step)
    code = function.__code__.replace()
    copied = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    return types.MethodType(copied, step.__self__) if function is not step else copied


def cuda_graph(step: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> Step:
    """Record the step as a graph of the device with its own inputs and outputs.

    `peak_bytes` of the returned function is the peak of the memory that the capture allocated.

    Raises:
        PrunescopeError: The model does something that a graph cannot capture.
    """
    buffer, backend = ids.clone(), backend_of(ids.device)
    gpu = backend.module
    side = gpu.Stream(ids.device)
    side.wait_stream(gpu.current_stream(ids.device))
    with gpu.stream(side):
        _warm(step, buffer, rewind)
    gpu.current_stream(ids.device).wait_stream(side)
    rewind()
    graph = backend.new_graph()
    # Replays allocate nothing: the memory of a step is that of its capture.
    before = backend.allocated_bytes(ids.device)
    backend.reset_peak(ids.device)
    output = _capture_graph(gpu, graph, step, buffer)
    peak_bytes = backend.peak_bytes(ids.device) - before

    def replay(ids: torch.Tensor) -> Any:
        buffer.copy_(ids)
        graph.replay()
        return output

    recorded: Any = replay
    recorded.peak_bytes, recorded.graphs, recorded.breaks = peak_bytes, 1, []
    return replay


def _capture_graph(gpu: Any, graph: Any, step: Step, buffer: torch.Tensor) -> Any:
    # A failed capture leaves its stream current: the outer context restores ours.
    """Run the step while the graph records it, and return its output."""
    device = buffer.device
    try:
        ours = gpu.stream(gpu.current_stream(device))
        with gpu.device(device), ours, gpu.graph(graph):
            return step(buffer)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # Ending a failed capture raises too; the first error is the reason.
        reason = error.__context__ or error
        message = next(iter(str(reason).splitlines()), type(reason).__name__)
        raise PrunescopeError(
            f"the step cannot be captured in a CUDA graph ({message[:120]})",
            hint="use --mode eager or compile: this model waits for the device within a step",
        ) from error


RECORDERS: dict[str, Record] = {"compile": compile_step, "graph": cuda_graph}


def _warm(run: Step, ids: torch.Tensor, rewind: Callable[[], None]) -> None:
    """Run the step three times, each from the start of the step."""
    for _ in range(_WARMUP):
        rewind()
        run(ids)
    rewind()


class StaticPrefill(PrefillLoop):
    """A prefill loop on a static cache of S tokens."""

    def __init__(
        self, model: torch.nn.Module, ids_BS: torch.Tensor, *, logits: str, record: Record
    ) -> None:
        super().__init__(model, ids_BS, logits=logits)
        self._record = record
        self._static = StaticStep(prompt=True, num_forwards=1, device=ids_BS.device)

    def prepare(self) -> None:
        """Empty the cache; a new cache also has its step recorded."""
        if self.cache is None:
            self.cache = compat.new_static_cache(self.model, self.ids_BS.shape[1])
            if self._record is not record_nothing:
                self._forward(self.ids_BS)  # makes the cache's tensors, and finds the samplers
            self.run = self._record(self._forward, self.ids_BS, self.cache.reset)
        self.cache.reset()
        self._static.resample()

    def sample(self) -> Any:
        """Run one forward."""
        return self.run(self.ids_BS)

    def _forward(self, ids_BS: torch.Tensor) -> Any:
        """Run the forward that is recorded."""
        self._static.begin()
        output = prefill(self.model, ids_BS, cache=self.cache, logits=self.logits)
        self._static.end()
        return output


class StaticDecode(DecodeLoop):
    """A decode loop on a static cache of S + T tokens, which reads its prompt eagerly."""

    def __init__(
        self,
        model: torch.nn.Module,
        ids_BL: torch.Tensor,
        *,
        prompt_len: int,
        logits: str,
        record: Record,
    ) -> None:
        super().__init__(model, ids_BL, prompt_len=prompt_len, logits=logits)
        self._record = record
        device = ids_BL.device
        self._prompt = StaticStep(prompt=True, num_forwards=1, device=device)
        # The tokens of a sample, and the one of the step that is thrown away.
        count = self.steps_per_sample + 1
        self._static = StaticStep(prompt=False, num_forwards=count, device=device)

    def _decode(self, first: int, end: int) -> Any:
        output = None
        for t in range(first, end):
            output = self.run(self.ids_BL[:, t : t + 1])
        self._filled = end
        return output

    def _fill(self, length: int) -> None:
        """Bring the cache to its first `length` tokens.

        A new cache reads them first, and its step is recorded.
        """
        fresh = self.cache is None
        if fresh:
            more = self.ids_BL.shape[1] - self.prompt_len
            self.cache = compat.new_static_cache(self.model, self.prompt_len, more=more)
            self._filled = 0
        self._rewind(length)
        if fresh:
            token = self.ids_BL[:, length : length + 1]
            if self._record is not record_nothing:
                self._forward(token)  # finds the samplers
            self.run = self._record(self._forward, token, lambda: self._rewind(length))
            self._rewind(length)
        self._static.resample()

    def _rewind(self, length: int) -> None:
        # A recorded step advances the cache itself.
        """Crop the cache to `length` tokens.

        It reads them again if it holds fewer, or if it cannot be cropped.
        """
        self._static.turn.zero_()
        filled = compat.tokens_in(self.cache)
        if filled < length or not compat.try_crop(self.cache, filled - length):
            # Layers of a family's own were made for the length of the prompt.
            whole = compat.has_static_layers(self.model) and self.cache.is_croppable
            self._read(self.prompt_len if whole else length)
            if whole:
                compat.try_crop(self.cache, self.prompt_len - length)
        self._filled = length

    def _read(self, length: int) -> None:
        """Fill the empty cache with the first `length` tokens."""
        self.cache.reset()
        if not length:
            return
        self._prompt.resample()
        self._prompt.begin()
        prefill(self.model, self.ids_BL[:, :length], cache=self.cache, logits="last")
        self._prompt.end()

    def _forward(self, ids_B1: torch.Tensor) -> Any:
        """Run the forward of one token, which is recorded."""
        self._static.begin()
        output = compat.forward(self.model, ids_B1, cache=self.cache, logits=self.logits)
        self._static.end()
        return output


def static_loop(
    model: torch.nn.Module, ids: torch.Tensor, request: TraceRequest, phase: str, record: Record
) -> Loop:
    """Return the loop of a phase on a static cache."""
    if phase == "prefill":
        return StaticPrefill(model, ids, logits=request.logits, record=record)
    return StaticDecode(
        model, ids, prompt_len=request.prompt_len, logits=request.logits, record=record
    )


def check_mode(request: TraceRequest, device: torch.device) -> None:
    """Check that a device and a method can run in the requested mode.

    Raises:
        PrunescopeError: The device has no graphs, or no graph can hold the steps of a dynamic
            family.
    """
    if request.mode == "eager":
        return
    if request.mode == "graph":
        require_feature(device, GRAPHS)
    for part in request.parts or ():
        if problem := not_recorded(request.mode, part.family, part.knobs):
            raise PrunescopeError(problem, hint="use --mode eager")
