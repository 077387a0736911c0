"""Prefill or decode of a user's trace: annotations of serving engines, else shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.summary.headline import headline
from prunescope.analysis.timeline.engine_steps import engine_step
from tests.chrome import chrome, gap, k, module, op, save, step

VLLM = "execute_context_{}({})_generation_{}({})"


@pytest.mark.parametrize(
    ("name", "phase"),
    [
        ("execute_context_1(888_788544)_generation_0(0)", "prefill"),
        ("execute_context_0(0)_generation_12(12)", "decode"),
        ("execute_context_2(17)_generation_3(3)", "mixed"),
        ("execute_context_0(0)_generation_0(0)", "unknown"),
        ("execute_15360_context_15(sq15360sk15360)_generation_0(sq0sk0)", "prefill"),
        ("execute_32_context_0(sq0sk0)_generation_32(sq32sk32785)", "decode"),
        ("execute_new_2_cached_0", "prefill"), ("execute_new_0_cached_4", "unknown"),
        ("step[EXTEND bs=15 toks=15360]", "prefill"), ("step[DECODE bs=32]", "decode"),
        ("step[IDLE bs=0]", "unknown"),
        ("ProfilerStep#3", None), ("execute", None), ("steps[DECODE]", None), ("", None),
        ("my_execute_context_1(1)_generation_0(0)", None),
    ],
)  # fmt: skip
def test_names_of_engine_steps(name: str, phase: str | None) -> None:
    assert engine_step(name) == phase


def test_a_hostile_name_is_cheap() -> None:
    assert engine_step("execute_1_context_1" * 50_000) is None
    assert engine_step("execute_context_" + "9" * 100_000) is None


def linear(m: int, us: float = 5, n: int = 64) -> Any:
    return op("aten::mm", [m, 64], [64, n], kernels=[k(us=us, name="gemm_kernel")])


def attention(queries: int, keys: int) -> Any:
    q, kv = [1, 4, queries, 64], [1, 4, keys, 64]
    return op("aten::_scaled_dot_product_flash_attention", q, kv, kv, [], [],
              kernels=[k(us=3, name="flash_fwd_kernel")])  # fmt: skip


# A cache of keys and values: the model decodes tokens.
CACHE = op("_C_cache_ops::reshape_and_cache_flash", kernels=[k(us=0.001, name="cache_kernel")])


def told(
    tmp_path: Path, *items: Any, options: Options | None = None, cached: bool = False
) -> dict[str, Phase]:
    trace = chrome(*items, CACHE) if items and cached else chrome(*items)
    return analyze(save(trace, tmp_path / "t.json"), options=options).report.phases


@pytest.mark.parametrize(
    ("items", "kind", "evidence"),
    [
        ([linear(8944), attention(559, 559)], "prefill", "is 8944; attention has 559 queries"),
        ([linear(64), attention(1, 900)], "decode", "attention has 1 query at a time"),
        ([linear(8944)], "prefill", "M of the linears is 8944"),
        ([linear(1)], "decode", "M of the linears is 1"),
        ([linear(200)], "unknown", "both phases may have, and no attention is known"),
        ([op("aten::add", [8], [8], kernels=[k(us=2)])], "unknown", "no shapes"),
        ([linear(8944), op("autograd::engine::evaluate_function: MmBackward0", us=0)], "training",
         "backward"),
        ([linear(4), linear(9000, us=50)], "prefill", "M of the linears is 9000"),
    ],
)  # fmt: skip
def test_shapes_tell_the_phase(items: list[Any], kind: str, evidence: str, tmp_path: Path) -> None:
    phase = told(tmp_path, *items, cached=True)["trace"]
    assert phase.phase_kind is not None
    assert phase.phase_kind["kind"] == kind
    assert evidence in phase.phase_kind["evidence"]
    assert f"{phase.phase_kind['evidence']}: {kind}" in phase.notes


def test_a_run_says_its_phase_itself(tmp_path: Path) -> None:
    """Our own annotations in a bare trace: still told by shapes, not by an engine."""
    phase = told(tmp_path, step(0, linear(2048), CACHE), step(1, linear(2048)))["trace"]
    assert phase.steps == 2
    assert phase.phase_kind == {"kind": "prefill", "evidence": "M of the linears is 2048"}


def serving() -> list[Any]:
    """Prefill, two decodes, a mixed step: of 50, 5, 6 and 20 us, with gaps of 1, 2 and 3 us."""
    return [
        module(VLLM.format(1, 888, 0, 0), linear(888, us=50)), gap(us=1, launch=True),
        module(VLLM.format(0, 0, 1, 1), linear(1, us=5)), gap(us=2, launch=True),
        module(VLLM.format(0, 0, 1, 1), linear(1, us=6)), gap(us=3, launch=True),
        module(VLLM.format(1, 60, 1, 1), linear(61, us=20)),
    ]  # fmt: skip


def test_steps_of_several_phases_are_apart_and_add_up(tmp_path: Path) -> None:
    phases = told(tmp_path, *serving())
    assert list(phases) == ["prefill", "decode", "mixed"]
    assert [p.steps for p in phases.values()] == [1, 2, 1]
    decode = phases["decode"]
    assert decode.busy_ns == (5_000 + 6_000) / 2
    assert decode.gap_ns == (1_000 + 2_000) / 2  # from the end of the step before, of any phase
    assert phases["mixed"].gap_ns == 3_000
    walls = sum(p.wall_ns * p.steps for p in phases.values())
    assert walls == 50_000 + 1_000 + 5_000 + 2_000 + 6_000 + 3_000 + 20_000
    for name, phase in phases.items():
        assert phase.phase_kind is not None
        assert phase.phase_kind["kind"] == name
        assert phase.wall_ns == phase.busy_ns + phase.gap_ns + phase.tail_ns
    assert decode.gemms[0].m == 1
    assert phases["prefill"].gemms[0].m == 888


def test_one_phase_of_an_engine_stays_the_trace(tmp_path: Path) -> None:
    phases = told(tmp_path, *serving()[2:5])
    assert list(phases) == ["trace"]
    assert phases["trace"].steps == 2
    assert phases["trace"].phase_kind == {
        "kind": "decode",
        "evidence": "2 steps are, the first annotated execute_context_0(0)_generation_1(1)",
    }


def test_a_pattern_picks_the_steps_itself(tmp_path: Path) -> None:
    options = Options(phase_pattern=r"generation_0\(0\)")
    phases = told(tmp_path, *serving(), options=options)
    assert list(phases) == ["trace"]
    assert phases["trace"].steps == 1
    assert phases["trace"].busy_ns == 50_000
    assert phases["trace"].left_out["events"] == 3


def test_phases_of_two_engine_traces_are_paired_by_name(tmp_path: Path) -> None:
    dense = save(chrome(*serving()), tmp_path / "d.json")
    pruned = save(chrome(*serving()[:5]), tmp_path / "p.json")
    report = analyze(pruned, baseline=dense).report
    assert list(report.phases) == ["prefill", "decode"]
    assert report.phases["decode"].ladder is not None
    assert "mixed: on one side only, left out" in report.warnings


def test_a_phase_is_told_by_what_occurs(tmp_path: Path) -> None:
    """No mean over 197 and 559 queries: the one with the most time."""
    one = step(0, linear(4866), attention(197, 197), CACHE)
    other = step(1, linear(4866), attention(559, 559), attention(559, 559))
    said = told(tmp_path, one, other)["trace"].phase_kind
    assert said is not None
    assert said["evidence"] == "M of the linears is 4866; attention has 559 queries at a time"


def test_the_phase_is_that_of_the_pruned_side(real_trace: Callable[[str], Path]) -> None:
    """An image classifier decodes no tokens, whatever it is compared with."""
    pruned, dense = (real_trace(f"{n}.json.gz") for n in ("h100_vit", "h100_qwen1.5-0.5b_prefill"))
    phase = analyze(pruned, baseline=dense).report.phases["trace"]
    assert phase.phase_kind is not None
    assert phase.phase_kind["kind"] == "forward"
    assert "nothing says that it decodes tokens" in phase.phase_kind["evidence"]


def test_two_phases_in_one_step_are_doubted(tmp_path: Path) -> None:
    both = [CACHE] + [linear(15360) for _ in range(20)] + [linear(32) for _ in range(30)]
    path = save(chrome(*both), tmp_path / "t.json")
    report = analyze(path).report
    said = report.phases["trace"].phase_kind
    assert said is not None
    assert said["kind"] == "decode"
    assert said["doubt"].startswith(
        "M of the linears is 15360 in 20 GEMMs and 32 in 30, one after the other: more than one "
        "phase"
    )
    assert f"trace: {said['doubt']}" in report.warnings


def test_a_prompt_and_what_is_generated_after_it_are_mixed(tmp_path: Path) -> None:
    """As `generate` records them: a prompt of 64, then five tokens, of four layers each."""
    items = [item for rows in (64, 1, 1, 1, 1, 1)
             for item in [linear(rows), linear(rows), attention(rows, 64)] * 4]  # fmt: skip
    said = told(tmp_path, *items, cached=True)["trace"].phase_kind
    assert said is not None
    assert said["kind"] == "mixed"
    assert (
        "record prefill and decode separately, or annotate their steps: generate(" in said["doubt"]
    )
    assert "--phase-pattern" not in said["doubt"]  # there is nothing for it to pick


@pytest.mark.parametrize(
    "items",
    [
        [linear(m) for _ in range(20) for m in (15360, 32)],  # in turns: layers of one forward
        [linear(m) for m in [512] * 20 + [500] * 20],  # of one size: steps of one phase
        [linear(m) for m in [15360] * 40 + [32]],  # a single one: a head, not a phase
    ],
)  # fmt: skip
def test_one_phase_is_not_doubted(items: list[Any], tmp_path: Path) -> None:
    said = told(tmp_path, *items)["trace"].phase_kind
    assert said is not None and "doubt" not in said


def test_a_pattern_that_mixes_phases_has_a_caveat(tmp_path: Path) -> None:
    options = Options(phase_pattern="execute_")
    report = analyze(save(chrome(*serving()[:5]), tmp_path / "t.json"), options=options).report
    said = report.phases["trace"].phase_kind
    assert said is not None and said["kind"] == "mixed"
    assert said["doubt"].startswith("a step here is the mean over 2 of decode, 1 of prefill")
    assert f"trace: {said['doubt']}" in report.warnings


def test_a_long_annotation_is_shortened(tmp_path: Path) -> None:
    name = "execute_32_context_0(" + "sq0" * 40 + ")_generation_32(sq32)"
    said = told(tmp_path, module(name, linear(32)))["trace"].phase_kind
    assert said is not None
    assert said["evidence"] == f"the step is annotated {name[:79]}…"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("b200_eager", "prefill"), ("h100_qwen1.5-0.5b_prefill", "prefill"),
        ("mi300x_sglang_qwen3-8b_decode_graph", "decode"),
        ("mi300x_sglang_qwen3-8b_prefilldecode", "prefill"),
        ("v100_legacy_graphs", "training"), ("mi210_gpu_only", "training"),
        ("h100_vit", "forward"), ("h100_owlv2-large", "forward"),
    ],
)  # fmt: skip
def test_real_traces(name: str, kind: str, real_report: Callable[[str], Report]) -> None:
    phase = real_report(f"{name}.json.gz").phases["trace"]
    assert phase.phase_kind is not None
    assert phase.phase_kind["kind"] == kind


def test_prefill_against_decode_is_not_comparable(tmp_path: Path) -> None:
    """Two shapes of one model, traced in two phases: a ratio, and no pruning."""
    prefill = save(
        chrome(step(0, linear(2048, us=50), attention(2048, 2048), CACHE)), tmp_path / "p.json"
    )
    decode = save(chrome(step(0, linear(4), attention(1, 2048), CACHE)), tmp_path / "d.json")
    (phase,) = analyze(decode, baseline=prefill).report.phases.values()
    assert phase.family is not None
    assert phase.family.id == "outside"
    said = "not comparable: the pruned side is decode, the dense one prefill"
    assert said in phase.family.evidence
    differs = "phase: prefill dense, decode pruned"
    assert headline(phase).endswith(f"is no speedup: not comparable ({differs})")
    assert [f.evidence for f in phase.findings if f.id == "not-comparable"] == [[differs]]
    (same,) = analyze(decode, baseline=decode).report.phases.values()
    assert same.family is not None
    assert not [e for e in same.family.evidence if "not comparable" in e]


def test_heads_that_share_a_key_are_no_queries(tmp_path: Path) -> None:
    """Decode of one token whose product takes two heads of a key at once: no prefill."""
    product = op("aten::bmm", [4, 2, 64], [4, 64, 512], kernels=[k(us=9, name="bmm_kernel")])
    layer = "model.layers.0.self_attn"
    items = module(layer, module(f"{layer}.q_proj", linear(1)), product)
    (phase,) = told(tmp_path, step(0, items, CACHE)).values()
    assert phase.phase_kind is not None
    assert phase.phase_kind["kind"] == "decode", phase.phase_kind
    assert "2 queries" in phase.phase_kind["evidence"]


def test_a_baseline_of_two_phases_has_a_caveat(tmp_path: Path) -> None:
    mixed = save(chrome(CACHE, *[linear(512)] * 20, *[linear(1)] * 30), tmp_path / "m.json")
    one = save(chrome(*[linear(512)] * 20), tmp_path / "o.json")
    report = analyze(one, baseline=mixed).report
    assert [w for w in report.warnings if w.startswith("baseline: trace: M of the linears is 512")]


@pytest.mark.parametrize(
    "name",
    ["autograd::engine::evaluate_function: MmBackward0", "AddmmBackward", "CudnnConvBackward0",
     "aten::cudnn_convolution_backward_weight", "aten::_softmax_backward_data",
     "CompiledFunctionBackward", "Optimizer.step#AdamW.step"],
)  # fmt: skip
def test_training_in_the_spelling_of_any_version(name: str, tmp_path: Path) -> None:
    said = told(tmp_path, linear(8944), op(name, us=0))["trace"].phase_kind
    assert said is not None
    assert said["kind"] == "training"


@pytest.mark.parametrize(
    "name", ["sm80_xmma_dgrad_implicit_gemm", "triton_per_fused_norm_backward"]
)
def test_kernels_of_a_forward_pass_that_say_backward(name: str, tmp_path: Path) -> None:
    """A transposed convolution runs a dgrad kernel, and a fused kernel lists what it may do."""
    up = op("aten::conv_transpose2d", [1, 8, 4, 4], [8, 8, 2, 2], kernels=[k(us=5, name=name)])
    said = told(tmp_path, linear(8944), up)["trace"].phase_kind
    assert said is not None
    assert said["kind"] == "forward"


def fused(queries: int, us: float, causal: str, heads: int = 4) -> Any:
    q = [1, heads, queries, 64]
    return op(
        "aten::_scaled_dot_product_flash_attention",
        q,
        q,
        q,
        [],
        [],
        concrete=["", "", "", "0.", causal],
        kernels=[k(us=us, name="flash_fwd")],
    )


@pytest.mark.parametrize(
    ("items", "kind"),
    [
        # A text encoder in a model that makes images: 1 of 11 us of attention is causal.
        ((linear(77), fused(77, 1, "True"), linear(4096), fused(4096, 10, "False")), "forward"),
        # A vision tower before a decoder: most of it is.
        ((linear(64), fused(64, 1, "False"), linear(2048), fused(2048, 3, "True")), "prefill"),
    ],
)
def test_a_model_decodes_where_most_attention_is_causal(
    items: tuple[Any, ...], kind: str, tmp_path: Path
) -> None:
    phase = told(tmp_path, *items)["trace"]
    assert phase.phase_kind is not None
    assert phase.phase_kind["kind"] == kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ScaledUpperTriangMaskedSoftmax", "prefill"),
        ("ScaledMaskedSoftmax", "forward"),
        ("causal_conv1d_fwd", "forward"),
    ],
)
def test_a_mask_is_causal_by_the_name_of_its_op(name: str, kind: str, tmp_path: Path) -> None:
    mask = op(name, [4, 2048, 2048], kernels=[k(us=2, name=f"{name}_kernel")])
    phase = told(tmp_path, linear(2048), mask)["trace"]
    assert phase.phase_kind is not None
    assert phase.phase_kind["kind"] == kind


@pytest.mark.parametrize(("tokens", "phase"), [(32, "prefill"), (1, "decode")])
def test_ids_tell_a_prompt_from_tokens_without_attention(
    tokens: int, phase: str, tmp_path: Path
) -> None:
    """Mamba: no attention, and 32 rows are a short prompt or a batch."""
    ids = [32 // tokens, tokens]
    embed = op("aten::embedding", [512, 64], ids, kernels=[k(us=1, name="embedding_kernel")])
    head = module("lm_head", linear(32, n=512))
    trace = chrome(step(0, embed, *[linear(32)] * 4, CACHE, head))
    found = next(iter(analyze(save(trace, tmp_path / "t.json")).report.phases.values())).phase_kind
    assert found is not None
    assert found["kind"] == phase
    assert "a sequence are embedded" in found["evidence"]
