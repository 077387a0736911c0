"""Greedy layer removal: each round removes the layer whose removal raises the loss least.

In: a model, calibration tokens and a count. Out: layers, and the loss after each round (nats per
token). All remaining layers are scored again after every removal, as in SLEB (arXiv 2402.09025) and
Shortened LLaMA (arXiv 2402.02834).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.runs.run_blocks import Record
from prunescope.taxonomy.timings import forwards
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.forwards import Forward, first_tensor, forwards_replaced, hooked
from prunescope.tracer.model.layers import decoder_layers, runs_without

SEQUENCES = 2  # of the calibration; each runs n times for every layer that is removed
# Errors of a layer that needs something from a skipped layer.
_NEEDS_OTHERS = (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError)


@torch.no_grad()
def greedy_removal(
    model: Any, calibration: Calibration, kinds: Sequence[str], count: int, record: Record
) -> dict[str, list[int]]:
    """Choose the layers to remove, one after the other, by the loss that remains.

    Args:
        model: The model, which is not changed.
        calibration: The tokens to compute losses on; the first two sequences are used.
        kinds: The kinds of parts to remove; only ("layer",) is possible.
        count: The number of layers to remove.
        record: The record of the pruning, to which the calibration, the order and the losses are
            added.

    Returns:
        {"layer": the indices of the layers to remove, ascending}.

    Raises:
        PrunescopeError: Sublayers are to be removed instead of layers.
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
            if index not in removed and runs_without(model, [*removed, index])
        }
        best = min(scores, key=scores.__getitem__)
        removed.append(best)
        losses.append(scores[best])
    record["calibration"] = {
        **calibration.record,
        "sequences": len(stack.batches),
        "tokens": sum(ids.numel() for ids in stack.batches),
    }
    record["greedy"] = {"order": removed, "losses": losses}
    return {"layer": sorted(removed)}


@torch.no_grad()
def costs_of_layers(model: Any, calibration: Calibration) -> list[float]:
    """Return how much the loss rises without each single layer, in nats per token.

    Args:
        model: The model, which is not changed.
        calibration: The tokens to compute losses on; the first two sequences are used.

    Returns:
        The rise of the loss by layer. It is below zero for a layer whose removal lowers the loss.
    """
    stack = Stack(model, calibration.batches[:SEQUENCES])
    stack.begin_round([])
    whole = stack.loss([])
    return [stack.loss([index]) - whole for index in range(len(stack.layers))]


class Stack:
    """The losses of a model without some of its layers, which then return their input.

    The input of each layer is kept for a round: to remove one more layer, those before it need not
    run again. Inputs are kept on the CPU in the model's dtype: layers · tokens · hidden numbers,
    which is 0.5 GB for the 2,048 tokens of an allocation of a model of 8 billion parameters in 16
    bits.
    """

    def __init__(self, model: Any, batches: Sequence[torch.Tensor]) -> None:
        self._model = model
        device = model.get_input_embeddings().weight.device
        self.batches = [ids.to(device) for ids in batches]
        self.layers: list[Any] = list(decoder_layers(model)[1])
        self._num_returned = _count_returned_values(model, self.layers[0], self.batches[0])
        # The inputs by sequence and layer; empty if all layers must run.
        self._entering: list[list[torch.Tensor]] = []
        self._removed: list[int] = []
        self._reuse_inputs = True
        self._reuse_inputs = self._can_reuse_inputs()

    def loss(self, removed: Sequence[int]) -> float:
        """Return the loss without some layers, in nats per token.

        Args:
            removed: The removed layers, in the order of removal. If all but the last were removed
                when the round began, the stored inputs are used.

        Returns:
            The loss, or infinity instead of NaN, so that NaN is never the lowest loss.
        """
        known = bool(removed) and list(removed[:-1]) == self._removed
        return self.loss_from(removed[-1] if known else None, removed)

    def loss_from(self, first: int | None, removed: Sequence[int] = ()) -> float:
        """Return the loss without some layers, and reuse what was stored when the round began.

        Args:
            first: The first layer that computes something else than when the round began; the
                layers before it do not run again. None means that all layers run.
            removed: The removed layers.
        """
        total, tokens = 0.0, 0
        for logits, ids in self._predictions(first, removed, len(self.batches)):
            total += float(cross_entropy(logits, ids, reduction="sum"))
            tokens += ids.shape[0]
        return total / tokens if total == total else float("inf")

    def token_losses(
        self, first: int | None, removed: Sequence[int] = (), *, sequences: int
    ) -> torch.Tensor:
        """Return the loss of each token of the first sequences, as `loss_from` averages it.

        Args:
            first: The first layer that computes something else than when the round began.
            removed: The removed layers.
            sequences: How many sequences run.

        Returns:
            The losses in nats, float32 on the CPU, one for each token but the first of a sequence.
        """
        predictions = self._predictions(first, removed, sequences)
        return torch.cat([cross_entropy(*each, reduction="none").cpu() for each in predictions])

    def _predictions(
        self, first: int | None, removed: Sequence[int], sequences: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the logits, in fp32, and the tokens that they predict, of the first sequences."""
        for number, ids in enumerate(self.batches[:sequences]):
            forwards = dict.fromkeys(removed, self._return_input)
            if self._entering and first is not None:
                stored = self._entering[number][first]
                skipped = partial(_run_on_input, self._return_input, stored)
                forwards |= dict.fromkeys(range(first), skipped)
            logits = self._logits(ids, forwards)[0, :-1]
            yield logits.float(), ids[0, 1:]

    def begin_round(self, removed: Sequence[int]) -> None:
        """Start a round without some layers: run the model and store the input of each layer."""
        self._removed, self._entering = list(removed), []
        for ids in self.batches if self._reuse_inputs else ():
            entering: list[torch.Tensor] = []
            record = partial(_record_input, entering)
            with hooked(
                [layer.register_forward_pre_hook(record, with_kwargs=True) for layer in self.layers]
            ):
                self._logits(ids, dict.fromkeys(removed, self._return_input))
            self._entering.append(entering)

    def _can_reuse_inputs(self) -> bool:
        """Return whether each layer needs nothing but the output of the layer before it.

        A layer that shares keys and values with earlier layers needs more. It is tried: the loss
        without the second last layer must be the same with stored inputs as with a full run.
        """
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

    @forwards()
    def _logits(self, ids: torch.Tensor, forwards: Mapping[int, Forward]) -> torch.Tensor:
        """Return the logits [1, L, V], with other forwards for some layers."""
        with forwards_replaced({self.layers[i]: forward for i, forward in forwards.items()}):
            logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
            return logits

    def _return_input(self, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        """Return the input as a removed layer does, in a tuple as long as the layer's own."""
        if not self._num_returned:
            return hidden_states
        return hidden_states, *[None] * (self._num_returned - 1)


def _count_returned_values(model: Any, layer: Any, ids: torch.Tensor) -> int:
    """Return the length of the tuple that a layer returns; 0 if it returns a tensor."""
    lengths: list[int] = []
    handle = layer.register_forward_hook(
        lambda _module, _args, output: lengths.append(
            len(output) if isinstance(output, tuple) else 0
        )
    )
    with hooked([handle]):
        model(input_ids=ids[:, :2], use_cache=False)
    return lengths[0]


def _record_input(
    inputs: list[torch.Tensor], _layer: Any, args: Any, kwargs: dict[str, Any]
) -> None:
    """Append the hidden state that enters a layer to `inputs`, on the CPU (a pre-hook)."""
    inputs.append(first_tensor(args, kwargs).to("cpu"))


def _run_on_input(
    run: Forward, stored: torch.Tensor, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any
) -> Any:
    """Run a forward on the stored hidden state instead of the one that enters."""
    return run(stored.to(hidden_states.device))
