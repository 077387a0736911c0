"""Routers fitted to a text: the tokens that a sublayer changes most score highest.

In: a model whose routers let every token through, and token ids [B, L]. Out: in each router its
weight [1, h], its share of the tokens, and the score above which a token of decode goes through.
The target is the change of the hidden state, log(‖f(x)‖ / ‖x‖) of each token, by ridge regression.
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

_RIDGE = 0.01  # of the variance of a feature
_TINY = 1e-12
_MIN_COST = 1e-3  # lower costs count as this


@dataclass(frozen=True, kw_only=True)
class Site:
    """A router, its decoder layer, and the sublayers whose summed outputs are the change of the
    hidden state: less the `residual` that a sublayer was called with, if any; of a whole layer,
    less its input. Sites of one `kind` (attention, mlp, layer) share their budget."""

    kind: str
    layer: nn.Module
    router: Any
    sublayers: list[nn.Module]


@dataclass
class _Moments:
    """Sums over tokens: of x [h] and y, of x·xᵀ [h, h], x·y [h] and y²."""

    count: int = 0
    x: Any = 0.0
    y: float = 0.0
    xx: Any = 0.0
    xy: Any = 0.0
    yy: float = 0.0

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """The tokens x [n, h] with their targets y [n]."""
        self.count += len(y)
        self.x += x.sum(0).double().cpu()
        self.y += float(y.sum())
        self.xx += (x.T @ x).double().cpu()
        self.xy += (y @ x).double().cpu()
        self.yy += float(y.square().sum())

    def centred(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Covariance of x [h, h], of x and y [h], and the variance of y."""
        x, y = self.x / self.count, self.y / self.count
        return (
            self.xx / self.count - torch.outer(x, x),
            self.xy / self.count - x * y,
            self.yy / self.count - y * y,
        )


@dataclass
class _SiteData:
    """Data of a site: moments of the tokens to fit (`fit`) and to test (`held`), the change of
    every token, and its score by the fitted router."""

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
    """Fit the routers in place; they must let every token through while this runs.

    A sublayer gets the share of the tokens whose change is among the 1 − s largest of its kind, so
    that shares differ between sublayers and average 1 − s; if `equal`, 1 − s itself. `costs`, in
    any unit: the mean cost of skipping each site for a token; changes are shifted to match them.
    Returns the median R² of the routers on the last quarter of the sequences, which is held out;
    None with fewer than four sequences.
    """
    seen = [_SiteData() for _ in sites]
    count = len(calibration.batches)
    fitted = calibration.batches[: count - count // 4]
    run_hooked(model, fitted, _watching(sites, seen, [s.fit for s in seen]))
    held = calibration.batches[len(fitted) :]
    run_hooked(model, held, _watching(sites, seen, [s.held for s in seen]))
    weights = [_solved(found.fit) for found in seen]
    for site, weight in zip(sites, weights, strict=True):
        site.router.weight.data.copy_(weight)
    run_hooked(model, calibration.batches, _scoring(sites, seen))
    for found, cost in zip(seen, costs or (), strict=costs is not None):
        _shift_to(found, cost)
    for kind in {site.kind for site in sites}:
        own = [(t, s) for t, s in zip(sites, seen, strict=True) if t.kind == kind]
        _set_shares(own, sparsity, equal=equal)
    r2 = [_r2(s.held, w) for s, w in zip(seen, weights, strict=True) if s.held.count]
    return statistics.median(r2) if r2 else None


def set_thresholds(model: Any, sites: Sequence[Site], calibration: Calibration) -> None:
    """Set the threshold of each router by its scores in the current model."""
    seen = [_SiteData() for _ in sites]
    run_hooked(model, calibration.batches, _scoring(sites, seen))
    for site, found in zip(sites, seen, strict=True):
        site.router.threshold = quantile(torch.cat(found.scores), site.router.sparsity)


def at_routers(
    model: Any,
    sites: Sequence[Site],
    calibration: Calibration,
    read: Callable[[Any, torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """`read(router, input [1, L, h])` of each router, stacked over the sequences, in float32, in
    the current model."""
    kept: list[list[torch.Tensor]] = [[] for _ in sites]
    handles = [
        site.router.register_forward_pre_hook(
            lambda router, args, own=own: own.append(read(router, args[0]).float())
        )
        for site, own in zip(sites, kept, strict=True)
    ]
    run_hooked(model, calibration.batches, handles)
    return [torch.cat(own) for own in kept]


def _shift_to(found: _SiteData, cost: float) -> None:
    """Shift the changes of a site so that their mean is the logarithm of its cost."""
    shift = math.log(max(cost, _MIN_COST)) - float(torch.cat(found.changes).mean())
    found.changes = [change + shift for change in found.changes]


def _set_shares(sites: Sequence[tuple[Site, _SiteData]], sparsity: float, *, equal: bool) -> None:
    """Set the sparsity and threshold of each router of a kind."""
    if equal:
        for site, found in sites:
            site.router.sparsity = sparsity
            site.router.threshold = quantile(torch.cat(found.scores), sparsity)
        return
    changes = [torch.cat(found.changes) for _, found in sites]
    least = quantile(torch.cat(changes), sparsity)
    for (site, found), change in zip(sites, changes, strict=True):
        own = float((change < least).double().mean())
        site.router.sparsity = min(own, 1 - 1 / len(change))  # a prefill has at least one row
        site.router.threshold = quantile(torch.cat(found.scores), own)


def quantile(values: torch.Tensor, share: float) -> float:
    """The value with a `share` of [n] below it; -inf for none below, inf for all."""
    below = int(len(values) * share)
    if below == 0:
        return float("-inf")
    return float(values.sort().values[below]) if below < len(values) else float("inf")


def _solved(moments: _Moments) -> torch.Tensor:
    """The weight [h] by ridge regression over features of variance 1."""
    xx, xy, _ = moments.centred()
    scale = xx.diagonal().clamp(min=_TINY).rsqrt()
    ridge = _RIDGE * torch.eye(len(xy), dtype=xx.dtype)
    return torch.linalg.solve(xx * torch.outer(scale, scale) + ridge, xy * scale) * scale


def _r2(moments: _Moments, weight: torch.Tensor) -> float:
    xx, xy, yy = moments.centred()
    left = yy - 2 * float(weight @ xy) + float(weight @ xx @ weight)
    return 1 - left / max(yy, _TINY)


def _watching(
    sites: Sequence[Site], seen: Sequence[_SiteData], moments: Sequence[_Moments]
) -> list[Any]:
    """Hooks that add the tokens of every forward to the moments and changes of each site."""
    each = zip(sites, seen, moments, strict=True)
    return [h for site, found, sums in each for h in _Watch(sums, found.changes).attach(site)]


class _Watch:
    """The hooks of one site: the input of the layer, the input of its router, the change."""

    def __init__(self, moments: _Moments, changes: list[torch.Tensor]) -> None:
        self.moments, self.changes = moments, changes
        self.entered = self.read = torch.empty(0)
        self.whole, self.count = False, 1
        self.outputs: list[torch.Tensor] = []  # of the sublayers that ran in this forward

    def attach(self, site: Site) -> list[Any]:
        """Attach the hooks; returns their handles."""
        self.whole, self.count = site.sublayers[0] is site.layer, len(site.sublayers)
        return [
            site.layer.register_forward_pre_hook(self._enter, with_kwargs=True),
            site.router.register_forward_pre_hook(self._read),
            *(one.register_forward_hook(self._change, with_kwargs=True) for one in site.sublayers),
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


def _scoring(sites: Sequence[Site], seen: Sequence[_SiteData]) -> list[Any]:
    """Hooks that keep the scores of every token."""

    def keep(found: _SiteData) -> Any:
        def read(router: Any, args: Any) -> None:
            found.scores.append(linear(args[0], router.weight).flatten().float().cpu())

        return read

    each = zip(sites, seen, strict=True)
    return [site.router.register_forward_pre_hook(keep(found)) for site, found in each]


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(0, -2).float()
