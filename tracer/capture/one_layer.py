"""One decoder layer alone, on the inputs that its model gave it; and the model without its layers.

A loop of the whole model comes in; a loop of one layer, and a loop of the rest, go out. The inputs
are kept from one untimed pass of the whole loop. n layers and the rest make the whole, if the layer
is like the others.
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
    """Return the number of the layer to run in each variant.

    It is the same layer of the dense model in all of them: the one nearest to the middle that all
    variants have.
    """
    maps = {v.name: v.layer_map or range(len(decoder_layers(v.model)[1])) for v in variants}
    common = set.intersection(*(set(numbers) for numbers in maps.values()))
    middle = max(max(numbers) for numbers in maps.values()) / 2
    chosen = min(common, key=lambda number: (abs(number - middle), number))
    return {name: list(numbers).index(chosen) for name, numbers in maps.items()}


@dataclass(frozen=True)
class LayerCall:
    """One call of a layer by its model.

    It holds the arguments, the model's cache at the time, and the tokens `held` in each layer of a
    static cache. `state` is what the layers before it left (None: nothing), and `extras` is what
    the layer returned apart from the hidden states (None: it returned them alone).
    """

    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    cache: Any
    held: list[int]
    state: dict[str, Any] | None
    extras: tuple[Any, ...] | None

    @property
    def hidden(self) -> torch.Tensor:
        """The hidden states [B, S, H], which are the first argument."""
        hidden: torch.Tensor = self.args[0] if self.args else self.keywords["hidden_states"]
        return hidden

    def restore(self, layer: Any) -> None:
        """Restore the state that earlier layers left, before a call."""
        shared = forward_state(layer)
        if shared is not None and self.state is not None:
            shared.restore(self.state)

    def crop(self, cache: Any) -> None:
        """Shorten those layers of a static cache that hold more tokens than the model's did."""
        for layer, held in zip(cache.layers, self.held, strict=False):
            surplus = int(layer.get_seq_length()) - held
            if surplus > 0 and layer.is_initialized:
                layer.crop(-surplus)

    def repeat(self, layer: Any, cache: Any, hidden: torch.Tensor | None = None) -> Any:
        """Call the layer again with another cache, and with other `hidden` states if given.

        The hidden states must have the shape of those of the first call.
        """
        replaced = {id(self.cache): cache}
        if hidden is not None:
            replaced[id(self.hidden)] = hidden
        args = [replaced.get(id(value), value) for value in self.args]
        return layer(*args, **{k: replaced.get(id(v), v) for k, v in self.keywords.items()})


class LayerLoop:
    """A phase of one layer, as a Loop.

    Before a decode the layer itself reads the prompt, so that the cache holds the keys of this
    layer alone. With a recorder one call is recorded; in a decode each token replays that call,
    with hidden states of its own and the mask and position of the first token.
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
        calls = _observe_calls(whole, layer, decodes=decodes)
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
        """One of the observed calls, as a sample of the form of all."""
        return self._steps[0]

    def prepare(self) -> None:
        """Empty the cache, or fill it with the prompt."""
        self._fill()
        for call in self._steps[: self._lead]:
            self._call_eagerly(call)

    def sample(self) -> Any:
        """Call the layer once; in a decode, once for each token."""
        output = None
        for call in self._steps[self._lead :]:
            output = self._call(call)
        return output

    def prepare_step(self, index: int) -> None:
        """Empty the cache before a step.

        In a decode, the cache is filled with all but the last token of the prompt, before the step
        that is thrown away only.
        """
        if index < 0 or not self._lead:
            self._fill()

    def step(self, index: int) -> Any:
        """Call the layer once."""
        return self._call(self._steps[index + 1 if self._lead else 0])

    def _fill(self) -> None:
        """Bring the cache to the start of a sample, and record the step for a new static cache."""
        if self._record is None:
            self.cache = self._new_cache()
        elif self.cache is None:
            self.cache = self._new_cache()
            # The first call allocates the cache and finds the samplers, which a recorded step
            # cannot do.
            self._rewind()
            self._call_eagerly(self._steps[self._lead])
            self._rewind()
            self.run = self._record(self._static_call, self._steps[self._lead].hidden, self._rewind)
        self._rewind()
        if self._record is not None:
            self._static.resample()

    def _rewind(self) -> None:
        """Empty a static cache, and let the layer read the prompt."""
        if self._record is not None:
            self.cache.reset()
            self._static.turn.zero_()
        for call in self._prompt:
            call.restore(self._layer)
            if self._record is not None:
                self._reads.resample()
                self._reads.begin()
            call.repeat(self._layer, self.cache)
            if self._record is not None:
                self._reads.end()
                self._steps[0].crop(self.cache)
        self._steps[self._lead].restore(self._layer)

    def _call_eagerly(self, call: LayerCall) -> Any:
        """Call the layer with the arguments that the model gave it, as the mode runs it."""
        call.restore(self._layer)
        if self._record is None:
            return call.repeat(self._layer, self.cache)
        self._static.begin()
        output = call.repeat(self._layer, self.cache)
        self._static.end()
        return output

    def _static_call(self, hidden: torch.Tensor) -> Any:
        """Run the step that is recorded: with other hidden states, else as the first call."""
        self._static.begin()
        output = self._steps[self._lead].repeat(self._layer, self.cache, hidden)
        self._static.end()
        return output

    def _call(self, call: LayerCall) -> Any:
        """Replay the recorded step, or call the layer eagerly if there is none."""
        if self.run is None:
            return self._call_eagerly(call)
        self._steps[self._lead].restore(self._layer)
        return self.run(call.hidden)


def _observe_calls(whole: Loop, layer: torch.nn.Module, *, decodes: bool) -> list[LayerCall]:
    """Return the calls of a layer in an untimed pass of the whole loop.

    They are the call of the prompt and, in a decode, those of each token, from the last token of
    the prompt on.
    """
    calls: list[LayerCall] = []
    shared, held = forward_state(layer), list[int]()
    saved: dict[str, Any] | None = None

    def look(*_: Any) -> None:
        nonlocal saved, held
        saved = None if shared is None else shared.saved()
        held = list(compat.static_lengths(whole.cache))

    def keep(_layer: Any, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        extras = output[1:] if isinstance(output, tuple) else None
        calls.append(LayerCall(args, dict(keywords), whole.cache, held, saved, extras))

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
    """A loop of the whole model with its layers skipped.

    Each layer returns the hidden states that it is given, in the form in which one of them returned
    its own.
    """

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
