"""Routers that recovery training can train.

In: calibration batches. Out: parameters in float32 during training, then decisions by their scores
instead of at random, at the same share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from prunescope.taxonomy.runs.run_blocks import RouterTraining
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.calibration.router_fit import Site, fit_routers, set_thresholds


class Learner(Protocol):
    """The trainer of one family's routers in one model."""

    how: str  # the note of a run on what is trained and how, with its source

    def begin(self, calibration: Calibration) -> None:
        """Start training: decide by scores from now on, with weights in float32."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters, by name."""

    def finish(self, calibration: Calibration) -> None:
        """Finish training: cast the weights to the model's dtype, and set the thresholds."""

    def record(self) -> RouterTraining:
        """Return the record of the training for run.json."""


def straight_through(scores: Tensor) -> Tensor:
    """Return ones with the gradient of sigmoid(scores).

    The decision itself is a step, whose gradient is zero (straight-through estimator, Bengio et
    al., arXiv 1308.3432).
    """
    soft = scores.sigmoid()
    return 1 + soft - soft.detach()


def cast_to_float32(router: Any) -> None:
    """Cast a router's weight for training: small steps are lost in half precision."""
    router.own_dtype, router.own_flag = router.weight.dtype, router.weight.requires_grad
    router.weight = nn.Parameter(router.weight.detach().float(), requires_grad=False)


def restore_dtype(router: Any) -> None:
    """Cast a router's weight back to the model's dtype, with its old `requires_grad`.

    torch chooses kernels by `requires_grad` (`tracer.model.narrow.successor`).
    """
    trained = router.weight.detach().to(router.own_dtype)
    router.weight = nn.Parameter(trained, requires_grad=router.own_flag)


def router_weights(sites: Sequence[Site]) -> dict[str, nn.Parameter]:
    """Return the weight [1, h] of the router of each site, by name."""
    return {f"router {i}": site.router.weight for i, site in enumerate(sites)}


class NothingTrained:
    """The learner of a family that decides without weights.

    `how` says what its model does in training. `parts` are modules whose `sparsity` is 0 during
    training.
    """

    def __init__(self, how: str, parts: Sequence[Any] = ()) -> None:
        self.how, self.parts = how, parts
        self.before: list[float] = []

    def begin(self, _calibration: Calibration) -> None:
        """Leave nothing out from now on."""
        self.before = [part.sparsity for part in self.parts]
        for part in self.parts:
            part.sparsity = 0.0

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return an empty dict: nothing is trained."""
        return {}

    def finish(self, _calibration: Calibration) -> None:
        """Restore the sparsity."""
        for part, sparsity in zip(self.parts, self.before, strict=True):
            part.sparsity = sparsity

    def record(self) -> RouterTraining:
        """Return a record without trained routers."""
        return RouterTraining()


class RowLearner:
    """The trainer of the routers of rows.

    If `is_fitted`, they were fitted to a text already, which gave each a share of its own.
    Otherwise `begin` fits them, and each keeps the share that it has, 1 − s.
    """

    how = (
        "routers trained with the adapters: the int(p·S) best rows of each sequence go through, p "
        "being the router's share, and the sigmoid of a score gets the gradient of its row "
        "(straight-through, arXiv 1308.3432; top-k as in MoD, arXiv 2404.02258); decode: rows that "
        "score as the best p of their prompt, by a threshold that moves so that p is kept"
    )

    def __init__(
        self, model: Any, sites: Sequence[Site], sparsity: float, *, is_fitted: bool
    ) -> None:
        self.model, self.sites, self.sparsity, self.is_fitted = model, sites, sparsity, is_fitted

    def begin(self, calibration: Calibration) -> None:
        """Fit the routers if needed, and let their scores decide."""
        routers = [site.router for site in self.sites]
        for router in routers:
            router.sampler.is_random = False
        if not self.is_fitted:
            for router in routers:
                router.sparsity = 0.0
            fit_routers(self.model, self.sites, calibration, sparsity=self.sparsity, equal=True)
        for router in routers:
            cast_to_float32(router)
            router.learns = True

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the weight [1, h] of each router."""
        return router_weights(self.sites)

    def finish(self, calibration: Calibration) -> None:
        """Set the thresholds for decode by the rows that go through after training."""
        for site in self.sites:
            restore_dtype(site.router)
            site.router.learns = False
        set_thresholds(self.model, self.sites, calibration)
        for site in self.sites:
            site.router.tracks = True

    def record(self) -> RouterTraining:
        """Return the share of the rows that each router lets through, by kind."""
        kinds = dict.fromkeys(site.kind for site in self.sites)
        shares = {
            kind: [round(1 - s.router.sparsity, 4) for s in self.sites if s.kind == kind]
            for kind in kinds
        }
        return RouterTraining(unit="rows", trained=len(self.sites), kept_by_layer=shares)
