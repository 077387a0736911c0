"""Recovery training: adapters are trained on a text, merged, and recorded.

In: a model, its tokenizer, Recovery and a seed. Out: the record `pruning.recovery` of run.json; the
model has the trained weights. Losses are nats per token.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from prunescope.taxonomy.runs.run_blocks import HeldOut, Losses, Recovered
from prunescope.taxonomy.runs.run_quality import BLOCK
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.layers import num_positions
from prunescope.tracer.model.packed_weights import stored_tensors
from prunescope.tracer.model.weights import expert_notes, weights_fingerprint
from prunescope.tracer.quality.statistics import Blocks, mean_ci95
from prunescope.tracer.recovery.adapters import Adapters, attach
from prunescope.tracer.recovery.examples import Examples, read_examples
from prunescope.tracer.recovery.settings import Recovery, check_installed
from prunescope.tracer.recovery.storage import current_storage
from prunescope.tracer.recovery.training import Training
from prunescope.tracer.routing.learning import Learner


class Keeper(Protocol):
    """What keeps adapters that will be merged."""

    def check(self, adapters: Adapters) -> None:
        """Refuse adapters that it cannot keep, before they are trained."""

    def keep(self, adapters: Adapters) -> None:
        """Keep trained adapters."""


# Largest size of the float32 logits [rows, V] of one forward in training; more rows are split up.
_LOGIT_BYTES = 512 << 20
# Loss and gradient are computed for this much of the logits at a time, which fits a cache: 1,024
# tokens with a vocabulary of 49,152 take 0.17 s instead of 0.43; parts of 16 MiB gain nothing.
_PART_BYTES = 4 << 20
_NO_TARGET = -100
_CURVE = 100  # losses in the record
_ROUTED = 8  # sequences to fit routers and set their thresholds


def recover(  # noqa: PLR0913
    model: Any,
    tokenizer: Any | None,
    settings: Recovery,
    *,
    name: str,
    seed: int,
    masks: bool = False,
    before: Mapping[str, float] | None = None,
    learners: Sequence[Learner] = (),
    keeper: Keeper | None = None,
) -> Recovered:
    """Train a model in place on a text, and record the training.

    Args:
        model: The model, whose weights are changed.
        tokenizer: The tokenizer of the model; None means random token ids.
        settings: The settings of the training.
        name: The name of the training, for progress and checkpoints.
        seed: The seed of the adapters and of the order of sequences.
        masks: Whether zeros of the weights stay zeros.
        before: The `zero_shares` of the dense model.
        learners: The routers to train together with the adapters.
        keeper: What keeps the adapters before they are merged; None: nothing does.

    Returns:
        The record of the training.

    Raises:
        PrunescopeError: The model, the text or a setting does not allow the training.
    """
    check_installed()
    examples = read_examples(
        tokenizer,
        settings,
        vocabulary=model.get_input_embeddings().num_embeddings,
        longest=num_positions(model),
        seed=seed,
    )
    fingerprint = weights_fingerprint(model)
    before_nats = token_losses(model, examples.held_out)
    calibration = Calibration(batches=examples.rows[:_ROUTED].split(1), record={})
    for learner in learners:
        learner.begin(calibration)
    adapters = attach(model, settings, seed=seed, masks=masks, before=before)
    if keeper is not None:
        keeper.check(adapters)
    parameters = dict(adapters.parameters)
    for learner in learners:
        parameters |= learner.parameters()
    training = Training(
        parameters=parameters,
        backward=_Backward(model, one_by_one=bool(learners)),
        examples=examples,
        settings=settings,
        seed=seed,
        key=_training_key(settings, seed, examples, parameters, fingerprint),
        storage=current_storage(),
        name=name,
    )
    training.run()
    if keeper is not None:
        keeper.keep(adapters)
    adapters.merge()
    for learner in learners:
        learner.finish(calibration)
    held_out = held_out_losses(
        before_nats, token_losses(model, examples.held_out), examples.held_out
    )
    record = _make_record(settings, seed, examples, training, held_out)
    record.weights_sha256 = weights_sha256(model)
    record.notes = _notes(model, adapters, learners, training)
    record.routers = [learner.record() for learner in learners]
    return record


@torch.no_grad()
def token_losses(model: Any, rows: torch.Tensor) -> torch.Tensor | None:
    """Return the losses of all tokens but the first of each sequence, in nats [n·(L − 1)].

    Args:
        model: The model.
        rows: The token ids [n, L]; each sequence is scored by itself.

    Returns:
        The losses; None if one is not finite, or if the model dropped tokens and has no logits for
        them.
    """
    parts = []
    for row in rows.split(1):
        scored = _logits_and_targets(model, row)
        if scored is None:
            return None
        nats = [cross_entropy(x.float(), y, reduction="none") for x, y in scored]
        parts.append(torch.cat(nats)[:-1].double().cpu())
    losses = torch.cat(parts)
    return losses if bool(losses.isfinite().all()) else None


def held_out_losses(
    before: torch.Tensor | None, after: torch.Tensor | None, rows: torch.Tensor
) -> HeldOut:
    """Record the losses on held-out sequences before and after a training.

    Args:
        before: What `token_losses` gave before the training.
        after: What it gave after the training.
        rows: The held-out token ids [n, L].
    """
    positions = torch.arange(rows.numel()).view(rows.shape)[:, 1:].flatten()  # in the text
    blocks = Blocks.of(positions, BLOCK)
    tokens = torch.bincount(blocks.block_of)
    held_out = HeldOut(tokens=rows.numel(), block=BLOCK, block_tokens=tokens.tolist())
    for moment, nats in (("before", before), ("after", after)):
        if nats is not None:
            sums = tokens.new_zeros(len(tokens), dtype=torch.float64)
            sums.index_add_(0, blocks.block_of, nats)
            setattr(held_out, moment, float(nats.mean()))
            setattr(held_out, f"{moment}_ci95", mean_ci95(blocks, nats))
            setattr(held_out, f"{moment}_by_block", (sums / tokens).tolist())
    return held_out


@torch.no_grad()
def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of every number of a model's weights, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        for stored in stored_tensors(tensor):
            plain = stored.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(plain.numpy().data)
    return digest.hexdigest()


class _Backward:
    """The gradients of a batch, a few sequences at a time, as their logits are large.

    `one_by_one` takes single sequences, for routers that decide for a whole forward.
    """

    def __init__(self, model: Any, *, one_by_one: bool) -> None:
        self.model, self.one_by_one = model, one_by_one
        self.vocabulary = model.get_input_embeddings().num_embeddings

    def __call__(self, batch: torch.Tensor) -> float:
        """Return the loss of a batch [B, L] in nats per token, and add its gradients."""
        fitting = max(1, _LOGIT_BYTES // (4 * self.vocabulary * batch.shape[1]))
        size = 1 if self.one_by_one else fitting
        tokens, total = batch.shape[0] * (batch.shape[1] - 1), 0.0
        for rows in batch.split(size):
            loss = _summed_loss(self.model, rows)
            assert loss is not None
            (loss / tokens).backward()
            total += float(loss.detach())
        return total / tokens


def _summed_loss(model: Any, rows: torch.Tensor) -> torch.Tensor | None:
    """Return the summed loss of all tokens of [n, L] but the first ones.

    Returns:
        The loss; None if the model dropped tokens and has no logits for them.
    """
    parts = _logits_and_targets(model, rows)
    if parts is None:
        return None
    losses = [checkpoint(_summed_nats, *part, use_reentrant=False) for part in parts]
    return torch.stack(losses).sum()


def _logits_and_targets(
    model: Any, rows: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Return the logits [.., V] and next tokens [..] of rows [n, L], in parts that fit a cache.

    Returns:
        The parts; None if the model dropped tokens and has no logits for them.
    """
    rows = rows.to(model.get_input_embeddings().weight.device)
    logits = model(input_ids=rows, use_cache=False).logits
    if logits.shape[1] < rows.shape[1]:
        return None
    # The next token; the last one of a row has none. Slicing the logits instead would copy them.
    targets = rows.roll(-1, dims=1)
    targets[:, -1] = _NO_TARGET
    size = max(1, _PART_BYTES // (4 * logits.shape[-1]))
    return list(zip(logits.flatten(0, 1).split(size), targets.flatten().split(size), strict=True))


def _summed_nats(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the summed loss of some tokens, in float32. It is recomputed for the gradient."""
    return cross_entropy(logits.float(), targets, reduction="sum", ignore_index=_NO_TARGET)


def _make_record(
    settings: Recovery, seed: int, examples: Examples, training: Training, held_out: HeldOut
) -> Recovered:
    losses = training.state.losses
    every = max(1, -(-len(losses) // _CURVE))
    return Recovered(
        steps=settings.steps,
        rank=settings.rank,
        lr=settings.lr,
        batch=settings.batch,
        length=examples.rows.shape[1],
        text=examples.source,
        target=settings.target,
        seed=seed,
        steps_done=training.state.step,
        epochs=round(training.state.step * settings.batch / len(examples.rows), 2),
        train_sha256=examples.train_sha256,
        eval_sha256=examples.eval_sha256,
        resumed_from=training.resumed_from,
        stopped=training.state.stopped,
        losses=Losses(
            train=[[i + 1, losses[i]] for i in range(0, len(losses), every)], held_out=held_out
        ),
    )


def _notes(
    model: Any, adapters: Adapters, learners: Sequence[Learner], training: Training
) -> list[str]:
    """Return notes on what was trained and what was not."""
    notes = [training.state.stopped] if training.state.stopped else []
    notes.append(f"{len(adapters.modules)} linears trained by adapters, which were merged")
    if adapters.masked:
        notes.append(f"the zeros of {len(adapters.masked)} matrices stayed zeros")
    if adapters.left_out:
        words = ", ".join(adapters.left_out)
        notes.append(f"not trained, as they run on some of their rows or channels: {words}")
    notes += [note.replace("stay dense", "are not trained") for note in expert_notes(model)]
    notes += [learner.how for learner in learners]
    if not learners and any(hasattr(part, "prunescope_stats") for part in model.modules()):
        notes.append("routers are not trained")
    notes.append("embeddings, norms and the head are not trained")
    return notes


def _training_key(
    settings: Recovery, seed: int, examples: Examples, parameters: dict[str, Any], fingerprint: str
) -> str:
    """Identify a training by its settings, parameters, initial weights and text."""
    named = {name: list(p.shape) for name, p in parameters.items()}
    values = [settings.plain(), seed, examples.train_sha256, named, fingerprint]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
