"""Dynamic depth: each forward skips whole layers.

Any layers may be skipped, the last ones (early exit), or in decode the lower and middle ones. A
router on the pooled hidden state runs before every layer. Each forward skips int(n·s) layers:
random ones, or those that trained routers choose. With `exit=lower` (SkipDecode) the prompt runs
through all layers, and each token after it through the first and the last ones; their number alone
decides, without a router. A skipped layer caches nothing for its tokens, so that its cache has
holes, and a mixer in it updates no state: decode after prefill differs from a forward of the whole
sequence.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.keep import removed_layers, rounding
from prunescope.taxonomy.runs.run_blocks import RouterTraining
from prunescope.taxonomy.words import when
from prunescope.tracer.attention.counted_cache import LayerPlace, layer_places
from prunescope.tracer.attention.static_layers import GatedLayer
from prunescope.tracer.calibration.greedy import costs_of_layers
from prunescope.tracer.calibration.point import Calibration, Point
from prunescope.tracer.calibration.router_fit import Site, fit_routers, quantile, read_at_routers
from prunescope.tracer.model import compat
from prunescope.tracer.model.forwards import extend, name_arguments
from prunescope.tracer.model.layers import text_config
from prunescope.tracer.model.static_step import StaticStep, static_step
from prunescope.tracer.pruners import Applied
from prunescope.tracer.routing.decisions import (
    Counted,
    Sampler,
    Tally,
    refuse_calibration,
    score_weight,
    with_first,
)
from prunescope.tracer.routing.learning import (
    Learner,
    NothingTrained,
    cast_to_float32,
    restore_dtype,
    router_weights,
    straight_through,
)
from prunescope.tracer.routing.rebuild import check_runs, has_mixers, movable_layers, rebuild

_LEAST_SPREAD = 1e-3  # the spread of a feature, as a share of the largest one
_TINY = 1e-12


def prune(model: PreTrainedModel, point: Point) -> Applied:
    """Put a router before every layer; no weights are removed."""
    refuse_calibration(point, "dynamic-depth")
    layers = movable_layers(model)
    places = layer_places(model, layers)
    hidden = int(text_config(model).hidden_size)
    leave = str(point.knobs["exit"])
    route = _Route(len(layers), leave, Sampler(point, "dynamic-depth"))

    def build() -> list[_Route]:
        for place, layer in zip(places, layers, strict=True):
            extend(layer, _Skippable)
            parts: Any = layer
            if leave != "lower":
                parts.router = _DepthRouter(point, place.number, next(layer.parameters()), hidden)
            parts.place, parts.route, parts.tally = place, route, Tally("layers")
        return [route]

    rebuild(model, build, sparsity=point.sparsity)
    if leave != "lower":
        compat.set_static_layers(model, functools.partial(_static_layers, places))
    check_runs(model, "with layers skipped", route.sampler.stream)
    skipped = removed_layers(len(layers), point.sparsity)
    state = when(has_mixers(model), " and updates no state")
    how = {
        "skip": f"each forward skips {skipped} of {len(layers)} layers, chosen at random",
        "early": f"each forward skips one of the {skipped} ± 1 last layers, chosen at random",
        "lower": f"each step of decode skips the {skipped} layers behind the first, a prompt none",
    }
    notes = [f"{how[leave]}; a skipped layer caches nothing{state}"]
    notes += rounding(len(layers) - skipped, len(layers), point.sparsity, "layers")
    record = {"kept": {"layers": len(layers) - skipped}, "notes": notes}
    # Early exit skips a random number of the last layers: there is nothing to learn.
    learners: list[Learner] = []
    if leave == "lower":
        learners = [NothingTrained("trained on forwards without a cache, which skip nothing")]
    elif leave == "skip":
        learners = [_DepthLearner(model, list(layers), route)]
    return Applied(model=model, record=record, learners=learners)


def _static_layers(places: list[LayerPlace], prompt: int, more: int) -> dict[int, Any]:
    """Make the layers of a static cache, all of which may be skipped.

    Raises:
        PrunescopeError: A mixer or a window would go on in a layer that is skipped.
    """
    if not all(place.attends and place.window is None for place in places):
        raise PrunescopeError(
            "a mixer or a window goes on in a layer whose output is dropped",
            hint="use --mode eager",
        )
    return {place.cached: GatedLayer(prompt + more) for place in places}


@dataclass
class _Route:
    """The choice of layers that the current forward skips."""

    num_layers: int
    leave: str  # "skip", "early" or "lower", as the knob `exit`
    sampler: Sampler
    sparsity: float = 0.0
    skipped: set[int] = field(default_factory=set)
    is_trained: bool = False  # trained routers decide
    learns: bool = False  # the routers are being trained
    may_skip: list[int] = field(default_factory=list)  # the layers that routers may skip
    left: int = 0  # layers that the current forward still has to skip

    def start(self, *, past: int) -> None:
        """Sample the layers that a new forward on a cache of `past` tokens skips.

        These are int(n·s) random layers, or with "early" the last int(n·s) ± 1 (with that mean).
        With "lower" a prompt skips none.
        """
        count = removed_layers(self.num_layers, self.sparsity)
        if self.leave == "lower":
            self.skipped = set(range(1, 1 + count)) if past else set()
            return
        if self.is_trained:
            self.skipped, self.left = set(), count
            return
        if self.leave == "early":
            spread = min(1, count, max(0, self.num_layers - 1 - count))
            count += self.sampler.stream.randint(-spread, spread)
            self.skipped = set(range(self.num_layers - count, self.num_layers))
        else:
            self.skipped = set(self.sampler.stream.sample(range(self.num_layers), count))

    def saved(self) -> dict[str, Any]:
        """Return a copy of the decisions of this forward; see ForwardState."""
        return {"skipped": set(self.skipped), "left": self.left}

    def restore(self, saved: dict[str, Any]) -> None:
        """Set the decisions to a copy that `saved` made."""
        self.skipped, self.left = set(saved["skipped"]), saved["left"]

    def held(self, step: StaticStep) -> Tensor:
        """Return which layers of a static step run, 0 or 1 for each; `start` samples them.

        Raises:
            PrunescopeError: Trained routers decide one after the other, which a static step cannot.
        """
        if self.is_trained:
            raise PrunescopeError(
                "trained routers of layers decide on the host, and a recorded step cannot",
                hint="use --mode eager",
            )
        if self.sampler.number not in step.random_numbers:
            step.hold(self.sampler.number, functools.partial(self._sample, step.turn.device))
        return step.held(self.sampler.number)

    def _sample(self, device: torch.device) -> Tensor:
        """Sample one forward: 1 for each layer that runs, else 0."""
        self.start(past=0)
        runs = [float(index not in self.skipped) for index in range(self.num_layers)]
        return torch.tensor(runs, device=device)

    def decide(self, index: int, *, wanted: bool) -> None:
        """Skip layer `index` if it is not `wanted`, up to int(n·s) layers of a forward.

        It is also skipped if too few later layers could be skipped in its place.
        """
        if index not in self.may_skip or not self.left:
            return
        if not wanted or self.left == sum(layer >= index for layer in self.may_skip):
            self.skipped.add(index)
            self.left -= 1


class _DepthRouter(nn.Module):
    """A router that scores the mean hidden state of each sequence, [h] → 1."""

    def __init__(self, point: Point, layer: int, like: Tensor, hidden: int) -> None:
        super().__init__()
        self.weight = score_weight(
            1, hidden, like=like, seed=point.seed, purpose=f"dynamic-depth {layer}"
        )
        self.sparsity, self.threshold = point.sparsity, 0.0
        # During training they are the mean and standard deviation [h] of the states of sequences.
        self.standard: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return how far each sequence of x [B, T, h] is above the threshold to run, [B, 1]."""
        return self.score(x) - self.threshold

    def score(self, x: Tensor) -> Tensor:
        """Score each sequence of x [B, T, h]: [B, 1]."""
        pooled = x.mean(1).to(self.weight.dtype)
        if self.standard is not None:
            mean, spread = self.standard
            pooled = (pooled - mean) / spread
        return linear(pooled, self.weight)

    def standardise(self, states: Tensor) -> None:
        """Score states relative to the mean and spread of `states` [n, h] until `unstandardise`.

        The scores of these states then have a spread of 1. Otherwise the large components that all
        states share would move all scores at once in training, by more than the scores differ.
        """
        free = min(1, len(states) - 1)  # one sequence has no spread
        spread, mean = torch.std_mean(states, dim=0, correction=free)
        spread = spread.clamp(min=float(spread.max()) * _LEAST_SPREAD + _TINY)
        weight = self.weight.data * spread
        scores = (states @ self.weight.data.T).std(correction=free)
        self.weight.data = weight / scores.clamp(min=_TINY)
        self.standard = (mean, spread)

    def unstandardise(self) -> None:
        """Score raw states again; the order of the scores stays."""
        if self.standard is not None:
            self.weight.data = self.weight.data / self.standard[1]
            self.standard = None


class _Skippable(Counted):
    """A decoder layer that may be the identity."""

    router: _DepthRouter
    route: _Route
    place: LayerPlace
    outputs: int  # length of the layer's output tuple; 0 if it returns a tensor

    @property
    def forward_state(self) -> _Route:
        """The decisions of earlier layers: which layers are skipped."""
        return self.route

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run or skip the layer: [B, T, h] to [B, T, h]."""
        arguments = name_arguments(self, args, kwargs)
        index, mask = self.place.number, arguments.get("attention_mask")
        if static_step() is not None:
            return self._forward_static(hidden_states, arguments)
        cached = self.place.counted(compat.cache_in(arguments))
        tokens = hidden_states.shape[1]
        if index == 0:
            past = cached.seen if cached is not None else 0
            self.place.refuse_padding(mask, tokens, past)
            self.route.start(past=past)
        above = None
        if self.route.leave == "skip" or (
            self.route.leave == "early" and index not in self.route.skipped
        ):
            above = self._score(hidden_states)
        runs = index not in self.route.skipped
        self.tally.add(int(runs), 1)
        if above is not None and self.route.learns:
            return self._forward_gated(hidden_states, arguments, above, runs=runs)
        if not runs:
            if cached is not None:
                cached.seen += tokens
            return self._skip(hidden_states)
        if cached is not None:
            arguments["attention_mask"] = cached.mask_of(mask, tokens)
        return self._run(hidden_states, arguments)

    def _run(self, x: Tensor, arguments: dict[str, Any]) -> Any:
        """Run the layer, and note the length of its output tuple."""
        output = super().forward(x, **arguments)  # type: ignore[misc]
        self.outputs = len(output) if isinstance(output, tuple) else 0
        return output

    def _skip(self, x: Tensor) -> Any:
        """Return the input in the form of the layer's output."""
        return (x, *[None] * (self.outputs - 1)) if self.outputs else x

    def _forward_static(self, x: Tensor, arguments: dict[str, Any]) -> Any:
        """Run the layer in a static step, where the host decides nothing.

        With "lower" the number of tokens alone decides whether it runs. Otherwise it always runs,
        and its output is dropped where it is skipped.
        """
        step, index = static_step(), self.place.number
        assert step is not None
        if self.route.leave == "lower":
            count = removed_layers(self.route.num_layers, self.route.sparsity)
            runs = step.prompt or not 1 <= index <= count
            self.tally.add(int(runs), 1)
            return self._run(x, arguments) if runs else self._skip(x)
        ran = self.route.held(step)[index]
        self.tally.add(ran.clone(), 1)
        self.router(x)
        layer = compat.cache_in(arguments).layers[self.place.cached]
        shown, mask = layer.show(x.shape[1], ran=ran), arguments.get("attention_mask")
        if mask is not None and not step.prompt:
            hidden = False if mask.dtype == torch.bool else float("-inf")
            arguments["attention_mask"] = mask.masked_fill(~shown, hidden)
        return with_first(self._run(x, arguments), lambda y: torch.where(ran > 0, y, x))

    def _score(self, x: Tensor) -> Tensor:
        """Return the router's scores of x [B, T, h]; a trained router decides by their mean.

        Random decisions were made in `start`. Those of a trained router are made here, and
        synchronise the device.
        """
        above = self.router(x)
        if self.route.is_trained:
            above = above.mean()
            self.route.decide(self.place.number, wanted=bool(above >= 0))
        return above

    def _forward_gated(
        self, x: Tensor, arguments: dict[str, Any], above: Tensor, *, runs: bool
    ) -> Any:
        """Return, in training, the layer or the identity, with the gradient of a mix of both."""
        gate = straight_through(above) - (0 if runs else 1)
        output = super().forward(x, **arguments)  # type: ignore[misc]
        return with_first(output, lambda y: x + gate.to(x.dtype) * (y - x))


class _DepthLearner:
    """The trainer of the routers of layers.

    They are fitted first: how often a layer is skipped depends on what that costs in loss, and for
    which sequences on how much the layer changes a token.
    """

    how = (
        "routers of layers trained with the adapters: a layer is skipped or not, with the gradient "
        "of the sigmoid of its score (straight-through, arXiv 1308.3432); int(n·s) layers of each "
        "forward are skipped, each the more often the less the loss rises without it"
    )

    def __init__(self, model: Any, layers: list[Any], route: _Route) -> None:
        self.model, self.route = model, route
        self.sites = [
            Site(kind="layer", layer=layer, router=layer.router, sublayers=[layer])
            for layer in layers
        ]

    def begin(self, calibration: Calibration) -> None:
        """Fit the routers, and let them decide from now on."""
        sparsity, self.route.sparsity = self.route.sparsity, 0.0
        costs = costs_of_layers(self.model, calibration)
        fit_routers(self.model, self.sites, calibration, sparsity=sparsity, costs=costs)
        self._round_shares(removed_layers(len(self.sites), sparsity), len(calibration.batches))
        self.route.sparsity, self.route.is_trained = sparsity, True
        self._set_thresholds(calibration)
        read = read_at_routers(self.model, self.sites, calibration, lambda _router, x: x.mean(1))
        for site, states in zip(self.sites, read, strict=True):
            cast_to_float32(site.router)
            site.router.standardise(states)
        self._set_thresholds(calibration)
        self.route.learns = True

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the weight [1, h] of each router."""
        return router_weights(self.sites)

    def finish(self, calibration: Calibration) -> None:
        """Set the thresholds by the sequences of the text, with the trained weights."""
        for site in self.sites:
            site.router.unstandardise()
            restore_dtype(site.router)
        self.route.learns = False
        self._set_thresholds(calibration)

    def _round_shares(self, count: int, sequences: int) -> None:
        """Round each layer's share to a multiple of 1/`sequences`, and keep their sum at `count`.

        `count` layers are then skipped on average. The largest remainders are rounded up.
        """
        exact = [site.router.sparsity * sequences for site in self.sites]
        up = sorted(range(len(exact)), key=lambda i: exact[i] % 1, reverse=True)
        more = set(up[: max(0, count * sequences - sum(map(int, exact)))])
        for i, site in enumerate(self.sites):
            site.router.sparsity = (int(exact[i]) + (i in more)) / sequences
        self.route.may_skip = [i for i, s in enumerate(self.sites) if s.router.sparsity]

    def _set_thresholds(self, calibration: Calibration) -> None:
        """Set the thresholds by the scores with all layers running, then with layers skipped."""
        sparsity = self.route.sparsity
        for self.route.sparsity in (0.0, sparsity):
            pooled = read_at_routers(self.model, self.sites, calibration, _DepthRouter.score)
            for site, scores in zip(self.sites, pooled, strict=True):
                site.router.threshold = quantile(scores.flatten(), site.router.sparsity)

    def record(self) -> RouterTraining:
        """Return the share of sequences for which each layer runs."""
        shares = [round(1 - site.router.sparsity, 4) for site in self.sites]
        return RouterTraining(
            unit="layers", trained=len(self.sites), kept_by_layer={"layer": shares}
        )
