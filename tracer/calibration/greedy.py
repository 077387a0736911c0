"""Which layers to remove, one after the other: each the one without which the loss is the least.

In: a model, calibration text and a number. Out: layers, and the losses on the way (nats a token).
Scored anew after every removal, as in SLEB (arXiv 2402.09025) and Shortened LLaMA (2402.02834).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.run_blocks import Record
from prunescope.tracer.calibration.collect import Calibration
from prunescope.tracer.model.layers import counts_without, decoder_layers

SEQUENCES = 2  # of the calibration: each is run n times for every layer that goes


@torch.no_grad()
def greedy_removal(
    model: Any,
    calibration: Calibration,
    kinds: Sequence[str],
    count: int,
    record: Record,
) -> dict[str, list[int]]:
    """{"layer": the layers to remove}; how they were chosen goes into `record`.

    Raises PrunescopeError where sublayers are asked for.
    """
    if tuple(kinds) != ("layer",):
        raise PrunescopeError(
            f"--select greedy does not choose {' and '.join(kinds)} sublayers",
            hint="use --set unit=layer, or --select calibrated",
        )
    _, layers = decoder_layers(model)
    batches = calibration.batches[:SEQUENCES]
    outputs = _outputs(model, layers, batches[0])
    gone: list[int] = []
    losses = [_loss(model, batches)]
    while len(gone) < count:
        scores = {}
        for index in range(len(layers)):
            if index in gone or not counts_without(model, [*gone, index]):
                continue
            with _without([layers[i] for i in (*gone, index)], outputs):
                scores[index] = _loss(model, batches)
        best = min(scores, key=scores.__getitem__)
        gone.append(best)
        losses.append(scores[best])
    tokens = sum(ids.numel() for ids in batches)
    record["calibration"] = {**calibration.record, "sequences": len(batches), "tokens": tokens}
    record["greedy"] = {"order": gone, "losses": losses}
    return {"layer": sorted(gone)}


def _loss(model: Any, batches: Sequence[torch.Tensor]) -> float:
    """Nats a token; infinity where that is no number, so that it is never the least."""
    total, tokens = 0.0, 0
    device = model.get_input_embeddings().weight.device
    for ids in batches:
        ids = ids.to(device)
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        total += float(cross_entropy(logits.float(), ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    return total / tokens if total == total else float("inf")


def _outputs(model: Any, layers: nn.ModuleList, ids: torch.Tensor) -> int:
    """How many values a layer returns as a tuple; 0 where it returns a tensor."""
    seen: list[int] = []
    handle = layers[0].register_forward_hook(
        lambda _module, _args, out: seen.append(len(out) if isinstance(out, tuple) else 0)
    )
    try:
        model(input_ids=ids[:, :2].to(model.get_input_embeddings().weight.device), use_cache=False)
    finally:
        handle.remove()
    return seen[0]


@contextmanager
def _without(layers: Sequence[Any], outputs: int) -> Iterator[None]:
    """Within, these layers put out what they take in."""

    def identity(hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden_states, *[None] * (outputs - 1)) if outputs else hidden_states

    with ExitStack() as stack:
        for layer in layers:
            layer.forward = identity
            stack.callback(layer.__dict__.pop, "forward")
        yield
