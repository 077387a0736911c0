"""The training loop: AdamW with a cosine schedule, checkpoints, and a stop if it diverges.

In: parameters, a function from a batch [B, L] to its loss in nats per token, and Examples. Out:
Training, whose parameters are those of the last step, or the best ones if it diverged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunescope.tracer.recovery.examples import Examples
from prunescope.tracer.recovery.settings import Recovery
from prunescope.tracer.recovery.storage import (
    Checkpoint,
    TrainingStorage,
    exclusive,
    read_checkpoint,
    write_checkpoint,
)

SAVE_S = 15.0  # between checkpoints: a kill loses at most this much, and the current step
_CLIP = 1.0  # norm of the gradient
_SMOOTH = 0.2  # weight of the newest loss in the running mean
# Nats a token by which the running loss may rise above its minimum before the training stops.
_RISE = 1.0
_WARMUP = 0.05  # share of the steps


@dataclass(kw_only=True)
class State:
    """The state of a training, in plain JSON values."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    smooth: float | None = None
    best: float = math.inf
    best_step: int = 0
    stopped: str | None = None


@dataclass(kw_only=True)
class Training:
    """A training, which can be resumed from its last checkpoint.

    `backward` returns the loss of a batch in nats per token, and adds its gradients.
    """

    parameters: dict[str, nn.Parameter]
    backward: Callable[[torch.Tensor], float]
    examples: Examples
    settings: Recovery
    seed: int
    key: str
    storage: TrainingStorage
    name: str
    state: State = field(default_factory=State)
    resumed_from: int | None = None

    @property
    def file(self) -> Path | None:
        """The file of the checkpoint; None if nothing is stored."""
        return self.storage.file(self.name)

    def run(self) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)  # noqa: FBT003 - torch's own signature
        with exclusive(self.file):
            self._run()
        for parameter in self.parameters.values():
            parameter.requires_grad_(False).grad = None  # noqa: FBT003 - torch's own signature

    def _run(self) -> None:
        optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=self.settings.lr, weight_decay=0.0
        )
        best = self._resume(optimizer)
        if self.state.step >= self.settings.steps or self.state.stopped:
            return
        self.storage.stage(f"train {self.name}", self.settings.steps - self.state.step)
        begun, first, saved = time.monotonic(), self.state.step, 0.0
        while self.state.step < self.settings.steps and not self.state.stopped:
            best = self._step(optimizer, best)
            now, done = time.monotonic(), self.state.step - first
            left = (now - begun) / max(1, done) * (self.settings.steps - self.state.step)
            self.storage.advance(self._progress_text(left))
            if now - saved >= SAVE_S and self.state.step < self.settings.steps:
                self._save(optimizer, best)
                saved = time.monotonic()
        if self.state.stopped:
            self._set_parameters(best)
        self._save(None, {})

    def _step(
        self, optimizer: torch.optim.Optimizer, best: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Take one step, and return the weights with the lowest running loss so far."""
        state, settings = self.state, self.settings
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * _rate_share(state.step, settings.steps)
        optimizer.zero_grad(set_to_none=True)
        batch = self.examples.batch(state.step, settings.batch, seed=self.seed)
        loss = self.backward(batch)
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), _CLIP))
        before = state.smooth
        smooth = loss if before is None else (1 - _SMOOTH) * before + _SMOOTH * loss
        lowest = min(state.best, *state.losses[:1], loss if before is None else math.inf)
        if not (math.isfinite(loss) and math.isfinite(norm)) or smooth > lowest + _RISE:
            state.stopped = (
                f"the training diverged at step {state.step + 1} of {settings.steps} (loss "
                f"{loss:.3g} nats a token): the weights of step {state.best_step}, the best until "
                "then, are kept"
            )
            return best
        if smooth < state.best:  # of the weights before this step
            state.best, state.best_step = smooth, state.step
            best = {name: p.detach().clone() for name, p in self.parameters.items()}
        optimizer.step()
        state.step, state.smooth = state.step + 1, smooth
        state.losses.append(loss)
        return best

    def _progress_text(self, left_s: float) -> str:
        loss = f"{self.state.losses[-1]:.3f}" if self.state.losses else "unknown"
        left = f"{left_s / 60:.0f} min" if left_s >= 90 else f"{left_s:.0f} s"
        return f"train {self.name}: loss {loss}, {left} left"

    def _resume(self, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
        """Load the checkpoint of this training, and return the best weights so far."""
        checkpoint = read_checkpoint(self.file, self.key)
        if checkpoint is None:
            return {name: p.detach().clone() for name, p in self.parameters.items()}
        self.state = State(**{**checkpoint.state, "best": checkpoint.state["best"] or math.inf})
        self.resumed_from = self.state.step
        self._set_parameters(checkpoint.part("now"))
        first, second = checkpoint.part("first"), checkpoint.part("second")
        for name, parameter in self.parameters.items():
            if name in first:
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.state.step)),
                    "exp_avg": first[name].to(parameter.device),
                    "exp_avg_sq": second[name].to(parameter.device),
                }
        return {k: v.to(self.parameters[k].device) for k, v in checkpoint.part("best").items()}

    @torch.no_grad()
    def _set_parameters(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self.parameters[name].copy_(tensor)

    def _save(self, optimizer: torch.optim.Optimizer | None, best: dict[str, torch.Tensor]) -> None:
        """Store a checkpoint to resume from; without an optimizer, store the finished weights."""
        tensors: dict[str, torch.Tensor] = {f"now/{k}": p for k, p in self.parameters.items()}
        tensors |= {f"best/{k}": v for k, v in best.items()}
        for name, parameter in self.parameters.items():
            moments: dict[str, Any] = optimizer.state.get(parameter, {}) if optimizer else {}
            if moments:
                tensors[f"first/{name}"] = moments["exp_avg"]
                tensors[f"second/{name}"] = moments["exp_avg_sq"]
        best_loss = self.state.best
        state = {**vars(self.state), "best": best_loss if math.isfinite(best_loss) else None}
        write_checkpoint(self.file, self.key, Checkpoint(tensors=tensors, state=state))


def _rate_share(step: int, steps: int) -> float:
    """Return the learning rate as a share of its maximum: linear warm-up, then a cosine to 0."""
    warm = max(1, round(_WARMUP * steps))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warm) * cosine
