"""Layers and roles that one side takes from the other, and inputs that both sides solve for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prunescope.analysis.comparison.placed_pair import place_pair
from prunescope.analysis.comparison.solved_inputs import (
    leading_sizes,
    solve_inputs,
    unsolved_inputs,
)
from prunescope.analysis.kernels.assignment import (
    SOURCES,
    RoleEvidence,
    SideRows,
    resolve,
)
from prunescope.analysis.kernels.frame import Kernels, ModuleRoles
from prunescope.analysis.ledger.gemm_calls import collect_gemm_calls
from prunescope.analysis.ledger.gemms import pair_calls
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.pair_comparison import INPUTS, Difference
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.wording.comparison import difference_text
from prunescope.analysis.wording.sentence import sentence
from tests.records import flash_attention, kernel_row, kernels_of, product

NAMES = (("q", 64, 64), ("up", 96, 64), ("down", 64, 96))
BY_ORDER = ModuleRoles("order")


def layers_of(count: int, *, named: bool = True) -> list[dict[str, object]]:
    return [
        kernel_row(layer if named else None, role if named else "unknown", product(n, k))
        for layer in range(count) for role, n, k in NAMES
    ]  # fmt: skip


def placed(kernels: Kernels) -> list[tuple[int | None, str]]:
    return kernels.frame.select("layer", "role").rows()


def sources(kernels: Kernels) -> set[str]:
    return {*kernels.frame["placed_by"]}


def test_the_named_side_gives_its_layers_and_roles() -> None:
    """Of three layers the middle MLP is gone; what is left has the places of its partners."""
    bare = layers_of(3, named=False)
    named = kernels_of(*layers_of(3), modules=BY_ORDER)
    dense, pruned = place_pair(named, kernels_of(*bare[:4], *bare[6:]))
    assert dense is named
    assert placed(pruned) == [
        *((0, role) for role in ("q", "up", "down")), (1, "q"),
        *((2, role) for role in ("q", "up", "down")),
    ]  # fmt: skip
    assert sources(pruned) == {"partner"}
    assert {*pruned.frame["confidence"]} == {1.0}  # that of the order that named equal products


def test_parts_that_repeat_are_layers_where_neither_side_names_any() -> None:
    dense, pruned = place_pair(*(kernels_of(*layers_of(n, named=False)) for n in (4, 3)))
    assert [layer for layer, _ in placed(dense)] == [i for i in range(4) for _ in NAMES]
    assert [layer for layer, _ in placed(pruned)] == [i for i in range(3) for _ in NAMES]
    assert sources(dense) == {"repeats"}


def renamed(role: str) -> list[dict[str, object]]:
    """One layer whose up has another role, and a product that only this side has."""
    rows = [{**row, "role": role if row["role"] == "up" else row["role"]} for row in layers_of(1)]
    return [*rows, kernel_row(0, "unknown", product(40, 40))]


KEPT = "products have another role on the other side, by order and shape: gate or up; each side"
TAKEN = "the order of kernels and modules give 1 kernel two roles, of which the second holds: gate"


@pytest.mark.parametrize(
    ("source", "role", "says"), [("modules", "gate", KEPT), ("order", "up", TAKEN)]
)
def test_of_two_roles_of_a_product_the_more_trusted_source_holds(
    source: str, role: str, says: str
) -> None:
    """Modules of both sides: each keeps its own. The order of one gives way to the other's."""
    dense = kernels_of(*layers_of(1), modules=ModuleRoles("modules"))
    _, pruned = place_pair(dense, kernels_of(*renamed("gate"), modules=ModuleRoles(source)))
    assert placed(pruned)[1] == (0, role)
    (said,) = (notice for notice in pruned.notes if notice.kind == "roles-disagree")
    assert said.numbers["count"] == 1 and says in sentence(said)


def evidence(
    source: str, *roles: str, says: tuple[int, ...], confidence: float = 1.0
) -> RoleEvidence:
    layer = np.array([0 if role != "unknown" else -1 for role in roles])
    mask = np.isin(np.arange(len(roles)), says)
    return RoleEvidence(source, layer, np.array(roles, object), mask, confidence)


def test_the_most_trusted_source_that_speaks_of_a_row_holds() -> None:
    """A config knows rows 0 and 1 and says that 1 has no role; the order knows all."""
    order = evidence("order", "q", "k", "v", says=(0, 1, 2))
    config = evidence("config", "qkv", "unknown", "unknown", says=(0, 1))
    (assigned,) = resolve([SideRows([config, order])])
    assert assigned.role.tolist() == ["qkv", "unknown", "v"]
    assert assigned.layer.tolist() == [0, -1, 0]
    assert [SOURCES[i] for i in assigned.source] == ["config", "config", "order"]
    assert assigned.disagreements == {("order", "config", "q", "qkv"): 1}


def test_a_source_that_explains_less_than_half_is_about_something_else() -> None:
    order = evidence("order", "q", says=(0,))
    of_another = evidence("eager pass", "up", says=(0,), confidence=0.4)
    (assigned,) = resolve([SideRows([order, of_another])])
    assert assigned.role.tolist() == ["q"]
    assert not assigned.disagreements


def inputs(batch: int, tokens: int, *, heads: int = 8, channels: int = 96) -> Kernels:
    attention = flash_attention(heads=batch * heads, tokens=tokens, keys=tokens)
    rows = batch * tokens
    linears = [product(64, 64, m=rows), product(channels, 64, m=rows)]
    norm = OpCall("aten::native_layer_norm", ((batch, tokens, 64), (64,)), ("float", "float"))
    return kernels_of(
        {**kernel_row(0, "mlp_norm"), "of": norm}, kernel_row(0, "q", linears[0]),
        {**kernel_row(0, "attention", attention), "kind": "attention", "class": "attention"},
        kernel_row(0, "up", linears[1]),
    )  # fmt: skip


def solved(dense: Kernels, pruned: Kernels) -> Difference | None:
    pairs = pair_calls(collect_gemm_calls(dense), collect_gemm_calls(pruned))
    return solve_inputs(pairs, (), (leading_sizes(dense), leading_sizes(pruned)))


@pytest.mark.parametrize(("dense", "pruned"), [((2, 256), (4, 128)), ((4, 128), (8, 64))])
def test_as_many_tokens_in_another_batch_are_other_inputs(
    dense: tuple[int, int], pruned: tuple[int, int]
) -> None:
    """512 rows on both sides; heads of 8 in every sequence, so that B·heads tells the batch."""
    difference = solved(inputs(*dense), inputs(*pruned))
    texts = [f"{batch} × {tokens} tokens" for batch, tokens in (dense, pruned)]
    assert difference == Difference(INPUTS, *texts, hides_pruning=True)
    assert difference_text(difference) == f"other inputs: {texts[1]}, the dense side {texts[0]}"


def test_fewer_heads_are_no_smaller_batch() -> None:
    assert solved(inputs(4, 128), inputs(4, 128, heads=4)) is None


def test_blocks_of_keys_are_no_shorter_sequences() -> None:
    """Four blocks of 64 keys of 256: B·heads and S look like a batch of eight."""
    dense = inputs(2, 256)
    blocks = flash_attention(heads=64, tokens=64, keys=64)
    norm = OpCall("aten::native_layer_norm", ((2, 256, 64), (64,)), ("float", "float"))
    pruned = kernels_of(
        {**kernel_row(0, "mlp_norm"), "of": norm}, kernel_row(0, "q", product(64, 64, m=512)),
        {**kernel_row(0, "attention", blocks), "kind": "attention", "class": "attention"},
    )  # fmt: skip
    assert solved(dense, pruned) is None


def attending(tokens: int, keys: int, heads: int = 8) -> Kernels:
    batch = 512 // tokens
    attention = flash_attention(heads=batch * heads, tokens=tokens, keys=keys)
    norm = OpCall("aten::native_layer_norm", ((batch, tokens, 64), (64,)), ("float", "float"))
    return kernels_of(
        {**kernel_row(0, "mlp_norm"), "of": norm}, kernel_row(0, "q", product(64, 64, m=512)),
        {**kernel_row(0, "attention", attention), "kind": "attention", "class": "attention"},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("dense", "pruned", "unknown"),
    [
        (attending(128, 77), attending(128, 77, heads=4), ["dense", "pruned"]),  # of an encoder
        (attending(128, 77), attending(128, 77), []),  # nothing differs
        (attending(128, 128), attending(128, 128, heads=4), []),
        (attending(1, 200), attending(1, 200, heads=4), []),  # one token: as many rows as sequences
    ],
)
def test_inputs_that_nothing_gives_are_said_to_be_unknown(
    dense: Kernels, pruned: Kernels, unknown: list[str]
) -> None:
    pairs = pair_calls(collect_gemm_calls(dense), collect_gemm_calls(pruned))
    notices = unsolved_inputs(pairs, (dense, pruned))
    assert [notice.numbers["side"] for notice in notices] == unknown


def test_a_batch_is_solved_for_where_channels_moved_too() -> None:
    difference = solved(inputs(4, 128), inputs(2, 128, channels=48))
    assert difference == Difference(INPUTS, "4 × 128 tokens", "2 × 128 tokens", hides_pruning=True)


Real = Callable[[str], Path]


def compared(real_trace: Real, pruned: str, dense: str) -> Phase:
    paths = [real_trace(f"../strangers3/{name}.json.gz") for name in (pruned, dense)]
    (phase,) = analyze(paths[0], baseline=paths[1]).report.phases.values()
    return phase


def test_attention_left_out_of_two_of_six_layers(real_trace: Real) -> None:
    """FLOPs fall by 10.7 %: 8 of 24 products of 256 by 256 and two attentions are gone."""
    phase = compared(real_trace, "S1_pruned", "S_dense")
    assert phase.family is not None and phase.family.id == "static-m"
    assert phase.family.evidence[0] == "2 of 6 attention sublayers removed: 2, 3"
    assert next(row.ns for row in phase.ledger or [] if row.row == "added_work") == 0
    assert phase.ladder is not None
    assert phase.ladder.flop == pytest.approx(1 / 0.893, abs=0.002)


def test_a_residual_width_that_fell_with_twelve_products_added(real_trace: Real) -> None:
    phase = compared(real_trace, "S3_pruned", "S_dense")
    assert phase.family is not None and phase.family.id == "static-nk-cross"
    assert "12 residual maps were added" in phase.family.evidence[0]
    assert sum(gemm.count for gemm in phase.gemms if gemm.axis == "added") == 12
