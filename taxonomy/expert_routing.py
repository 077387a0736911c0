"""How tokens fall among the experts of a layer: how many experts get one, and how many the fullest.

In: how often each expert is chosen (counts of a run, or Zipf's law), experts per token k, and
tokens T. Out: expectations, means over the layers. A Monte Carlo simulation is the second witness
(tests).

Limitations: tokens are taken to choose independently; those of one text are alike, so that fewer
experts get one. Where a token first chooses groups of experts, it takes an expert as often as
without them: as many get a token, and only the spread over devices differs.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache

from msgspec import Struct, field

from prunescope.taxonomy.errors import PrunescopeError

Shares = tuple[float, ...]  # P(a token takes the expert), one entry per expert: their sum is k

# From this many picks per expert in the mean, counts are taken as shares. An expert that is chosen
# half as often as the mean then stays uncounted in 2 % of samples (e^-4), and a count of 8 is right
# to 35 %.
ENOUGH_PICKS = 8

# From this mean on, a binomial count is taken as normal.
_NORMAL_FROM = 30.0
_POINTS = 128  # of the sum over a maximum's tail
_DEVIATIONS = 8.0  # beyond which a tail is nothing
_LAYOUTS = 16  # layers, each with an order of its own, over which experts of a law are averaged


# It is compared by identity, because workloads are keys of caches, and this may hold 100 layers of
# 512 experts.
class Routing(Struct, frozen=True, eq=False, kw_only=True):
    """How often each expert is chosen.

    `phases`: counts of tokens, {"decode": a list per layer with experts}; without any it is Zipf's
    law: the expert of rank r has the weight r^-`exponent`. `picks`: how often experts were chosen
    per layer, by phase, if that was counted; in the phases of `few` too rarely, so that weights are
    estimates. `random_ids`: the tokens were of no text.
    """

    source: str
    phases: Mapping[str, tuple[tuple[float, ...], ...]]
    exponent: float = 0.0
    picks: Mapping[str, float] = field(default_factory=dict)
    few: frozenset[str] = frozenset()
    random_ids: bool = False

    def weights(self, phase: str, experts: int) -> tuple[tuple[float, ...], ...]:
        """Return the weights by layer of a phase or, if it has none, of another phase."""
        if not self.phases:
            return (zipf_weights(experts, self.exponent),)
        return self.phases[self._counted_phase(phase)]

    def _counted_phase(self, phase: str) -> str:
        return phase if self.phases.get(phase) else next(iter(self.phases), phase)

    def is_of_a_text(self, phase: str) -> bool:
        """Return whether the weights show how a text chooses.

        Few picks and random token ids do not.
        """
        return self._counted_phase(phase) not in self.few and not self.random_ids

    def caveats(self, phase: str) -> Iterator[str]:
        """Yield sentences on why experts may be chosen in `phase` in another way than counted."""
        counted = self._counted_phase(phase)
        if counted != phase:
            yield (
                f"{self.source} counts no experts in {phase}: they are taken as chosen as often as "
                f"in {counted}"
            )
        if counted in self.few:
            picks = f"{self.picks[counted]:,.0f} picks a layer in {counted}"
            yield (
                f"{self.source} counts {picks}, fewer than {ENOUGH_PICKS} an expert: an expert "
                "that was not picked may well be chosen, so that the shares are estimates, (picks "
                "+ 1) ÷ (all picks + experts), and the range also counts an uneven router; give "
                "counts of more tokens"
            )
        if self.random_ids:
            yield (
                f"{self.source} counts the experts of random token ids: your text chooses other "
                "ones, so that the range also counts an uneven router; trace with --text"
            )


def counted(phases: Mapping[str, Mapping[str, Sequence[float]]], *, source: str) -> Routing | None:
    """Make a routing of counts by phase and layer, as run.json holds them; None for no counts."""
    known = {
        phase: tuple(
            tuple(map(float, layers[layer])) for layer in sorted(layers, key=int) if layers[layer]
        )
        for phase, layers in phases.items()
    }
    known = {phase: layers for phase, layers in known.items() if layers}
    return Routing(source=source, phases=known) if known else None


def zipf_weights(experts: int, exponent: float) -> tuple[float, ...]:
    """Return the weights r^-exponent of ranks 1 to E.

    At 0 they are uniform; at 0.5 the first of 128 has 6 times the mean.
    """
    return tuple(rank**-exponent for rank in range(1, experts + 1))


class ExpertLoad(Struct, frozen=True, kw_only=True):
    """The load of one layer: `distinct` experts get a token, and each of them `rows` in the mean.

    `spread` is the standard deviation of these rows.
    """

    distinct: float
    rows: float
    spread: float


@lru_cache(maxsize=1 << 14)
def expert_load(
    routing: Routing | None,
    phase: str,
    *,
    experts: int,
    per_token: int,
    tokens: float,
    share: float = 1.0,
) -> ExpertLoad:
    """Return the mean load of the experts of a layer.

    Args:
        routing: How often each expert is chosen; None: all as often.
        phase: The phase whose counts are taken.
        experts: E, the experts of a layer.
        per_token: k, the experts that a token goes to.
        tokens: T, the tokens of the forward.
        share: The share of the tokens that takes part.

    Raises:
        PrunescopeError: The routing has fewer experts than the model.
    """
    layers = token_shares(routing, phase, experts, per_token)
    loads = [_load_of_layer(shares, tokens, share) for shares in layers]
    return ExpertLoad(
        distinct=_mean(load.distinct for load in loads),
        rows=_mean(load.rows for load in loads),
        spread=_mean(load.spread**2 for load in loads) ** 0.5,
    )


@lru_cache(maxsize=1 << 10)
def fullest_expert(
    routing: Routing | None, phase: str, *, experts: int, per_token: int, tokens: float
) -> float:
    """Return the tokens of the expert of a layer that gets most: at least one, and at most all."""
    most = _mean(
        expected_maximum([(tokens, p, n) for p, n in Counter(shares).items()])
        for shares in token_shares(routing, phase, experts, per_token)
    )
    return min(max(most, 1.0), tokens) if tokens >= 1 else most


@lru_cache(maxsize=256)
def token_shares(
    routing: Routing | None, phase: str, experts: int, per_token: int
) -> tuple[Shares, ...]:
    """Return P(a token takes the expert) of each expert, by layer.

    If more experts were counted than there are now, those that were chosen most are left, in their
    order, and take the tokens of the others. A layer with fewer experts than other layers has
    counts of its own, and no part in those of `experts`.

    Raises:
        PrunescopeError: There are no experts, as an edited run may say of layers that have them.
    """
    if experts < 1:
        raise PrunescopeError("a layer of experts has none", hint="its run.json was edited")
    if routing is None:
        return ((per_token / experts,) * experts,)
    counted = routing.weights(phase, experts)
    enough = tuple(weights for weights in counted if len(weights) >= experts)
    return tuple(_shares(weights, experts, per_token) for weights in enough or counted)


def _shares(weights: Sequence[float], experts: int, per_token: int) -> Shares:
    """Turn the weights of a layer into probabilities for its `experts` most chosen experts."""
    if len(weights) < experts:
        raise PrunescopeError(
            f"the routing counts {len(weights)} experts in a layer, and the model has {experts}",
            hint="give --routing the counts of the dense model",
        )
    most = sorted(range(len(weights)), key=lambda i: -weights[i])[:experts]
    kept = [weights[i] for i in sorted(most)]
    total = sum(kept)
    if total <= 0:
        return (per_token / experts,) * experts
    return _capped([weight * per_token / total for weight in kept], per_token)


def _capped(shares: list[float], per_token: int) -> Shares:
    """Cap the shares at 1, as a token takes no expert twice: what is above goes to the others.

    The others get it in proportion to their shares.
    """
    while any(share > 1 + 1e-12 for share in shares):
        full = sum(share >= 1 for share in shares)
        below = sum(share for share in shares if share < 1)
        if not below:  # fewer experts are ever chosen than a token takes
            even = (per_token - full) / max(1, len(shares) - full)
            return tuple(1.0 if share >= 1 else even for share in shares)
        scale = (per_token - full) / below
        shares = [1.0 if share >= 1 else share * scale for share in shares]
    return tuple(shares)


def _load_of_layer(shares: Shares, tokens: float, share: float) -> ExpertLoad:
    """Return the load of one layer.

    An expert that a token takes with probability p gets none of T tokens with (1 − p)^T, else it
    gets Tp/(1 − (1 − p)^T) in the mean.
    """
    alike = [(p * share, n) for p, n in Counter(shares).items()]
    distinct = sum(n * (1 - (1 - p) ** tokens) for p, n in alike)
    if not distinct:
        return ExpertLoad(distinct=0.0, rows=0.0, spread=0.0)
    mean = sum(n * tokens * p for p, n in alike) / distinct
    square = sum(n * (tokens * p * (1 - p) + (tokens * p) ** 2) for p, n in alike) / distinct
    return ExpertLoad(distinct=distinct, rows=mean, spread=max(0.0, square - mean**2) ** 0.5)


@lru_cache(maxsize=1 << 10)
def fullest_rank(
    routing: Routing | None, phase: str, *, experts: int, per_token: int, tokens: float, ranks: int
) -> float:
    """Return the tokens of the fullest of `ranks` devices over their mean.

    The experts lie on devices in their order, as evenly as whole ones allow. Counts have that
    order; Zipf's law has none, so that its experts lie in `_LAYOUTS` random orders, the same ones
    each time.
    """
    layers = token_shares(routing, phase, experts, per_token)
    if routing is not None and not routing.phases:
        layers = _shuffle_experts(layers[0])
    return _mean(_fullest_rank(shares, tokens, ranks) for shares in layers)


def _shuffle_experts(shares: Shares) -> tuple[Shares, ...]:
    """Return the experts of some layers, each layer in a random order of its own.

    If all experts are alike, one layer is enough.
    """
    if len(set(shares)) == 1:
        return (shares,)
    rng = random.Random(0)
    return tuple(tuple(rng.sample(shares, len(shares))) for _ in range(_LAYOUTS))


def _fullest_rank(shares: Shares, tokens: float, ranks: int) -> float:
    """Return the load of the fullest device of one layer over the mean.

    Each of the k draws of a token hits a device with the share of the draws that it serves.
    """
    per_token = sum(shares)
    ends = [len(shares) * rank // ranks for rank in range(ranks + 1)]
    held = Counter(
        round(sum(shares[low:high]) / per_token, 12)
        for low, high in zip(ends[:-1], ends[1:], strict=True)
    )
    draws = tokens * per_token
    most = expected_maximum([(draws, share, count) for share, count in held.items()])
    return most * ranks / draws


def expected_maximum(counts: Iterable[tuple[float, float, int]]) -> float:
    """Return the mean of the largest of independent binomial counts.

    The counts are given as (draws n, chance p, how many of them). The mean is Σ over j ≥ 0 of 1 − Π
    P(count ≤ j).
    """
    known = [(n, min(p, 1.0), many) for n, p, many in counts if many and p > 0]
    if not known:
        return 0.0
    middles = [(n * p, (n * p * (1 - p)) ** 0.5) for n, p, _ in known]
    top = max(mean + _DEVIATIONS * (deviation + 1) for mean, deviation in middles)
    top = min(top, max(n for n, _, _ in known))
    first = max(0, math.floor(max(mean - _DEVIATIONS * deviation for mean, deviation in middles)))
    step = max(1, math.ceil((top - first) / _POINTS))
    total, cdfs = 0.0, [_distribution(n, p) for n, p, _ in known]
    for j in range(first, math.ceil(top) + 1, step):
        # The middle of the step stands for all of it.
        below = 1.0
        for (_, _, many), cdf in zip(known, cdfs, strict=True):
            below *= cdf(j + (step - 1) / 2) ** many
        total += step * (1 - below)
    return float(first + total)


def _distribution(draws: float, chance: float) -> Callable[[float], float]:
    """Return P(count ≤ x) of a binomial count: exact if its mean is small, else normal."""
    mean = draws * chance
    if mean >= _NORMAL_FROM or chance >= 1:
        deviation = max(1e-9, (mean * (1 - chance)) ** 0.5) * 2**0.5
        return lambda x: 0.5 * math.erfc((mean - x - 0.5) / deviation)
    odds = chance / (1 - chance)
    term = (1 - chance) ** draws
    cumulated = [term]
    for i in range(math.ceil(mean + _DEVIATIONS * (mean**0.5 + 1))):
        term *= max(0.0, draws - i) / (i + 1) * odds
        cumulated.append(cumulated[-1] + term)
    last = len(cumulated) - 1
    return lambda x: 1.0 if x > last else cumulated[int(x)]


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
