"""What compares, on kernels made by hand: fused and replaced kernels, other inputs, replays."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from msgspec.structs import replace

from prunescope.analysis.comparison.convolutions import Convolution
from prunescope.analysis.comparison.differences import (
    find_differences,
    find_other_model,
    other_widths,
)
from prunescope.analysis.comparison.equal_information import (
    ComparableSides,
    fuse_products,
    make_comparable,
)
from prunescope.analysis.comparison.more_calls import more_calls, unpacked_formats
from prunescope.analysis.comparison.other_inputs import (
    BATCH_SIZE,
    FORWARDS,
    batch_ratio,
    other_inputs,
)
from prunescope.analysis.comparison.placed_pair import place_pair
from prunescope.analysis.comparison.replacements import with_replacements
from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.kernels.frame import HostWork, Kernels, ModuleRoles
from prunescope.analysis.ledger.gemm_calls import collect_gemm_calls
from prunescope.analysis.ledger.gemms import Pair, pair_calls
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.schema.pair_comparison import FIRST_CALLS, Difference
from prunescope.analysis.wording.comparison import difference_text, not_comparable_text
from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.runs.run import PhaseRun
from tests.records import flash_attention, kernel_row, kernels_of, ledger_of, phase_of, product

US = 1_000
BY_ORDER, BY_MODULES = ModuleRoles("order"), ModuleRoles("modules")
Rows = list[dict[str, Any]]


def pairs_of(dense: Kernels, pruned: Kernels) -> list[Pair]:
    return pair_calls(collect_gemm_calls(dense), collect_gemm_calls(pruned))


# -- one GEMM in the place of several -----------------------------------------------------------


def fused(dense: Rows, pruned: Rows, modules: ModuleRoles) -> tuple[SidePhase, SidePhase]:
    sides = ComparableSides(
        phase_of(kernels_of(*dense, modules=modules)),
        phase_of(kernels_of(*pruned, modules=modules)),
    )
    return fuse_products(sides).both


def test_fused_and_narrower() -> None:
    """N of a fused gate and up is held against that of both: 2·96 became 2·48. Two GEMMs of 10 us
    in each of 3 layers are now one."""
    apart = [kernel_row(layer, role, product(96, 64), busy=10 * US)
             for layer in range(3) for role in ("gate", "up")]  # fmt: skip
    whole = [kernel_row(layer, "gate_up", product(96, 64), busy=10 * US) for layer in range(3)]
    dense, pruned = fused(apart, whole, BY_MODULES)
    pairs = pairs_of(dense.kernels, pruned.kernels)
    sizes = [(p.dense and p.dense.n, p.pruned and p.pruned.n, p.axis, p.dense and p.dense.busy)
             for p in pairs]  # fmt: skip
    assert sizes == [(192, 96, "N", 20 * US)] * 3


def test_several_calls_of_one_projection_are_not_one() -> None:
    """Three tokens in turn multiply other inputs with the same weight."""
    apart = [kernel_row(0, role, product(64, 64, m=1)) for _ in range(3) for role in "qkv"]
    whole = [kernel_row(0, "qkv", product(192, 64, m=1)) for _ in range(3)]
    dense, pruned = fused(apart, whole, BY_MODULES)
    pairs = pairs_of(dense.kernels, pruned.kernels)
    assert [(p.dense and p.dense.n, p.axis) for p in pairs] == [(192, "none")] * 3


@pytest.mark.parametrize("is_dense", [True, False])
def test_only_the_side_with_products_of_their_own_is_taken_for_fused(*, is_dense: bool) -> None:
    """By the order of kernels, where the other side has q, k and v in one already."""
    apart = [kernel_row(0, role, product(64, 64)) for role in "qkv"]
    whole = [kernel_row(0, "qkv", product(192, 64))]
    sides = fused(apart, whole, BY_ORDER) if is_dense else fused(whole, apart, BY_ORDER)
    parts = [side.kernels.modules.fused for side in sides]
    assert parts == ([{"qkv": 3}, {}] if is_dense else [{}, {"qkv": 3}])
    note = sentence(*sides[1].kernels.notes)
    assert "GEMMs of their own" in note


# -- kernels in the place of others -------------------------------------------------------------


def unknown(name: str, busy: int, **where: Any) -> dict[str, Any]:
    """A kernel of a library that no table knows."""
    columns = {"kind": "unknown", "class": "unknown", "op": f"mylib::{name}", "name": name}
    return {**columns, "role": "unknown", "busy": busy, **where}


ATTENTION = kernel_row(None, "attention", flash_attention(), busy=80 * US)
QUANTISE = {**kernel_row(None, "unknown", busy=5 * US), "name": "quantize_kernel"}


def in_a_row(*attention: dict[str, Any]) -> Rows:
    """Three times a GEMM, an attention and two GEMMs, without modules."""
    before, *after = (kernel_row(None, "unknown", product(n, 64), busy=100 * US)
                      for n in (4096, 2048, 1024))  # fmt: skip
    return [before, *attention, *after] * 3


def in_scopes(*attention: dict[str, Any]) -> Rows:
    """Three layers of a query projection and an attention, in their modules."""
    rows: Rows = []
    for layer in range(3):
        rows.append(kernel_row(layer, "q", product(64, 64), busy=100 * US))
        rows += [{**row, "layer": layer, "role": "attention"} for row in attention]
    return rows


def ledger_with_replacements(dense: Rows, pruned: Rows) -> dict[str, float]:
    sides = kernels_of(*dense), kernels_of(*pruned)
    return ledger_of(sides[0], with_replacements(sides[1], sides[0]))


def test_another_attention_replaces_the_old_one_by_its_place() -> None:
    """Three attentions of 80 us became three of 90 us, with 5 us of quantisation before each."""
    new = unknown("kernel_7", 90 * US)
    ledger = ledger_with_replacements(in_a_row(ATTENTION), in_a_row(QUANTISE, new))
    assert ledger["added_work"] == 3 * 5 * US
    assert ledger["kernel_efficiency"] == 3 * 10 * US
    assert ledger["promised"] == ledger["dense"]


def test_a_kernel_in_another_place_is_added_work() -> None:
    """Three kernels after the last GEMM replace no attention between GEMMs."""
    moved = [*in_a_row(), *[unknown("kernel_7", 90 * US)] * 3]
    assert ledger_with_replacements(in_a_row(ATTENTION), moved)["added_work"] == 3 * 90 * US


def test_another_attention_replaces_the_old_one_in_its_module() -> None:
    new = unknown("kernel_7", 90 * US)
    ledger = ledger_with_replacements(in_scopes(ATTENTION), in_scopes(new))
    assert (ledger["added_work"], ledger["kernel_efficiency"]) == (0, 3 * 10 * US)


def test_a_kernel_beside_the_work_of_its_module_is_added_work() -> None:
    """The attention is still there: what else runs in its module is new."""
    both = in_scopes(ATTENTION, unknown("kernel_7", 9 * US))
    assert ledger_with_replacements(in_scopes(ATTENTION), both)["added_work"] == 3 * 9 * US


def test_a_replaced_product_outside_of_all_layers_is_found_by_its_role() -> None:
    head = kernel_row(None, "lm_head", product(512, 64), busy=10 * US)
    mystery = unknown("kernel_9", 9 * US, layer=None, role="lm_head")
    replaced = with_replacements(kernels_of(mystery), kernels_of(head))
    assert replaced.frame["class"].to_list() == ["matmul"]


def test_what_is_missing_of_a_module_is_its_product_before_its_longer_other_work() -> None:
    """A linear of 10 us and a copy of 50 us in one module became one kernel."""
    linear = kernel_row(0, "up", product(64, 64), busy=10 * US)
    copy = kernel_row(0, "up", busy=50 * US)
    mystery = unknown("kernel_8", 40 * US, layer=0, role="up")
    replaced = with_replacements(kernels_of(mystery), kernels_of(linear, copy))
    assert replaced.frame["class"].to_list() == ["matmul"]
    assert replaced.frame["kind"].to_list() == ["unknown"]  # what replaces a GEMM is none


# -- other inputs -------------------------------------------------------------------------------


def linears(
    times: int = 1, *, m: int = 64, width: int = 96, layers: Sequence[int | None] = (0, 1)
) -> Rows:
    """As many forwards of two linears in each layer, whose roles are unknown in layer None."""
    sizes = (("up", width, 64), ("down", 64, width))
    return [kernel_row(layer, "unknown" if layer is None else role, product(n, k, m=m))
            for _ in range(times) for layer in layers for role, n, k in sizes]  # fmt: skip


def inputs_of(dense: Rows, pruned: Rows, *convolutions: Convolution) -> Difference | None:
    return other_inputs(pairs_of(kernels_of(*dense), kernels_of(*pruned)), convolutions)


def test_micro_batches_run_every_product_more_often() -> None:
    """Gradients of three batches in a step, where the dense step has one: 3 x the products, in the
    same shapes. A third of them is fewer inputs only where every layer is still there."""
    more = inputs_of(linears(), linears(3))
    assert more == Difference(FORWARDS, 1, 3.0, hides_pruning=True)
    assert "every GEMM runs 3 × as often a step, in the same shapes" in difference_text(more)
    fewer = inputs_of(linears(3), linears())
    assert fewer is not None
    assert fewer.kind == FORWARDS
    assert fewer.pruned == pytest.approx(1 / 3, abs=1e-6)
    assert inputs_of(linears(3, layers=(0, 1, 2)), linears(1, layers=(0, 1))) is None


@pytest.mark.parametrize(
    ("m", "width", "of_linears", "of_products"),
    [
        (64, 48, None, None),  # N and K fell, and no rows
        (32, 96, 0.5, 0.5),
        (32, 48, 0.5, None),  # other rows, and a width that fell: not the inputs alone
        (128, 48, 2.0, 2.0),  # no pruning doubles the rows of every product
    ],
)
def test_a_narrower_model_is_no_other_input(
    m: int, width: int, of_linears: float | None, of_products: float | None
) -> None:
    """By the rows of linears, and of products whose roles are unknown."""
    for layers, ratio in (((0, 1), of_linears), ((None,), of_products)):
        inputs = inputs_of(linears(layers=layers), linears(layers=layers, m=m, width=width))
        assert (None if inputs is None else inputs.pruned) == ratio


@pytest.mark.parametrize(
    ("n", "k", "is_another"),
    [
        (128, 32, True),  # wider, of a narrower stream: no pruning does that
        (48, 128, True),
        (48, 32, False),
        (128, 128, False),
        (96, 32, False),  # one dimension is as before
    ],
)
def test_a_linear_that_is_larger_and_smaller_is_of_another_model(
    *, n: int, k: int, is_another: bool
) -> None:
    """Than the one of its role on the dense side, with N 96 and K 64."""
    sides = [kernels_of(kernel_row(0, "up", product(*size))) for size in ((96, 64), (n, k))]
    difference = find_other_model(pairs_of(*sides))
    assert (difference is not None) == is_another
    if difference is not None:
        assert (difference.kind, difference.hides_pruning) == ("linears", True)
        assert difference.pruned == f"up of N {n}, K {k}"


def transformer(hidden: int, attention: int, channels: int, *, layers: int = 1) -> Kernels:
    sizes = {"q": (attention, hidden), "o": (hidden, attention), "up": (channels, hidden),
             "down": (hidden, channels)}  # fmt: skip
    each = [(i, role, size) for i in range(layers) for role, size in sizes.items()]
    return kernels_of(*[kernel_row(i, role, product(*size)) for i, role, size in each])


BERT_BASE = (768, 768, 3072)


@pytest.mark.parametrize(
    ("widths", "differ", "is_another"),
    [
        ((512, 512, 2048), True, False),  # BERT-small, or one that was cut along all three
        ((1024, 1024, 4096), True, True),  # BERT-large
        ((512, 768, 2048), False, False),  # the heads are as before: a pruning of two kinds
        ((512, 768, 3072), False, False),
    ],
)
def test_a_model_whose_three_widths_differ_may_be_another_one(
    *, widths: tuple[int, int, int], differ: bool, is_another: bool
) -> None:
    pairs = pairs_of(transformer(*BERT_BASE), transformer(*widths))
    deeper = pairs_of(transformer(*BERT_BASE), transformer(*widths, layers=2))
    assert (find_other_model(deeper) is not None) == differ
    known = {name: both for name, *both in zip(("hidden size", "attention", "MLP"), BERT_BASE,
                                               widths, strict=True)}  # fmt: skip
    assert other_widths(pairs) == ({k: tuple(v) for k, v in known.items()} if differ else None)
    difference = find_other_model(pairs)
    assert (difference is not None) == is_another
    if difference is not None:
        assert "these are two models" in not_comparable_text(difference)


def images(batch: int, channels: int = 16) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input and the weight of a patch embedding."""
    return (batch, 3, 32, 32), (channels, 3, 4, 4)


def test_a_batch_of_images_is_one_of_convolutions_too() -> None:
    half = inputs_of(linears(), linears(m=32), Convolution(images(8), images(4)))
    assert half == Difference(BATCH_SIZE, 1, 0.5, hides_pruning=True)


def test_tokens_that_were_dropped_after_the_patch_embedding_are_no_other_input() -> None:
    """As many images as before, and half of their tokens: rows fell in one ratio all the same."""
    assert inputs_of(linears(), linears(m=32), Convolution(images(8), images(8))) is None


def test_convolutions_alone_tell_the_batch() -> None:
    """Without a product, and with other channels, which are no other batch."""
    assert inputs_of([], [], Convolution(images(8), images(4))) == Difference(
        BATCH_SIZE, 1, 0.5, hides_pruning=True
    )
    narrower = Convolution(images(8), images(4, channels=8))
    assert (narrower.is_narrower, inputs_of([], [], narrower)) == (True, None)


def batched(batch: int, rows: int) -> Rows:
    """A linear, and a product of activations in batches, without roles."""
    activations = OpCall("aten::bmm", ((batch, 16, 8), (batch, 8, 16)), ("float", "float"))
    return [kernel_row(None, "unknown", call) for call in (product(96, 64, m=rows), activations)]


def test_half_of_a_batch_of_two_is_the_batch() -> None:
    half = inputs_of(batched(2, 64), batched(1, 32))
    assert half == Difference(BATCH_SIZE, 1, 0.5, hides_pruning=True)


@pytest.mark.parametrize(("dense", "pruned"), [(0, 2), (2, 0), (-1, 2), ("2", 1)])
def test_a_forged_batch_has_no_ratio(dense: Any, pruned: Any) -> None:
    assert batch_ratio([Difference("batch", dense, pruned, hides_pruning=True)]) is None
    assert batch_ratio([Difference("batch", 2, 1, hides_pruning=True)]) == 0.5


# -- roles of the other side, and calls that it lacks -------------------------------------------


def test_unnamed_linears_take_the_roles_that_their_layer_lacks() -> None:
    """By order and shape: one width of each is as the reference has it, or no role is taken."""
    reference = [kernel_row(0, role, product(n, k))
                 for role, n, k in (("q", 64, 64), ("up", 96, 64), ("down", 64, 96))]  # fmt: skip
    named, other_model = ["q", "up", "down"], ["q", "unknown", "unknown"]
    for sizes, roles in ((((48, 64), (64, 48)), named), (((48, 32), (32, 48)), other_model)):
        unnamed = [kernel_row(0, "unknown", product(*size)) for size in sizes]
        _, pruned = place_pair(kernels_of(*reference), kernels_of(reference[0], *unnamed))
        assert pruned.frame["role"].to_list() == roles


@pytest.mark.parametrize(
    ("stored", "other", "formats"),
    [
        ("signed char", (64,), {("fp32", "int8")}),  # times a scale a row
        ("signed char", (96, 64), set()),  # times another matrix: a mask
        ("float", (64,), set()),
    ],
)
def test_weights_in_fewer_bits_are_copied_and_scaled(
    stored: str, other: tuple[int, ...], formats: set[tuple[str, str]]
) -> None:
    copy = OpCall("aten::copy_", ((96, 64), (96, 64)), ("float", stored))
    scaled = OpCall("aten::mul", ((96, 64), other), ("float", "float"))
    rows = [{**kernel_row(None, "unknown"), "of": call} for call in (copy, scaled)]
    assert unpacked_formats(kernels_of(kernel_row(0, "up", product(96, 64)), *rows)) == formats


def test_ops_that_run_more_often_are_sorted_by_their_time_and_then_by_name() -> None:
    def calls(*times: tuple[str, int]) -> Kernels:
        rows = [kernel_row(0, "up", product(96, 64))]
        for name, busy in times:
            call = OpCall(name, ((96, 64), (96, 64)), ("float", "float"))
            rows.append({**kernel_row(None, "unknown", busy=busy), "of": call})
        return kernels_of(*rows)

    more = more_calls(calls(), calls(("aten::mul", 10), ("aten::add", 10), ("aten::div", 30)))
    assert [(call.op, call.dense, call.pruned, call.ns) for call in more] == [
        ("aten::div", 0, 1, 30), ("aten::add", 0, 1, 10), ("aten::mul", 0, 1, 10),
    ]  # fmt: skip


# -- replays and first calls --------------------------------------------------------------------


def test_replays_that_an_eager_trace_places_keep_their_layers() -> None:
    """A graph replays every kernel of the pruned side, with roles and layers of an eager trace."""
    rows = [kernel_row(layer, "up", product(96, 64)) for layer in range(2)]
    dense = kernels_of(*rows, modules=BY_MODULES)
    replayed = replace(dense.linked, replayed=np.ones(2, bool))
    bare = [{**row, "layer": None, "role": "unknown"} for row in rows]
    placed = replace(dense, linked=replayed)
    lost = replace(kernels_of(*bare, modules=BY_MODULES), linked=replayed)
    for pruned, layers in ((placed, [0, 1]), (lost, [None, None])):
        equal = make_comparable(phase_of(dense), phase_of(pruned))
        assert equal.dense.kernels.frame["layer"].to_list() == layers
        assert equal.pruned.kernels.frame["layer"].to_list() == layers


def test_first_calls_of_one_side_matter_to_traces_and_not_to_runs_that_were_warmed_up() -> None:
    kernels = kernels_of(kernel_row(0, "up", product(96, 64)))
    cold = replace(kernels, host=HostWork(first_call_ns=500))
    sides = phase_of(kernels), phase_of(cold)
    assert [row.kind for row in find_differences(sides[0], sides[1], [])] == [FIRST_CALLS]
    block = PhaseRun(
        batch=1, prompt_len=32, positions=[0, 32], context=32, logits="last", cache="dynamic",
        attention="sdpa", mode="eager", steps=1, tokens_per_step=32, warmup=1,
    )  # fmt: skip
    device, model = SimpleNamespace(name="H100", kind="cuda"), SimpleNamespace(shape=None)
    run = SimpleNamespace(phases={"trace": block}, dtype="bf16", device=device, model=model)
    warm, late = (replace(s, side=replace(s.side, run=cast(Any, run))) for s in sides)
    assert find_differences(warm, late, []) == ()
