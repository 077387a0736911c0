"""One decoder layer alone, on the inputs that its model gave it; and the model without its layers.

In: a loop of the whole model. Out: a loop of one layer, and a loop of the rest. The inputs are kept
from one untimed pass of the whole loop. n layers and the rest make the whole, if the layer is like
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.tracer.capture.graph_mode import Record
from prunescope.tracer.capture.phases import Loop
from prunescope.tracer.capture.variants import Variant
from prunescope.tracer.model import compat
from prunescope.tracer.model.forwards import forward_state, forwards_replaced, hooked
from prunescope.tracer.model.layers import decoder_layers
from prunescope.tracer.model.static_step import StaticStep


def layers_alone(variants: Sequence[Variant]) -> dict[str, int]:
    """The number of the layer to run, in each variant: the same layer of the dense model, the
    nearest to its middle that all variants have."""
    maps = {v.name: v.layer_map or range(len(decoder_layers(v.model)[1])) for v in variants}
    common = set.intersection(*(set(numbers) for numbers in maps.values()))
    middle = max(max(numbers) for numbers in maps.values()) / 2
    chosen = min(common, key=lambda number: (abs(number - middle), number))
    return {name: list(numbers).index(chosen) for name, numbers in maps.items()}


@dataclass(frozen=True)
class LayerCall:
    """The arguments that a layer was called with, the model's cache at the time, the tokens `held`
    in each layer of a static one, what the layers before it left (None: nothing), and what the
    layer returned apart from the hidden states (None: it returned them alone)."""

    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    cache: Any
    held: list[int]
    found: dict[str, Any] | None
    extras: tuple[Any, ...] | None

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states [B, S, H]: the first argument."""
        found: torch.Tensor = self.args[0] if self.args else self.keywords["hidden_states"]
        return found

    def restore(self, layer: Any) -> None:
        """Restore, before a call, the state that earlier layers left."""
        state = forward_state(layer)
        if state is not None and self.found is not None:
            state.restore(self.found)

    def crop(self, cache: Any) -> None:
        """Shorten those layers of a static cache that hold more tokens than the model's did."""
        for layer, held in zip(cache.layers, self.held, strict=False):
            surplus = int(layer.get_seq_length()) - held
            if surplus > 0 and layer.is_initialized:
                layer.crop(-surplus)

    def again(self, layer: Any, cache: Any, hidden: torch.Tensor | None = None) -> Any:
        """Call the layer with another cache; `hidden`: other hidden states of the same shape."""
        other = {id(self.cache): cache}
        if hidden is not None:
            other[id(self.hidden)] = hidden
        args = [other.get(id(value), value) for value in self.args]
        return layer(*args, **{k: other.get(id(v), v) for k, v in self.keywords.items()})


class LayerLoop:
    """A phase of one layer, as a Loop. Before a decode the layer itself reads the prompt, so that
    the cache holds the keys of this layer alone.

    With a recorder one call is recorded. In a decode each token replays it, with hidden states of
    its own and the mask and position of the first.
    """

    def __init__(
        self,
        whole: Loop,
        layer: torch.nn.Module,
        *,
        decodes: bool,
        new_cache: Callable[[], Any],
        record: Record | None,
    ) -> None:
        self.steps_per_sample = whole.steps_per_sample
        self.cache: Any = None
        self.run: Any = None
        self._layer, self._new_cache, self._record = layer, new_cache, record
        self._lead = int(decodes)  # tokens before the first of a sample
        calls = _calls(whole, layer, decodes=decodes)
        count = self._lead + self.steps_per_sample
        self._prompt, self._steps = calls[:-count], calls[-count:]
        if record is not None:  # a static cache that cannot be cropped reads its prompt again
            self._prompt = self._prompt[-self._lead :] if decodes else self._prompt
            device = self.form.hidden.device
            self._reads = StaticStep(prompt=True, num_forwards=1, device=device)
            self._static = StaticStep(prompt=not decodes, num_forwards=count, device=device)
        if len(self._steps) < count or len(self._prompt) > self._lead:
            raise PrunescopeError(
                "a step of this model does not call its middle layer exactly once",
                hint="--only model runs the whole model",
            )

    @property
    def form(self) -> LayerCall:
        """One of the recorded calls, as a sample of their form."""
        return self._steps[0]

    def prepare(self) -> None:
        """An empty cache, or one that holds the prompt."""
        self._fill()
        for call in self._steps[: self._lead]:
            self._eagerly(call)

    def sample(self) -> Any:
        """A call of the layer; in a decode, one for each token."""
        output = None
        for call in self._steps[self._lead :]:
            output = self._call(call)
        return output

    def prepare_step(self, index: int) -> None:
        """An empty cache; in a decode, one without the last token of the prompt, before the step
        that is thrown away."""
        if index < 0 or not self._lead:
            self._fill()

    def step(self, index: int) -> Any:
        """A call of the layer."""
        return self._call(self._steps[index + 1 if self._lead else 0])

    def _fill(self) -> None:
        if self._record is None:
            self.cache = self._new_cache()
        elif self.cache is None:
            self.cache = self._new_cache()
            # Allocates it, and finds the samplers: a recorded step finds it so.
            self._rewind()
            self._eagerly(self._steps[self._lead])
            self._rewind()
            self.run = self._record(self._static_call, self._steps[self._lead].hidden, self._rewind)
        self._rewind()
        if self._record is not None:
            self._static.resample()

    def _rewind(self) -> None:
        if self._record is not None:
            self.cache.reset()
            self._static.turn.zero_()
        for call in self._prompt:
            call.restore(self._layer)
            if self._record is not None:
                self._reads.resample()
                self._reads.begin()
            call.again(self._layer, self.cache)
            if self._record is not None:
                self._reads.end()
                self._steps[0].crop(self.cache)
        self._steps[self._lead].restore(self._layer)

    def _eagerly(self, call: LayerCall) -> Any:
        """A call by the arguments that the model gave it, in the form of the mode."""
        call.restore(self._layer)
        if self._record is None:
            return call.again(self._layer, self.cache)
        self._static.begin()
        output = call.again(self._layer, self.cache)
        self._static.end()
        return output

    def _static_call(self, hidden: torch.Tensor) -> Any:
        """The step that is recorded: of other hidden states, otherwise as the first."""
        self._static.begin()
        output = self._steps[self._lead].again(self._layer, self.cache, hidden)
        self._static.end()
        return output

    def _call(self, call: LayerCall) -> Any:
        if self.run is None:
            return self._eagerly(call)
        self._steps[self._lead].restore(self._layer)
        return self.run(call.hidden)


def _calls(whole: Loop, layer: torch.nn.Module, *, decodes: bool) -> list[LayerCall]:
    """The calls of a layer in an untimed pass: of the prompt, and in a decode of each token, from
    the last of the prompt on."""
    calls: list[LayerCall] = []
    state, found, held = forward_state(layer), list[dict[str, Any]](), list[int]()

    def look(*_: Any) -> None:
        found[:] = [] if state is None else [state.saved()]
        held[:] = compat.static_lengths(whole.cache)

    def keep(_layer: Any, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        extras = output[1:] if isinstance(output, tuple) else None
        state_before = next(iter(found), None)
        calls.append(LayerCall(args, dict(keywords), whole.cache, list(held), state_before, extras))

    hooks = [
        layer.register_forward_pre_hook(look),
        layer.register_forward_hook(keep, with_kwargs=True),
    ]
    with hooked(hooks):
        for index in range(-1, whole.steps_per_sample if decodes else 0):
            whole.prepare_step(index)
            whole.step(index)
    whole.cache = None
    return calls


class RestLoop:
    """The samples of a loop of the whole model, its layers skipped: each returns the hidden states
    that it is given, in the form that one of them returned its own."""

    def __init__(self, whole: Loop, layers: Iterable[torch.nn.Module], form: LayerCall) -> None:
        self.steps_per_sample = whole.steps_per_sample
        self._whole, self._layers, self._extras = whole, list(layers), form.extras

    def prepare(self) -> None:
        """Prepare a sample as the whole model does."""
        with self._skipped():
            self._whole.prepare()

    def sample(self) -> Any:
        """Run a sample as the whole model does."""
        with self._skipped():
            return self._whole.sample()

    def _skipped(self) -> AbstractContextManager[None]:
        return forwards_replaced(dict.fromkeys(self._layers, self._unchanged))

    def _unchanged(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        return hidden_states if self._extras is None else (hidden_states, *self._extras)
