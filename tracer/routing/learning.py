"""Routers that a training can teach: what a dynamic family hands to recovery.

In: calibration batches. Out: parameters in float32 while they are trained, and decisions by their
scores, no longer drawn, at the same share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from prunescope.taxonomy.run_blocks import RouterTraining
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.calibration.router_fit import Site, fit_routers, settle_thresholds


class Learner(Protocol):
    """The routers of one family in one model."""

    how: str  # what is trained and how, with its source

    def begin(self, calibration: Calibration) -> None:
        """Decide by scores from now on, with weights in float32."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""

    def settle(self, calibration: Calibration) -> None:
        """The weights are trained: bring them to the model's dtype, and set the thresholds."""

    def record(self) -> RouterTraining:
        """For run.json."""


def straight_through(scores: torch.Tensor) -> torch.Tensor:
    """Ones, with the gradient of sigmoid(scores): the decision itself is a step, whose gradient is
    zero (straight-through estimator, Bengio et al., arXiv 1308.3432)."""
    soft = scores.sigmoid()
    return 1 + soft - soft.detach()


def in_float32(router: Any) -> None:
    """A router's weight for training: steps of a small rate vanish in half precision."""
    router.own_dtype, router.own_flag = router.weight.dtype, router.weight.requires_grad
    router.weight = nn.Parameter(router.weight.detach().float(), requires_grad=False)


def in_own_dtype(router: Any) -> None:
    """The weight as it was before: of the model's dtype, and with its flag, by which torch chooses
    kernels (see tracer.model.narrow.successor)."""
    trained = router.weight.detach().to(router.own_dtype)
    router.weight = nn.Parameter(trained, requires_grad=router.own_flag)


def router_weights(sites: Sequence[Site]) -> dict[str, nn.Parameter]:
    """The weight [1, h] of the router of each site, by name."""
    return {f"router {i}": site.router.weight for i, site in enumerate(sites)}


class NothingTrained:
    """What decides without a weight. `how`: what its model does in training; `parts`: with a
    `sparsity`, which is 0 meanwhile."""

    def __init__(self, how: str, parts: Sequence[Any] = ()) -> None:
        self.how, self.parts = how, parts
        self.before: list[float] = []

    def begin(self, _calibration: Calibration) -> None:
        """Nothing is left out from now on."""
        self.before = [part.sparsity for part in self.parts]
        for part in self.parts:
            part.sparsity = 0.0

    def parameters(self) -> dict[str, nn.Parameter]:
        """None."""
        return {}

    def settle(self, _calibration: Calibration) -> None:
        """As before."""
        for part, sparsity in zip(self.parts, self.before, strict=True):
            part.sparsity = sparsity

    def record(self) -> RouterTraining:
        """That nothing was trained."""
        return RouterTraining()


class RowLearner:
    """The routers of rows. `fitted`: to a text already; else they are before they are trained."""

    how = (
        "routers trained with the adapters: the best rows of each sequence go through, and the "
        "sigmoid of a score gets the gradient of its row (straight-through, arXiv 1308.3432; top-k "
        "as in MoD, arXiv 2404.02258); decode: rows that score as the best p of their "
        "prompt, by a threshold that moves so that p is kept"
    )

    def __init__(self, model: Any, sites: Sequence[Site], sparsity: float, *, fitted: bool) -> None:
        self.model, self.sites, self.sparsity, self.fitted = model, sites, sparsity, fitted

    def begin(self, calibration: Calibration) -> None:
        """Fit the routers where that was not done, and let their scores decide."""
        routers = [site.router for site in self.sites]
        for router in routers:
            router.draws.is_random = False
        if not self.fitted:
            for router in routers:
                router.sparsity = 0.0
            fit_routers(self.model, self.sites, calibration, sparsity=self.sparsity)
        for router in routers:
            in_float32(router)
            router.learns = True

    def parameters(self) -> dict[str, nn.Parameter]:
        """The weight [1, h] of each router."""
        return router_weights(self.sites)

    def settle(self, calibration: Calibration) -> None:
        """Thresholds for decode, by the rows that now go through."""
        for site in self.sites:
            in_own_dtype(site.router)
            site.router.learns = False
        settle_thresholds(self.model, self.sites, calibration)
        for site in self.sites:
            site.router.tracks = True

    def record(self) -> RouterTraining:
        """The share of the rows that each router lets through, by kind."""
        kinds = dict.fromkeys(site.kind for site in self.sites)
        shares = {
            kind: [round(1 - s.router.sparsity, 4) for s in self.sites if s.kind == kind]
            for kind in kinds
        }
        return RouterTraining(unit="rows", trained=len(self.sites), kept_by_layer=shares)
