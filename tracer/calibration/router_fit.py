"""Routers fitted to a text, so that the tokens that a sublayer changes most score highest.

In: a model whose routers let every token through, and token ids [B, L]. Out: in each router its
weight [1, h], its share of the tokens, and the score above which a token of decode goes through.
The target is the change of the hidden state, log(‖f(x)‖ / ‖x‖) of each token. The fit is by ridge
regression.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from prunescope.tracer.calibration.collect import run_hooked
from prunescope.tracer.calibration.point import Calibration
from prunescope.tracer.model.forwards import first_tensor

_RIDGE = 0.01  # the ridge, as a share of the variance of a feature
_TINY = 1e-12
_MIN_COST = 1e-3  # costs below it count as this one


@dataclass(frozen=True, kw_only=True)
class Site:
    """A router, its decoder layer, and the sublayers that it skips or runs.

    The change of the hidden state is the sum of the outputs of the sublayers, minus the `residual`
    that a sublayer was called with, if any; for a whole layer it is minus the layer's input. Sites
    of one `kind` (attention, mlp, layer) share their budget.
    """

    kind: str
    layer: nn.Module
    router: Any
    sublayers: list[nn.Module]


@dataclass
class _Moments:
    """Sums over tokens: of x [h] and y, of x·xᵀ [h, h], of x·y [h] and of y²."""

    count: int = 0
    x: Any = 0.0
    y: float = 0.0
    xx: Any = 0.0
    xy: Any = 0.0
    yy: float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add the tokens x [n, h] with their targets y [n]."""
        self.count += len(y)
        self.x += x.sum(0).double().cpu()
        self.y += float(y.sum())
        self.xx += (x.T @ x).double().cpu()
        self.xy += (y @ x).double().cpu()
        self.yy += float(y.square().sum())

    def centred(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return the covariance of x [h, h], that of x and y [h], and the variance of y."""
        x, y = self.x / self.count, self.y / self.count
        return (
            self.xx / self.count - torch.outer(x, x),
            self.xy / self.count - x * y,
            self.yy / self.count - y * y,
        )


@dataclass
class _SiteData:
    """The data of a site.

    `fit` and `held` are the moments of the tokens to fit and to test. `changes` holds the change of
    every token, `scores` its score by the fitted router, one tensor per forward.
    """

    fit: _Moments = field(default_factory=_Moments)
    held: _Moments = field(default_factory=_Moments)
    changes: list[torch.Tensor] = field(default_factory=list)
    scores: list[torch.Tensor] = field(default_factory=list)


def fit_routers(
    model: Any,
    sites: Sequence[Site],
    calibration: Calibration,
    *,
    sparsity: float,
    costs: Sequence[float] | None = None,
    equal: bool = False,
) -> float | None:
    """Fit the routers in place. They must let every token through while this runs.

    A sublayer gets the share of the tokens whose change is among the 1 − s largest of its kind.
    Shares thus differ between sublayers and average 1 − s.

    Args:
        model: The model that holds the routers.
        sites: The routers and the sublayers that they skip or run.
        calibration: The tokens. The last quarter of the sequences is held out.
        sparsity: The share s of the tokens to skip.
        costs: The mean cost of skipping each site for a token, in any unit. The changes are shifted
            so that their mean matches the logarithm of the cost. None leaves the changes as
            measured.
        equal: Whether every sublayer gets the share 1 − s itself.

    Returns:
        The median R² of the routers on the held-out sequences; None with fewer than four sequences.
    """
    data = [_SiteData() for _ in sites]
    count = len(calibration.batches)
    fitted = calibration.batches[: count - count // 4]
    run_hooked(model, fitted, _attach_watches(sites, data, [site_data.fit for site_data in data]))
    held = calibration.batches[len(fitted) :]
    run_hooked(model, held, _attach_watches(sites, data, [site_data.held for site_data in data]))
    weights = [_solve_ridge(site_data.fit) for site_data in data]
    for site, weight in zip(sites, weights, strict=True):
        site.router.weight.data.copy_(weight)
    run_hooked(model, calibration.batches, _attach_score_hooks(sites, data))
    for site_data, cost in zip(data, costs or (), strict=costs is not None):
        # Then the mean of the changes is the logarithm of the cost.
        mean = float(torch.cat(site_data.changes).mean())
        shift = math.log(max(cost, _MIN_COST)) - mean
        site_data.changes = [change + shift for change in site_data.changes]
    for kind in {site.kind for site in sites}:
        alike = [(site, own) for site, own in zip(sites, data, strict=True) if site.kind == kind]
        _set_shares(alike, sparsity, equal=equal)
    r2 = [
        _held_out_r2(site_data.held, weight)
        for site_data, weight in zip(data, weights, strict=True)
        if site_data.held.count
    ]
    return statistics.median(r2) if r2 else None


def set_thresholds(model: Any, sites: Sequence[Site], calibration: Calibration) -> None:
    """Set the threshold of each router by its scores in the current model.

    Args:
        model: The model that holds the routers.
        sites: The routers, each with its sparsity.
        calibration: The tokens to score.
    """
    data = [_SiteData() for _ in sites]
    run_hooked(model, calibration.batches, _attach_score_hooks(sites, data))
    for site, site_data in zip(sites, data, strict=True):
        site.router.threshold = quantile(torch.cat(site_data.scores), site.router.sparsity)


def read_at_routers(
    model: Any,
    sites: Sequence[Site],
    calibration: Calibration,
    read: Callable[[Any, torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """Read something at each router in the current model.

    Args:
        model: The model that holds the routers.
        sites: The routers.
        calibration: The tokens to run through the model.
        read: The function from a router and its input [1, L, h] to a tensor.

    Returns:
        The result of `read` for each router in float32, concatenated over the sequences.
    """
    kept: list[list[torch.Tensor]] = [[] for _ in sites]
    handles = [
        site.router.register_forward_pre_hook(
            lambda router, args, own=own: own.append(read(router, args[0]).float())
        )
        for site, own in zip(sites, kept, strict=True)
    ]
    run_hooked(model, calibration.batches, handles)
    return [torch.cat(values) for values in kept]


def _set_shares(sites: Sequence[tuple[Site, _SiteData]], sparsity: float, *, equal: bool) -> None:
    """Set the sparsity and the threshold of each router of a kind."""
    if equal:
        for site, site_data in sites:
            site.router.sparsity = sparsity
            site.router.threshold = quantile(torch.cat(site_data.scores), sparsity)
        return
    changes = [torch.cat(site_data.changes) for _, site_data in sites]
    least = quantile(torch.cat(changes), sparsity)
    for (site, site_data), change in zip(sites, changes, strict=True):
        share = float((change < least).double().mean())
        site.router.sparsity = min(share, 1 - 1 / len(change))  # a prefill has at least one row
        site.router.threshold = quantile(torch.cat(site_data.scores), share)


def quantile(values: torch.Tensor, share: float) -> float:
    """Return the value that has a given share of the values [n] below it.

    Returns:
        The value; -inf if the share is below one value, inf if it is all of them.
    """
    below = int(len(values) * share)
    if below == 0:
        return float("-inf")
    return float(values.sort().values[below]) if below < len(values) else float("inf")


def _solve_ridge(moments: _Moments) -> torch.Tensor:
    """Return the weight [h] of a ridge regression over features that are scaled to variance 1."""
    xx, xy, _ = moments.centred()
    scale = xx.diagonal().clamp(min=_TINY).rsqrt()
    ridge = _RIDGE * torch.eye(len(xy), dtype=xx.dtype)
    return torch.linalg.solve(xx * torch.outer(scale, scale) + ridge, xy * scale) * scale


def _held_out_r2(moments: _Moments, weight: torch.Tensor) -> float:
    """Return R² of a weight [h] on the tokens of these moments."""
    xx, xy, yy = moments.centred()
    unexplained = yy - 2 * float(weight @ xy) + float(weight @ xx @ weight)
    return 1 - unexplained / max(yy, _TINY)


def _attach_watches(
    sites: Sequence[Site], data: Sequence[_SiteData], moments: Sequence[_Moments]
) -> list[Any]:
    """Attach hooks that add the tokens of each forward to the moments and changes of each site."""
    return [
        handle
        for site, own, sums in zip(sites, data, moments, strict=True)
        for handle in _Watch(sums, own.changes).attach(site)
    ]


class _Watch:
    """The hooks of one site, which see the inputs of the layer and its router, and the change."""

    def __init__(self, moments: _Moments, changes: list[torch.Tensor]) -> None:
        self.moments, self.changes = moments, changes
        self.entered = self.read = torch.empty(0)
        self.whole, self.count = False, 1
        self.outputs: list[torch.Tensor] = []  # of the sublayers that ran in this forward

    def attach(self, site: Site) -> list[Any]:
        """Attach the hooks, and return their handles."""
        self.whole, self.count = site.sublayers[0] is site.layer, len(site.sublayers)
        return [
            site.layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            site.router.register_forward_pre_hook(self._read),
            *(sub.register_forward_hook(self._change, with_kwargs=True) for sub in site.sublayers),
        ]

    def _enter(self, _module: nn.Module, args: Any, kwargs: Any) -> None:
        self.entered = first_tensor(args, kwargs)

    def _read(self, _module: nn.Module, args: Any) -> None:
        self.read = args[0]

    def _change(self, _module: nn.Module, _args: Any, kwargs: Any, output: Any) -> None:
        self.outputs.append(output[0] if isinstance(output, tuple) else output)
        if len(self.outputs) < self.count:
            return
        change = sum(self.outputs[1:], self.outputs[0])
        self.outputs = []
        before = self.entered if self.whole else kwargs.get("residual")
        if before is None:
            before = self.entered
        else:
            change = change - before
        norms = [_rows(x).norm(dim=-1).clamp(min=_TINY) for x in (change, before)]
        changes = (norms[0] / norms[1]).log()
        self.moments.add(_rows(self.read), changes)
        self.changes.append(changes.cpu())


def _attach_score_hooks(sites: Sequence[Site], data: Sequence[_SiteData]) -> list[Any]:
    """Attach hooks that keep the scores of every token."""

    def keep(site_data: _SiteData) -> Any:
        def read(router: Any, args: Any) -> None:
            site_data.scores.append(linear(args[0], router.weight).flatten().float().cpu())

        return read

    each = zip(sites, data, strict=True)
    return [site.router.register_forward_pre_hook(keep(own)) for site, own in each]


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, -2).float()
