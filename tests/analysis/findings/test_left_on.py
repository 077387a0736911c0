"""What was left on before the timing: masks, parametrisations, fake quantisation, adapters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Finding
from tests.analysis.decoder import Layer, Setting, census, decoder, gemm, matrix
from tests.analysis.finding_cases import FULL, NARROW, found, model, of_pair, of_run
from tests.chrome import chrome, k, module, op, save, step

RANK = 8
SIZE = [512, 256]  # of up in FULL, N x K
FAKE = "aten::fake_quantize_per_channel_affine_cachemask"


def adapted(layer: Layer, **setting: Any) -> Any:
    """Beside q of every layer two products through a rank, a scale, a sum: 10 + 10 + 3 + 4 us."""
    said = Setting(**setting)
    rows = [said.rows, layer.heads * 16]
    layers = [
        replace(layer, added=(
            module(f"model.layers.{i}.self_attn.q_proj.lora_A.default", gemm(said, RANK, layer.h)),
            module(f"model.layers.{i}.self_attn.q_proj.lora_B.default", gemm(said, rows[1], RANK)),
            op("aten::mul", rows, [], kernels=[k(us=3, name="elementwise")]),
            op("aten::add", rows, rows, [], kernels=[k(us=4, name="elementwise")]),
        ))
        for i in range(4)
    ]  # fmt: skip
    return decoder(layers, said)


def lora(zeros: float = 0.0) -> list[dict[str, Any]]:
    """As peft makes them: B is nothing but zeros until it is trained."""
    return [
        {**matrix(i, "adapter", share), "name": f"model.layers.{i}.self_attn.q_proj.lora_{factor}",
         "shape": shape}
        for i in range(4)
        for factor, shape, share in (("A", [RANK, 256], 0.0), ("B", [256, RANK], zeros))
    ]  # fmt: skip


def test_adapters_that_were_not_merged_are_named_and_are_no_pruning(tmp_path: Path) -> None:
    more = {"census": {"matrices": [*census(0.0)["matrices"], *lora(zeros=1.0)]}}
    phase = of_run(tmp_path, model(FULL), adapted(FULL), dense_census=census(0.0), **more)
    assert phase.family is not None and phase.family.id == "outside"
    result = found(phase, "added-adapter")
    assert result is not None and "merge_and_unload()" in str(result.change)
    assert "8 low-rank GEMMs, rank 8" in result.text and "q_proj × 4" in result.evidence[0]
    assert result.predicted_ns == pytest.approx(4 * 27_000)
    assert found(phase, "zeros-in-dense") is None
    rows = {(g.role, g.n, g.k, g.axis) for g in phase.gemms if g.role in ("adapter", "q")}
    assert rows == {
        ("q", 256, 256, "none"), ("adapter", 8, 256, "added"), ("adapter", 256, 8, "added"),
    }  # fmt: skip
    assert found(of_run(tmp_path / "b", model(FULL), model(FULL)), "added-adapter") is None


def test_adapters_hide_no_family(tmp_path: Path) -> None:
    """Pruned, recovered by LoRA, and timed before the merge; a bare trace shows as much."""
    for phase in (
        of_run(tmp_path, model(FULL), adapted(NARROW)),
        of_pair(tmp_path, model(FULL), adapted(NARROW)),
    ):
        assert phase.family is not None and phase.family.id == "static-nk-mlp"
        assert found(phase, "added-adapter") is not None
        added = next(row for row in phase.ledger or [] if row.row == "added_work")
        assert added.ns == pytest.approx(4 * 27_000)


@pytest.mark.parametrize("names", [("down", "up"), ("a", "b"), (None, None)])
def test_adapters_of_any_class_are_told_by_their_shapes(
    tmp_path: Path, names: tuple[str | None, str | None]
) -> None:
    """A wrapper around q with children of any name, or that multiplies by parameters of its own."""
    said = Setting()
    products = (gemm(said, RANK, FULL.h), gemm(said, FULL.heads * 16, RANK))
    layers = [
        replace(FULL, added=tuple(
            result if name is None else module(f"model.layers.{i}.self_attn.q_proj.{name}", result)
            for name, result in zip(names, products, strict=True)
        ))
        for i in range(4)
    ]  # fmt: skip
    phase = of_pair(tmp_path, model(FULL), decoder(layers, said))
    rows_of = {(g.role, g.n, g.k, g.axis) for g in phase.gemms if g.role in ("adapter", "q")}
    assert rows_of == {
        ("q", 256, 256, "none"), ("adapter", 8, 256, "added"), ("adapter", 256, 8, "added"),
    }  # fmt: skip
    result = found(phase, "added-adapter")
    assert result is not None and "8 low-rank GEMMs" in result.text


def test_an_untrained_adapter_of_any_class_is_no_mask(tmp_path: Path) -> None:
    """Its second factor is nothing but zeros, under the role of the linear beside it."""
    beside = [
        {**matrix(i, "q", share), "name": f"model.layers.{i}.self_attn.q_proj.{factor}",
         "shape": shape}
        for i in range(4)
        for factor, shape, share in (
            ("base", [256, 256], 0.0), ("A", [RANK, 256], 0.0), ("B", [256, RANK], 1.0),
        )
    ]  # fmt: skip
    others = [m for m in census(0.0)["matrices"] if m["role"] != "q"]
    more = {"census": {"matrices": [*others, *beside]}}
    phase = of_run(tmp_path, model(FULL), adapted(FULL), dense_census=census(0.0), **more)
    assert phase.family is not None and phase.family.id == "outside"
    assert found(phase, "zeros-in-dense") is None


def remade(tmp_path: Path, made: Any, applied: str | None, name: str) -> Finding | None:
    held = {**matrix(0, "up", 0.0), "shape": SIZE} | ({"applied": applied} if applied else {})
    phase = of_run(tmp_path, model(FULL), model(replace(FULL, added=made)),
                   census={"matrices": [held]}, dense_census=census(0.0))  # fmt: skip
    assert found(phase, "added-mask") is None
    if name != "decompressed":  # one cost is one finding
        assert found(phase, "decompressed") is None
    return found(phase, name)


def test_parametrisations_that_were_left_on(tmp_path: Path) -> None:
    norm = (
        op("aten::_weight_norm", SIZE, [512, 1], kernels=[k(us=30, name="norm")]),
        op("aten::div", SIZE, SIZE, kernels=[k(us=10, name="elementwise")]),
    )
    result = remade(tmp_path, norm, "torch.nn.utils.parametrize", "weights-recomputed")
    assert result is not None and "remove_parametrizations" in str(result.change)
    assert result.predicted_ns == pytest.approx(4 * 40_000)
    assert remade(tmp_path / "b", norm, None, "weights-recomputed") is None


def test_a_weight_is_not_made_anew_that_nobody_makes(tmp_path: Path) -> None:
    """What the dense side rounds too is no cost of the pruned one."""
    rounded = replace(FULL, added=(op(FAKE, SIZE, [512], kernels=[k(us=30, name="fake")]),))
    phase = of_run(tmp_path, model(rounded), model(rounded))
    for name in ("fake-quantised", "weights-recomputed"):
        assert found(phase, name) is None


@pytest.mark.parametrize("told", [True, False])
def test_fake_quantisation_that_was_left_on(tmp_path: Path, *, told: bool) -> None:
    """Told by the names of its ops; what observes a weight is known from the census alone."""
    made = (
        op("aten::aminmax", SIZE, kernels=[k(us=5, name="reduce")]),
        op(FAKE, SIZE, [512], [512], kernels=[k(us=30, name="fake_quant")]),
        op("aten::fake_quantize_per_tensor_affine", [32, 256], kernels=[k(us=7, name="fq")]),
    )
    result = remade(tmp_path, made, "torch.ao.quantization" if told else None, "fake-quantised")
    assert result is not None and "convert" in str(result.change)
    assert result.predicted_ns == pytest.approx(4 * (42_000 if told else 37_000))


@pytest.mark.parametrize("rows", [1, 512])
def test_masks_of_hooks_run_before_their_linear_and_are_added_work(
    tmp_path: Path, rows: int
) -> None:
    """They stand in the MLP's own scope, beside the product of gate and up: 40 us a mask."""

    def trace(*, masked: bool) -> dict[str, Any]:
        said = Setting(rows=rows)
        act = op("aten::mul", [1, rows, 512], [1, rows, 512], kernels=[k(us=5, name="elementwise")])

        def linear(name: str, n: int, width: int) -> list[Any]:
            mask = op("aten::mul", [n, width], [n, width], kernels=[k(us=40, name="elementwise")])
            own = module(f"model.layers.0.mlp.{name}_proj", gemm(said, n, width))
            return [mask, own] if masked else [own]

        mlp = [*linear("gate", 512, 256), *linear("up", 512, 256), act, *linear("down", 256, 512)]
        return chrome(step(0, module("model.layers.0", module("model.layers.0.mlp", *mlp))))

    phase = of_pair(tmp_path, trace(masked=False), trace(masked=True))
    rows_of = {row.row: row for row in phase.ledger or []}
    assert rows_of["added_work"].ns == pytest.approx(3 * 40_000)
    assert {part.role for part in rows_of["added_work"].parts} == {"gate", "up", "down"}
    assert phase.ladder is not None and phase.ladder.coverage == pytest.approx(1.0)


def bare_step(index: int, *, on_weight: tuple[str, ...] = ()) -> Any:
    """Build a step of two linears of 64 rows and a GELU, without modules.

    Before each GEMM the ops `on_weight` run on its weight [256, 128], 3 us each.
    """
    size = [256, 128]
    new = [op(name, size, size, kernels=[k(us=3, name="elementwise_kernel")]) for name in on_weight]
    mm = op("aten::mm", [64, 128], [128, 256], kernels=[k(us=10, name="sgemm_kernel")])
    gelu = op("aten::gelu", [64, 256], kernels=[k(us=2, name="gelu_kernel")])
    return step(index, *new, mm, gelu, *new, mm, gelu)


@pytest.mark.parametrize(
    ("ops", "name", "calls"),
    [
        (("aten::mul",), "added-mask", 2),
        (("aten::abs", "aten::div", "aten::round", "aten::mul"), "fake-quantised", 8),
    ],
)
def test_ops_on_weights_are_seen_in_a_bare_trace(
    ops: tuple[str, ...], name: str, calls: int, tmp_path: Path
) -> None:
    """All pointwise work is one unit on both sides, as no module is known.

    It takes 12 us in the pruned step, and is not `no work was added`: 2 GEMMs, each behind one op
    or four of 3 us.
    """
    paths = [
        save(chrome(*(bare_step(i, on_weight=result) for i in range(2))), tmp_path / f"{i}.json")
        for i, result in enumerate(((), ops))
    ]
    (phase,) = analyze(paths[1], baseline=paths[0]).report.phases.values()
    assert phase.family is not None and phase.family.id == "outside"
    assert "calls some ops more often" in phase.family.evidence[0]
    result = found(phase, name)
    assert result is not None and result.predicted_ns == pytest.approx(calls * 3000)
    assert f"{calls} " in result.text
    others = {"added-mask", "fake-quantised", "weights-recomputed"} - {name}
    assert all(found(phase, absent) is None for absent in others)
    (same,) = analyze(paths[1], baseline=paths[1]).report.phases.values()
    assert found(same, name) is None


def test_masks_of_a_bare_trace_are_added_work(tmp_path: Path) -> None:
    """2 masks of 40 us are what was added, and no part of the bound.

    No module says where they stand, and the dense step has pointwise work too.
    """

    def trace(*, masked: bool) -> dict[str, Any]:
        items = []
        for n, width in ((64, 32), (32, 64)):
            mask = op("aten::mul", [n, width], [n, width], kernels=[k(us=40, name="elementwise")])
            relu = op("aten::relu", [9, n], kernels=[k(us=3, name="elementwise")])
            mm = op("aten::mm", [9, width], [width, n], kernels=[k(us=10, name="gemm")])
            items += [*([mask] if masked else []), mm, relu]
        return chrome(step(0, *items))

    phase = of_pair(tmp_path, trace(masked=False), trace(masked=True))
    rows = {row.row: row.ns for row in phase.ledger or []}
    assert rows["added_work"] == 80_000
    assert phase.ladder is not None and phase.ladder.coverage == 1
    assert found(phase, "added-mask") is not None
    assert phase.family is not None
    assert "aten::mul [64×32] × 1 a step, 0 in the dense trace" in " ".join(phase.family.evidence)


def test_adapters_that_are_trained_are_not_to_be_merged(tmp_path: Path) -> None:
    trained = adapted(FULL)
    back = op("autograd::engine::evaluate_function: MmBackward0", us=0)
    events = chrome(step(0, back))["traceEvents"]
    trained["traceEvents"] += [event for event in events if "MmBackward0" in str(event.get("name"))]
    result = found(of_pair(tmp_path, model(FULL), trained), "added-adapter")
    assert result is not None and result.severity == "info"
    assert "adapters are trained" in result.text and "once they are trained" in str(result.change)


def test_unpacking_of_packed_weights_is_no_mask(tmp_path: Path) -> None:
    """Bits of q are taken apart, shifted and scaled: 5 + 3 + 4 us in each of four layers.

    q is 256 x 256, with two 4-bit numbers per byte.
    """
    packed, whole = [256, 128], [256, 256]
    work = (
        op("aten::bitwise_and", packed, [], dtypes=("unsigned char", "Scalar"),
           kernels=[k(us=5, name="elementwise")]),
        op("aten::sub", packed, [], kernels=[k(us=3, name="elementwise")]),
        op("aten::mul", whole, [256, 1], kernels=[k(us=4, name="elementwise")]),
    )  # fmt: skip
    phase = of_pair(tmp_path, model(FULL), model(replace(FULL, added=work)))
    result = found(phase, "decompressed")
    assert result is not None and result.text.startswith(
        "weights are unpacked and made dense again"
    )
    assert result.predicted_ns == pytest.approx(4 * 12_000)
    assert found(phase, "added-mask") is None
