"""How tokens fall among experts: arithmetic by hand, and a simulation as the second witness."""

from __future__ import annotations

import random

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import (
    Routing,
    expected_maximum,
    expert_load,
    fullest_expert,
    fullest_rank,
    token_shares,
    zipf_weights,
)


def zipf(exponent: float) -> Routing:
    return Routing(source="Zipf", phases={}, exponent=exponent)


def counted(*layers: tuple[float, ...]) -> Routing:
    return Routing(source="counts", phases={"decode": layers})


def drawn(shares: tuple[float, ...], rng: random.Random) -> list[int]:
    """Draw the k experts of one token by systematic sampling in a random order.

    Each expert is drawn with its share.
    """
    order = list(range(len(shares)))
    rng.shuffle(order)
    at, chosen, point = 0.0, [], rng.random()
    for expert in order:
        at += shares[expert]
        while point < at:
            chosen.append(expert)
            point += 1
    return chosen


def simulated(shares: tuple[float, ...], tokens: int, *, ranks: int) -> tuple[float, ...]:
    """Means over 300 simulated forwards: distinct, fullest, fullest rank over mean."""
    rng, sums = random.Random(0), [0.0, 0.0, 0.0]
    each = len(shares) // ranks
    for _ in range(300):
        counts = [0] * len(shares)
        for _ in range(tokens):
            for expert in drawn(shares, rng):
                counts[expert] += 1
        held = [sum(counts[i * each : (i + 1) * each]) for i in range(ranks)]
        sums[0] += sum(count > 0 for count in counts)
        sums[1] += max(counts)
        sums[2] += max(held) * ranks / sum(held)
    return tuple(total / 300 for total in sums)


def test_uniform_by_hand() -> None:
    """Each of 64 tokens with 8 of 128 experts misses an expert with 15/16.

    So 128 (1 − (15/16)^64) = 125.9 get one; 8 of 96 leave 96 (1 − (11/12)^64) = 95.6.
    """
    for experts, missed in ((128, 15 / 16), (96, 11 / 12)):
        load = expert_load(None, "decode", experts=experts, per_token=8, tokens=64)
        assert load.distinct == pytest.approx(experts * (1 - missed**64))
        assert load.rows == pytest.approx(64 * 8 / load.distinct)
    single = expert_load(None, "decode", experts=128, per_token=8, tokens=1)
    assert (single.distinct, single.rows) == pytest.approx((8, 1))
    # Half of the tokens are routed past the layer: each misses an expert with 31/32.
    half = expert_load(None, "decode", experts=128, per_token=8, tokens=64, share=0.5)
    assert half.distinct == pytest.approx(128 * (1 - (31 / 32) ** 64))


def test_counts_by_hand() -> None:
    """Of 8 experts with k = 1 one takes half of the tokens and the others 1/14 each.

    Of two tokens (1 − 1/4) + 7 (1 − (13/14)²) = 1.714 experts get one.
    """
    routing = counted((7, 1, 1, 1, 1, 1, 1, 1))
    assert token_shares(routing, "decode", 8, 1) == (pytest.approx((0.5, *[1 / 14] * 7)),)
    load = expert_load(routing, "decode", experts=8, per_token=1, tokens=2)
    assert load.distinct == pytest.approx(0.75 + 7 * (1 - (13 / 14) ** 2))
    # The least chosen goes, and its tokens go to the others in their shares.
    assert token_shares(routing, "decode", 4, 1) == (pytest.approx((0.7, 0.1, 0.1, 0.1)),)
    # No token goes to an expert twice: the first is always taken, the rest share the other place.
    assert token_shares(routing, "prefill", 8, 2) == (pytest.approx((1.0, *[1 / 7] * 7)),)
    with pytest.raises(PrunescopeError, match="counts 8 experts"):
        token_shares(routing, "decode", 16, 1)


def test_layers_are_averaged() -> None:
    both = counted((1, 1), (1, 0))
    assert expert_load(both, "decode", experts=2, per_token=1, tokens=1000).distinct == 1.5


def test_zipf() -> None:
    assert zipf_weights(3, 1) == (1, 1 / 2, 1 / 3)
    sizes = {"experts": 64, "per_token": 8, "tokens": 9}
    same = expert_load(zipf(0), "decode", **sizes)
    assert same.distinct == pytest.approx(expert_load(None, "decode", **sizes).distinct)
    skewed = expert_load(zipf(0.5), "decode", **sizes)
    assert skewed.distinct < same.distinct
    assert skewed.spread > same.spread
    assert fullest_expert(zipf(0.5), "decode", **sizes) > fullest_expert(None, "decode", **sizes)


def test_the_largest_of_some_counts() -> None:
    """Small counts are computed by hand, and large ones come near their mean.

    Of two coins the mean number of heads of the larger is 3/4; two dice of n draws and chance 1
    show n.
    """
    assert expected_maximum([(1, 0.5, 2)]) == pytest.approx(0.75)
    assert expected_maximum([(5, 1.0, 2)]) == pytest.approx(5, abs=0.01)
    assert expected_maximum([(10_000, 0.5, 1)]) == pytest.approx(5_000, rel=1e-3)
    assert expected_maximum([]) == 0


@pytest.mark.parametrize(
    ("experts", "per_token", "exponent", "tokens"),
    [(128, 8, 0.0, 4), (128, 8, 0.5, 32), (64, 8, 1.0, 16), (8, 2, 0.0, 64), (16, 4, 0.5, 1)],
)
def test_a_simulation_agrees(experts: int, per_token: int, exponent: float, tokens: int) -> None:
    routing = zipf(exponent)
    (shares,) = token_shares(routing, "decode", experts, per_token)
    assert sum(shares) == pytest.approx(per_token)
    sizes = {"experts": experts, "per_token": per_token, "tokens": tokens}
    distinct, fullest, rank = simulated(shares, tokens, ranks=4)
    load = expert_load(routing, "decode", **sizes)
    assert load.distinct == pytest.approx(distinct, rel=0.02)
    # A token takes k different experts, so that counts are a little more even than independent
    # ones.
    assert fullest_expert(routing, "decode", **sizes) == pytest.approx(fullest, rel=0.06)
    in_order = counted(zipf_weights(experts, exponent))
    assert fullest_rank(in_order, "decode", **sizes, ranks=4) == pytest.approx(rank, rel=0.06)


def test_experts_of_a_law_lie_in_no_order_on_devices() -> None:
    """The mean over 2,000 shuffles is the witness; those of counts lie as the counts do."""
    sizes = {"experts": 40, "per_token": 8, "tokens": 1e6, "ranks": 8}
    (shares,) = token_shares(zipf(0.8), "decode", 40, 8)
    in_order = fullest_rank(counted(zipf_weights(40, 0.8)), "decode", **sizes)
    assert in_order == pytest.approx(sum(shares[:5]), rel=0.01)
    rng, total = random.Random(7), 0.0
    for _ in range(2000):
        layout = rng.sample(shares, 40)
        total += max(sum(layout[i : i + 5]) for i in range(0, 40, 5))
    fullest = fullest_rank(zipf(0.8), "decode", **sizes)
    assert fullest == pytest.approx(total / 2000, rel=0.06)
    assert fullest < 0.8 * in_order
    assert fullest == fullest_rank(zipf(0.8), "decode", **sizes)  # the same in every process
    assert fullest_rank(zipf(0.0), "decode", **sizes) == pytest.approx(1, rel=0.01)


def grouped(experts: int, per_token: int, groups: int, opened: int, tokens: int) -> float:
    """Simulate 300 forwards and return the mean of distinct experts.

    A token chooses groups, then k of the experts in them, all as likely.
    """
    rng, size, total = random.Random(1), experts // groups, 0
    for _ in range(300):
        seen: set[int] = set()
        for _ in range(tokens):
            chosen = rng.sample(range(groups), opened)
            seen.update(rng.sample([g * size + i for g in chosen for i in range(size)], per_token))
        total += len(seen)
    return total / 300


@pytest.mark.parametrize("tokens", [1, 4, 64])
def test_groups_are_read_as_often_as_without_them(tokens: int) -> None:
    """In DeepSeek-V3 a token takes an expert with 4/8 · 8/128 = 8/256, and tokens are independent.

    It goes to 8 of 256 experts in 4 of 8 groups. So 256 (1 − (31/32)^T) get one, with groups or
    without; only how much two experts of one token have to do with one another differs.
    """
    load = expert_load(None, "decode", experts=256, per_token=8, tokens=tokens)
    assert load.distinct == pytest.approx(256 * (1 - (31 / 32) ** tokens))
    assert load.distinct == pytest.approx(grouped(256, 8, 8, 4, tokens), rel=0.02)
