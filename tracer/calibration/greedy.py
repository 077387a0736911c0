"""Greedy layer removal: one after the other, the layer whose removal raises the loss least.

In: a model, calibration tokens and a count. Out: layers, and the losses on the way (nats a token).
Scored again after every removal, as in SLEB (arXiv 2402.09025) and Shortened LLaMA (2402.02834).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run_blocks import Record
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.forwards import Forward, first_tensor, forwards_replaced, hooked
from prunescope.tracer.model.layers import counts_without, decoder_layers

SEQUENCES = 2  # of the calibration: each runs n times for every layer that is removed
# Errors of a layer that needs something from a skipped layer.
_NEEDS_OTHERS = (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError)


@torch.no_grad()
def greedy_removal(
    model: Any,
    calibration: Calibration,
    kinds: Sequence[str],
    count: int,
    record: Record,
) -> dict[str, list[int]]:
    """{"layer": the layers to remove}; order and losses are added to `record`.

    Raises PrunescopeError for sublayers.
    """
    if tuple(kinds) != ("layer",):
        raise PrunescopeError(
            f"--select greedy does not choose {' and '.join(kinds)} sublayers",
            hint="use --set unit=layer, or --select importance",
        )
    stack = Stack(model, calibration.batches[:SEQUENCES])
    removed: list[int] = []
    losses = [stack.loss(removed)]
    while len(removed) < count:
        stack.begin_round(removed)
        scores = {
            index: stack.loss([*removed, index])
            for index in range(len(stack.layers))
            if index not in removed and counts_without(model, [*removed, index])
        }
        best = min(scores, key=scores.__getitem__)
        removed.append(best)
        losses.append(scores[best])
    tokens = sum(ids.numel() for ids in stack.batches)
    record["calibration"] = {
        **calibration.record,
        "sequences": len(stack.batches),
        "tokens": tokens,
    }
    record["greedy"] = {"order": removed, "losses": losses}
    return {"layer": sorted(removed)}


@torch.no_grad()
def costs_of_layers(model: Any, calibration: Calibration) -> list[float]:
    """The rise of the loss, nats a token, without each layer alone, on the first sequences."""
    stack = Stack(model, calibration.batches[:SEQUENCES])
    stack.begin_round([])
    whole = stack.loss([])
    return [stack.loss([index]) - whole for index in range(len(stack.layers))]


class Stack:
    """Losses of a model without some layers, which then return their input.

    The input of each layer is kept for a round: to remove one more, the layers before it need not
    run again. Inputs are kept on the CPU in the model's dtype: layers · tokens · hidden numbers,
    0.5 GB for the 2,048 tokens of an allocation of a model of 8 billion parameters in 16 bits.
    """

    def __init__(self, model: Any, batches: Sequence[torch.Tensor]) -> None:
        self._model = model
        device = model.get_input_embeddings().weight.device
        self.batches = [ids.to(device) for ids in batches]
        self.layers: list[Any] = list(decoder_layers(model)[1])
        self._returned = _values_returned(model, self.layers[0], self.batches[0])
        # By sequence and layer; empty if all layers must run.
        self._entering: list[list[torch.Tensor]] = []
        self._removed: list[int] = []
        self._reuse_inputs = True
        self._reuse_inputs = self._inputs_are_enough()

    def loss(self, removed: Sequence[int]) -> float:
        """Nats a token without these layers, in the order of removal; infinity instead of NaN, so
        that it is never the lowest."""
        known = bool(removed) and list(removed[:-1]) == self._removed
        return self.loss_from(removed[-1] if known else None, removed)

    def loss_from(self, first: int | None, removed: Sequence[int] = ()) -> float:
        """`loss`, where the layers before `first` do what they did at the start of the round: they
        do not run again. None: all layers run."""
        total, tokens = 0.0, 0
        for number, ids in enumerate(self.batches):
            forwards = dict.fromkeys(removed, self._identity)
            if self._entering and first is not None:
                given = partial(_given, self._identity, self._entering[number][first])
                forwards |= dict.fromkeys(range(first), given)
            logits = self._logits(ids, forwards)[0, :-1]
            total += float(cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
        return total / tokens if total == total else float("inf")

    def begin_round(self, removed: Sequence[int]) -> None:
        """Start a round without these layers: keep the input of each other layer."""
        self._removed, self._entering = list(removed), []
        for ids in self.batches if self._reuse_inputs else ():
            entering: list[torch.Tensor] = []
            record = partial(_record_input, entering)
            with hooked(
                [one.register_forward_pre_hook(record, with_kwargs=True) for one in self.layers]
            ):
                self._logits(ids, dict.fromkeys(removed, self._identity))
            self._entering.append(entering)

    def _inputs_are_enough(self) -> bool:
        """Whether a layer needs only the output of the layers before it; one that shares keys and
        values with them needs more."""
        if len(self.layers) < 3:
            return False
        second_last = [len(self.layers) - 2]
        full_run = self.loss(second_last)
        try:
            self.begin_round([])
            return self.loss(second_last) == full_run
        except _NEEDS_OTHERS:
            return False
        finally:
            self._entering = []

    def _logits(self, ids: torch.Tensor, forwards: Mapping[int, Forward]) -> torch.Tensor:
        """[1, L, V], with other forwards for some layers."""
        with forwards_replaced({self.layers[i]: forward for i, forward in forwards.items()}):
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
            return logits

    def _identity(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """A layer's forward that returns its input."""
        returned = self._returned
        return (hidden_states, *[None] * (returned - 1)) if returned else hidden_states


def _values_returned(model: Any, layer: Any, ids: torch.Tensor) -> int:
    """Length of the tuple that a layer returns; 0 if it returns a tensor."""
    seen: list[int] = []
    handle = layer.register_forward_hook(
        lambda _module, _args, out: seen.append(len(out) if isinstance(out, tuple) else 0)
    )
    with hooked([handle]):
        model(input_ids=ids[:, :2], use_cache=False)
    return seen[0]


def _record_input(seen: list[torch.Tensor], _layer: Any, args: Any, kwargs: dict[str, Any]) -> None:
    seen.append(first_tensor(args, kwargs).to("cpu"))


def _given(
    run: Forward, given: torch.Tensor, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any
) -> Any:
    return run(given.to(hidden_states.device))
