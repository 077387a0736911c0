"""The choice of what each layer keeps, against all combinations, a MILP and uniform choices."""

import importlib
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.taxonomy.allocations.allocation import Allocation, LayerOption, undominated
from prunescope.taxonomy.allocations.allocation_candidates import (
    LayerTable,
    candidates,
    changed_layer,
    layer_ranks,
    uniform_choices,
)
from prunescope.taxonomy.shape import ModelShape

WIDTHS = (352, 256, 192, 128)


def layer(costs: tuple[float, ...], losses: tuple[float, ...]) -> list[LayerOption]:
    return [
        LayerOption(cost=cost, loss=loss, channels=width)
        for width, cost, loss in zip(WIDTHS, costs, losses, strict=True)
    ]


def brute_force(options: list[list[LayerOption]], cost: float) -> float:
    """Return the least loss of all combinations within a cost that keep a layer."""
    fitting = (
        sum(option.loss for option in chosen)
        for chosen in itertools.product(*options)
        if sum(option.cost for option in chosen) <= cost
        and not all(option.dropped for option in chosen)
    )
    return min(fitting, default=math.inf)


def test_the_narrower_of_two_unequal_layers() -> None:
    """Both save 4 by 256 channels; the second loses less."""
    options = [layer((10, 6, 5, 4), (0, 3, 4, 5)), layer((10, 6, 5, 4), (0, 1, 4, 5))]
    chosen = Allocation(options, unit=1).best(16)
    assert chosen is not None
    assert [option.channels for option in chosen] == [352, 256]


def test_as_brute_force_on_eight_layers_with_four_widths() -> None:
    """4^8 = 65,536 combinations; at five targets between the narrowest and the dense model."""
    options = [
        layer(
            (40, 31 - n % 3, 24, 15), (0, 0.01 * (n + 1) ** 2 % 0.07, 0.1 + 0.02 * n, 0.4 / (n + 1))
        )
        for n in range(8)
    ]
    allocation = Allocation(options, unit=1)
    for cost in (120, 150, 200, 250, 310):
        chosen = allocation.best(cost)
        assert chosen is not None
        assert sum(option.cost for option in chosen) <= cost
        assert sum(option.loss for option in chosen) == pytest.approx(brute_force(options, cost))
    assert allocation.best(119) is None


counts = st.integers(0, 12)
choices = st.lists(
    st.builds(
        LayerOption,
        cost=st.integers(0, 12).map(float),
        loss=st.integers(-2, 20).map(float),
        channels=st.integers(1, 9),
    ),
    min_size=1,
    max_size=4,
)
dropped = st.builds(
    LayerOption, cost=st.just(0.0), loss=st.integers(0, 20).map(float), dropped=st.just(True)
)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.tuples(choices, st.lists(dropped, max_size=1)), min_size=1, max_size=4),
    st.integers(0, 48),
)
def test_as_brute_force_with_layers_that_go(
    layers: list[tuple[list[LayerOption], list[LayerOption]]], cost: int
) -> None:
    options = [[*kept, *lost] for kept, lost in layers]
    chosen = Allocation(options, unit=1).best(cost)
    if chosen is None:
        assert brute_force(options, cost) == math.inf
        return
    assert not all(option.dropped for option in chosen)
    assert sum(option.cost for option in chosen) <= cost
    assert sum(option.loss for option in chosen) == brute_force(options, cost)


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0, 3)), min_size=1, max_size=4),
             min_size=1, max_size=6),
    st.floats(0.2, 1),
)  # fmt: skip
def test_rounding_never_breaks_the_target(
    pairs: list[list[tuple[float, float]]], share: float
) -> None:
    options = [[LayerOption(cost=c, loss=x, channels=1) for c, x in layer] for layer in pairs]
    target = share * sum(max(option.cost for option in layer) for layer in options)
    allocation = Allocation(options)
    chosen = allocation.best(target)
    if chosen is not None:
        assert sum(option.cost for option in chosen) <= target + 1e-6 * allocation.step * len(
            options
        )
    trades = allocation.frontier()
    assert [t.cost for t in trades] == sorted(t.cost for t in trades)
    assert [t.loss for t in trades] == sorted((t.loss for t in trades), reverse=True)


def test_a_width_that_costs_as_much_as_the_next_larger_one_goes() -> None:
    """320 and 256 channels are as many tiles: 320 stays."""
    steps = [(4, 0.0, 352), (3, 0.1, 320), (3, 0.2, 256), (1, 0.5, 128)]
    options = [(n, LayerOption(cost=n, loss=x, channels=w)) for n, x, w in steps]
    assert [option.channels for _, option in undominated(options)] == [128, 320, 352]


def test_the_same_optimum_as_a_mixed_integer_program() -> None:
    optimize = importlib.import_module("scipy.optimize")  # of the extra dev
    options = [
        layer((41.5, 30.2 + n, 22.9, 14.1), (0, 0.02 * (n % 4), 0.09 + 0.01 * n, 0.5 / (n + 1)))
        for n in range(12)
    ]
    flat = [option for one_layer in options for option in one_layer]
    once = [[float(i // 4 == n) for i in range(len(flat))] for n in range(12)]
    chosen = Allocation(options, unit=0.1).best(300.0)
    result = optimize.milp(
        c=[option.loss for option in flat],
        integrality=[1] * len(flat),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint([[option.cost for option in flat]], ub=300.0),
            optimize.LinearConstraint(once, lb=1, ub=1),
        ],
    )
    assert chosen is not None
    assert sum(option.loss for option in chosen) == pytest.approx(result.fun)


def test_low_ranks_by_hand() -> None:
    """Half of the numbers of a matrix give a rank of 0.5·N·K/(N+K), rounded up to 16s.

    q and o are [128, 128], k and v [64, 128], gate, up and down 352 by 128. The ranks are
    0.5·128·128/256 = 32, 0.5·64·128/192 = 21.3 and 0.5·352·128/480 = 46.9, which are cut off to 21
    and 46 before they are rounded up.
    """
    config = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 352,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 512,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    both = LayerOption(cost=0, loss=0, attention_lowrank=50, mlp_lowrank=50)
    attention = {"q": 32, "k": 32, "v": 32, "o": 32}
    assert layer_ranks(shape, 1, both) == attention | dict.fromkeys(("gate", "up", "down"), 48)
    changed = changed_layer(shape, 1, both)
    assert changed.layer(0).ranks == () and dict(changed.layer(1).ranks)["down"] == 48
    # A pair of rank r has r·(N + K) numbers.
    pairs = 2 * 32 * 256 + 2 * 32 * 192 + 3 * 48 * 480
    matrices = 2 * 128 * 128 + 2 * 64 * 128 + 3 * 352 * 128
    assert shape.parameters() - changed.parameters() == matrices - pairs
    fused = ModelShape.from_config({**config, "model_type": "phi3"})
    assert candidates(fused, 0, low_rank=True).attention_lowrank == ()


def test_never_worse_than_a_uniform_family_at_the_same_cost() -> None:
    """The budget is what each uniform choice costs, in whole units.

    Eight layers have 4 KV heads and 352 channels; the outer ones are more sensitive.
    """
    config = {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 352,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4,
        "vocab_size": 512,
    }  # fmt: skip
    shape = ModelShape.from_config(config)
    tables = []
    for number in range(shape.layers):
        sizes = candidates(shape, number, low_rank=True)
        worse = 1 + 3 * (number in (0, 7)) + number % 3
        tables.append(
            LayerTable(
                parts={
                    "kv_heads": {n: (-30.0 * (4 - n), 0.01 * worse * (4 - n)) for n in (1, 2, 3)},
                    "channels": {
                        n: (-float(352 - n), worse * 1e-6 * (352 - n) ** 2) for n in sizes.channels
                    },
                    "attention_lowrank": {
                        n: (100.0 - n, 0.1 * worse) for n in sizes.attention_lowrank
                    },
                    "mlp_lowrank": {n: (2.0 * n - 240, 0.003 * worse) for n in sizes.mlp_lowrank},
                },
                dropped=(-500.0, 0.2 * worse),
            )
        )
    allocation = Allocation([table.options() for table in tables], unit=1)
    seen = {}
    for uniform in uniform_choices(shape, tables):
        chosen = allocation.best(uniform.cost)
        assert chosen is not None
        assert sum(option.cost for option in chosen) <= uniform.cost
        assert sum(option.loss for option in chosen) <= uniform.loss + 1e-12
        seen[uniform.family] = uniform.loss - sum(option.loss for option in chosen)
    static = {"static-nk", "static-nk-heads", "static-nk-mlp", "static-m", "static-k-lowrank"}
    assert set(seen) == static
    assert max(seen.values()) > 0.1
