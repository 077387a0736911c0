"""What is timed: a model with the call that runs it, of a request or of a user's own.

In: a request with its model, or a model and a callable. Out: loops that are timed in turns, and
outputs that are compared.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from prunescope.tracer.capture.loops import input_ids, loops_of
from prunescope.tracer.capture.phases import Sampled, prefill
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.capture.variants import Variant
from prunescope.tracer.model import compat
from prunescope.tracer.repairs.plain.linear_maps import FAILURES

_COMPARED, _DECODED = 16, 4  # positions of a prompt, and tokens after it, whose logits are compared
_MOST_CALLS = 8  # of a user's step, whose outputs are compared


@dataclass(frozen=True)
class CallChange:
    """What a repair changes of the call; None: nothing.

    `without_gradients` runs a user's call in inference mode.
    """

    logits: Literal["last", "all"] | None = None
    mode: Literal["eager", "compile", "graph"] | None = None
    threads: int | None = None
    without_gradients: bool = False


@dataclass(frozen=True)
class TimedModel:
    """A model, and the changes of its call."""

    model: nn.Module
    call: CallChange = field(default_factory=CallChange)


class FixSubject(Protocol):
    """What `fix` repairs: how it runs, and what it gives."""

    device: torch.device
    phases: tuple[str, ...]

    @property
    def mode(self) -> Callable[[], AbstractContextManager[Any]]:
        """The context in which its loops run."""

    def loops(self, phase: str, sides: Mapping[str, TimedModel]) -> dict[str, Sampled]:
        """Return the loop of each side."""

    def outputs(self, side: TimedModel) -> list[Tensor]:
        """Return the outputs of a side, in evaluation mode."""

    def steps(self, phase: str) -> int:
        """Return how many steps of a phase a whole run has."""


class TracedSubject:
    """The model of a request, as `trace` runs it."""

    mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode

    def __init__(self, request: TraceRequest, variant: Variant, device: torch.device) -> None:
        self.request, self.variant, self.device = request, variant, device
        self.phases = request.phases
        self._recorded: dict[tuple[str, int], Sampled] = {}
        self._decoded, self._has_outputs = _DECODED, False

    def steps(self, phase: str) -> int:
        """Return 1 for prefill, and the number of tokens for decode."""
        return self.request.decode_steps if phase == "decode" else 1

    def loops(self, phase: str, sides: Mapping[str, TimedModel]) -> dict[str, Sampled]:
        """Return the loop of each side, as `trace` makes it."""
        return {name: self._loop(phase, side) for name, side in sides.items()}

    def _loop(self, phase: str, side: TimedModel) -> Sampled:
        """Return the loop of one side; a compiled step is kept for all placements."""
        request = replace(
            self.request,
            logits=side.call.logits or self.request.logits,
            mode=side.call.mode or self.request.mode,
        )
        key = phase, id(side.model)
        if request.mode == "compile" and key in self._recorded:
            return self._recorded[key]
        variant = replace(self.variant, model=side.model)
        loop: Sampled = loops_of(request, phase, [variant], self.device)[variant.name]
        if request.mode == "compile":
            self._recorded[key] = loop
        return with_threads(loop, side.call.threads)

    def outputs(self, side: TimedModel) -> list[Tensor]:
        """Return the logits of the last positions of the prompt, and of a few tokens after it.

        Of a model that has no positions after the prompt, those of the prompt alone.
        """
        model, length = side.model, self.request.prompt_len
        variant = replace(self.variant, model=model)
        ids = input_ids(self.request, [variant], length=length + self._decoded)[0].to(self.device)
        keep: Any = min(_COMPARED, length)
        with evaluated(model), torch.inference_mode():
            cache = compat.new_cache(model)
            prompt = prefill(model, ids[:, :length], cache=cache, logits=keep).logits[:, -keep:]
            try:
                tokens = ids[:, length:].split(1, dim=1) if self._decoded else ()
                parts = [prefill(model, t, cache=cache, logits="last").logits for t in tokens]
            except FAILURES:
                if self._has_outputs:  # another one could
                    raise
                parts, self._decoded = [], 0
        self._has_outputs = True
        return [torch.cat([prompt, *(part[:, -1:] for part in parts)], 1)]


class CalledSubject:
    """A user's model and the call of one step of it."""

    mode: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __init__(self, model: nn.Module, call: Callable[[Any], Any], phase: str) -> None:
        self.call = call
        self.phases: tuple[str, ...] = (phase,)
        self.device: torch.device = next(model.parameters()).device

    def steps(self, phase: str) -> int:  # noqa: ARG002
        """Return 1: a call is a step."""
        return 1

    def loops(self, phase: str, sides: Mapping[str, TimedModel]) -> dict[str, Sampled]:  # noqa: ARG002
        """Return the loop of each side: the user's call, once a sample."""
        return {
            name: with_threads(_CallLoop(self.call, side), side.call.threads)
            for name, side in sides.items()
        }

    def outputs(self, side: TimedModel) -> list[Tensor]:
        """Return what the first calls of the model in a step give, as far as it is numbers."""
        given: list[Tensor] = []

        def record(_module: nn.Module, _arguments: Any, output: Any) -> None:
            if len(given) < _MOST_CALLS and (tensor := main_tensor(output)) is not None:
                given.append(tensor.detach().clone())

        handle = side.model.register_forward_hook(record)
        try:
            with evaluated(side.model):
                _CallLoop(self.call, side).sample()
        finally:
            handle.remove()
        return given


class _CallLoop:
    """A user's call as a loop that is timed."""

    steps_per_sample = 1

    def __init__(self, call: Callable[[Any], Any], side: TimedModel) -> None:
        self._call, self._side = call, side

    def prepare(self) -> None:
        """Do nothing: a call is complete."""

    def sample(self) -> Any:
        """Call the model once."""
        without = self._side.call.without_gradients
        with torch.inference_mode() if without else nullcontext():
            return self._call(self._side.model)


def with_threads(loop: Sampled, threads: int | None) -> Sampled:
    """Return a loop that runs with a number of threads; None: with as many as before."""
    return loop if threads is None else _ThreadsLoop(loop, threads)


class _ThreadsLoop:
    """A loop whose samples run with a number of threads; the number before is restored."""

    def __init__(self, loop: Sampled, threads: int) -> None:
        self._loop, self._threads = loop, threads
        self.steps_per_sample = loop.steps_per_sample

    def prepare(self) -> None:
        """Prepare a sample of the loop."""
        self._loop.prepare()

    def sample(self) -> Any:
        """Run a sample of the loop."""
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._loop.sample()
        finally:
            torch.set_num_threads(before)


def main_tensor(output: Any) -> Tensor | None:
    """Return the tensor that a model gives: logits, else the first in floating point."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values = output.values() if isinstance(output, Mapping) else output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    parts = values if isinstance(values, list | tuple) or isinstance(output, Mapping) else ()
    tensors = (main_tensor(part) for part in parts if isinstance(part, Tensor | list | tuple))
    return next((tensor for tensor in tensors if tensor is not None), None)


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; its own modes are restored."""
    trained = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in trained:
            module.training = True


def copy_model(model: nn.Module) -> nn.Module:
    """Return a copy of a model whose weights have the strides of the original.

    Weights that a parametrisation computed are no leaves of autograd, which torch does not copy:
    they are detached first. torch gives a copied view memory without gaps: its strides are
    restored, as they are what a repair may be about.
    """
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, Tensor) and not value.is_leaf:
                vars(module)[name] = value.detach()
    with torch.no_grad():
        copied = copy.deepcopy(model)
        for kind in ("named_parameters", "named_buffers"):
            new = dict(getattr(copied, kind)())
            for name, old in getattr(model, kind)():
                if name in new and _may_differ(old) and old.stride() != new[name].stride():
                    _restore_strides(old, new[name])
    return copied


def _may_differ(tensor: Tensor) -> bool:
    """Return whether a tensor is plain and strided, so that its strides can be restored."""
    plain = type(tensor) in (Tensor, nn.Parameter)
    return plain and tensor.layout == torch.strided and not tensor.is_quantized


def _restore_strides(old: Tensor, new: Tensor) -> None:
    """Give a copy the strides of its original, in memory of its own."""
    strided = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=old.device)
    new.data = strided.copy_(old)
