"""Steps that no profiler marked: updates of the weights, annotations and work that repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.inputs.options import Options
from prunescope.analysis.pipeline import analyze
from prunescope.analysis.schema.report import Phase, Report
from prunescope.analysis.timeline.intervals import Windows
from prunescope.analysis.timeline.step_windows import find_windows
from prunescope.analysis.trace.load import load
from prunescope.taxonomy.errors import PrunescopeError
from tests.chrome import Op, chrome, gap, k, module, op, save

Real = Callable[[str], Path]
UPDATE, ZERO = "Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"


def ran(name: str, us: float = 5) -> Op:
    return op(f"aten::{name}", [4, 5], kernels=[k(us=us, name=f"{name}_kernel")])


FORWARD = tuple(ran(name) for name in ("conv", "relu", "mul"))
BACKWARD = tuple(ran(name) for name in ("relu_backward", "mul_backward"))
LAYER = tuple(
    ran(name) for name in ("native_layer_norm", "mm", "_softmax", "bmm", "gelu", "mm", "add")
)


def model(layers: int, *, table: bool = True) -> tuple[Op, ...]:
    """Return a forward of a language model: a lookup of tokens, layers, a head."""
    rows = op("aten::embedding", [9, 5], [4], inner=[ran("index_select")])
    first = (rows,) if table else ()
    return (*first, *LAYER * layers, ran("native_layer_norm"), ran("topk"))


def windows(tmp_path: Path, *items: Any, cpu: bool = False) -> Windows:
    return find_windows(load(save(chrome(*items, cpu=cpu), tmp_path / "t.json")))


def told(tmp_path: Path, *items: Any, cpu: bool = False) -> Phase:
    report = analyze(save(chrome(*items, cpu=cpu), tmp_path / "t.json")).report
    assert list(report.phases) == ["trace"]
    return report.phases["trace"]


def iteration(*, us: float = 5) -> tuple[Any, ...]:
    """25 us and `us` of work; the gradients are cleared first."""
    return (module(ZERO, ran("zero_", 1)), *FORWARD, *BACKWARD, module(UPDATE, ran("add_", us)))


@pytest.mark.parametrize("cpu", [False, True])
def test_an_update_of_the_weights_ends_a_step(tmp_path: Path, *, cpu: bool) -> None:
    """Five iterations of 1 + 15 + 10 + 5 us, of which the third takes 40 longer."""
    items = [item for i in range(5) for item in iteration(us=45 if i == 2 else 5)]
    phase = told(tmp_path, *items, cpu=cpu)
    assert phase.steps == 5
    assert phase.step_ns == [31_000, 31_000, 71_000, 31_000, 31_000]
    assert phase.wall_ns == phase.busy_ns == 39_000
    assert f"steps end where {UPDATE} ends" in phase.notes


def test_an_odd_step_is_named_and_stays(tmp_path: Path) -> None:
    items = [item for i in range(5) for item in iteration(us=45 if i == 2 else 5)]
    [odd] = [f for f in told(tmp_path, *items).findings if f.id == "step-outlier"]
    assert "step 2 (of 0 to 4) takes 71.0 µs, the others 31.0 µs (median)" in odd.text
    assert odd.evidence == [
        "busy: 31.0 µs in the others (median), 71.0 µs in step 2",
        "idle: 0.0 µs in the others (median), 0.0 µs in step 2",
    ]
    even = [item for i in range(5) for item in iteration(us=5 + i)]  # 31 to 35 us
    assert not any(f.id == "step-outlier" for f in told(tmp_path, *even).findings)


def test_two_optimizers_that_take_turns_are_one_step(tmp_path: Path) -> None:
    """A discriminator, then a generator with other work, three times."""
    discriminator = (ran("mm"), ran("tanh"), ran("mm"), ran("tanh_backward"), ran("mm"))
    turn = (
        *FORWARD,
        *BACKWARD,
        module(UPDATE, ran("add_")),
        *discriminator,
        module(UPDATE, ran("add_")),
    )
    steps = windows(tmp_path, *turn * 3)
    assert (steps.source, len(steps)) == ("Optimizer.step", 3)


def test_cleared_gradients_begin_a_step(tmp_path: Path) -> None:
    """Where the optimizer is not PyTorch's and its update has no annotation."""
    items = (module(ZERO, ran("zero_", 1)), *FORWARD, *BACKWARD, ran("add_", 4))
    phase = told(tmp_path, *items * 3)
    assert phase.step_ns == [30_000] * 3


def test_one_update_is_one_step(tmp_path: Path) -> None:
    assert windows(tmp_path, *iteration()).source == "whole"


def test_an_annotation_that_repeats_and_holds_nearly_all(tmp_path: Path) -> None:
    items = [module(f"batch {i}", *FORWARD) for i in range(3)]
    steps = windows(tmp_path, ran("fill_", 1), *items)
    assert (steps.source, steps.names[2]) == ("annotation", "batch 2")


@pytest.mark.parametrize("name", ["layer {}", "blocks.{}", "self_attn", "nccl:all_reduce"])
def test_an_annotation_of_a_layer_is_no_step(name: str, tmp_path: Path) -> None:
    items = [module(name.format(i), *FORWARD) for i in range(3)]
    assert windows(tmp_path, *items).source == "whole"


def test_an_annotation_that_holds_a_part_is_no_step(tmp_path: Path) -> None:
    """The device runs for 30 of 60 us outside of it."""
    items = [(module("forward", *FORWARD[:2]), ran("mul"), ran("add")) for _ in range(3)]
    assert windows(tmp_path, *(part for item in items for part in item)).source == "whole"


def test_of_nested_annotations_the_outer_one_is_the_step(tmp_path: Path) -> None:
    half = module("microbatch", *FORWARD), module("microbatch", *FORWARD)
    steps = windows(tmp_path, *[module("train", *half) for _ in range(3)])
    assert (steps.names, len(steps)) == (["train"] * 3, 3)


def compiled(*items: Any, number: int = 0, note: bool = False) -> tuple[Any, ...]:
    """Return a call of compiled code, after the lookup of it (which does no work)."""
    name = f"Torch-Compiled Region: {number}/0"
    region = module(name, *items) if note else op(name, inner=items, us=0)
    return op("TorchDynamo Cache Lookup", us=1), region


@pytest.mark.parametrize("note", [False, True])
@pytest.mark.parametrize("cpu", [False, True])
def test_a_compiled_model_that_is_called_again_is_a_step(
    tmp_path: Path, *, cpu: bool, note: bool
) -> None:
    """Three calls of two layers: 16 us each, in which nothing tells a lookup or many attentions."""
    work = tuple(ran(name, 4) for name in ("mm", "_softmax", "mm", "mm"))
    items = [call for _ in range(3) for call in compiled(*work, note=note)]
    phase = told(tmp_path, *items, cpu=cpu)
    assert phase.steps == 3
    if cpu:  # 1 us before the next call is a step's too; the last one ends with its work
        assert phase.step_ns == [17_000, 17_000, 16_000]
    assert "steps begin where the compiled code Torch-Compiled Region: 0/0 is called" in phase.notes


def test_a_compiled_model_with_a_graph_break_is_one_step(tmp_path: Path) -> None:
    """Two regions a forward: each holds half of the time."""
    both = (*compiled(*FORWARD), *compiled(*BACKWARD, number=1), ran("argmax", 1))
    steps = windows(tmp_path, *both * 3, cpu=True)
    assert (steps.source, steps.names) == ("compiled", ["Torch-Compiled Region: 0/0"] * 3)


def test_a_compiled_layer_is_no_step(tmp_path: Path) -> None:
    """Eight layers of 35 us, compiled alone, then a norm and a head of 3 us: 99 % of the time."""
    layers = [call for _ in range(8) for call in compiled(*LAYER)]
    head = (ran("native_layer_norm", 1), ran("mm", 2))
    assert windows(tmp_path, *layers, *head, cpu=True).source == "whole"


def test_compiled_code_that_holds_a_part_is_no_step(tmp_path: Path) -> None:
    """A compiled function beside twice as much of other work."""
    items = (*compiled(*FORWARD), ran("mul", 30))
    assert windows(tmp_path, *items * 3, cpu=True).source == "whole"


@pytest.mark.parametrize("cpu", [False, True])
def test_forwards_of_a_language_model_are_steps(tmp_path: Path, *, cpu: bool) -> None:
    """Each looks up tokens: 1 + 2 * 7 + 2 ops of 5 us."""
    phase = told(tmp_path, *model(2) * 4, cpu=cpu)
    assert phase.step_ns == [85_000] * 4
    assert any("a sequence of work that repeats 4 times" in note for note in phase.notes)


@pytest.mark.parametrize("layers", [4, 12, 40])
def test_layers_of_one_forward_are_no_steps(layers: int, tmp_path: Path) -> None:
    """At 40 layers they hold 99 % of the time."""
    assert windows(tmp_path, *model(layers)).source == "whole"


def test_forwards_without_a_table_are_steps_if_they_hold_more_than_a_layer(tmp_path: Path) -> None:
    """Six attentions are those of no layer; layers alone, or two of them, may be a model."""
    steps = windows(tmp_path, *model(6, table=False) * 3)
    assert (steps.source, len(steps)) == ("sequence", 3)
    assert windows(tmp_path, *LAYER * 6).source == "whole"
    assert windows(tmp_path, *model(2, table=False) * 3).source == "whole"


def test_three_fused_attentions_are_those_of_no_layer(tmp_path: Path) -> None:
    """A layer attends to itself and, in a decoder, to an encoder; a block of three may be three
    layers or a forward: with a head behind it, it is the forward."""
    fused = tuple(ran("_flash_attention_forward") if o is LAYER[2] else o for o in LAYER)
    head = (ran("native_layer_norm"), ran("topk"))
    assert len(windows(tmp_path, *(*fused * 3, *head) * 4)) == 4
    assert windows(tmp_path, *(*fused * 2, *head) * 4).source == "whole"
    assert windows(tmp_path, *fused * 12).source == "whole"


def test_a_first_step_with_more_work_is_a_step(tmp_path: Path) -> None:
    """It builds a mask; what ran before it is left out, and named."""
    first = (model(3)[0], ran("tril"), ran("where"), *model(3)[1:])
    phase = told(tmp_path, ran("randn", 2), ran("randn", 2), *first, *model(3) * 3)
    assert phase.kernels_per_step == [26, 24, 24, 24]
    assert phase.left_out == {"events": 2, "ns": 4_000}


def test_what_runs_behind_the_last_step_is_left_out(tmp_path: Path) -> None:
    phase = told(tmp_path, *model(2) * 4, ran("sum", 2))
    assert phase.step_ns == [85_000] * 4
    assert phase.left_out == {"events": 1, "ns": 2_000}


def test_idle_time_between_steps_belongs_to_the_later_one(tmp_path: Path) -> None:
    late = gap(us=15, launch=True)
    phase = told(tmp_path, *model(2), late, *model(2), late, *model(2))
    assert phase.step_ns == [85_000, 100_000, 100_000]


def test_iterations_of_training_with_the_allocator_off(
    real_report: Callable[[str], Report],
) -> None:
    """ResNet-18: five Optimizer.step; 3,032,397,283 ns idle in all."""
    report = real_report("../strangers2/tracelens_mi300x_ddp_resnet18_no_pool.json.gz")
    phase = report.phases["trace"]
    assert [round(ns / 1e6) for ns in phase.step_ns] == [116, 116, 1015, 1068, 1076]
    assert phase.steps == 5
    assert round(5 * phase.gap_ns) == 3_032_397_283
    [odd] = [f for f in phase.findings if f.id == "step-outlier"]
    assert "steps 0 and 1 (of 0 to 4) take 116.480 ms and 115.705 ms" in odd.text


@pytest.mark.parametrize(
    "name",
    ["switch_8b", "part_a100_bs128_1_cold", "part_a100_bs128_3_warm", "hta_mtia_inference",
     "tracelens_gemm_03_compute_misaligned", "tracelens_sdpa_01_long_seq_low_eff"],
)  # fmt: skip
def test_one_forward_stays_one_step(name: str, real_trace: Real) -> None:
    """Ten equal blocks, and ten calls of one GEMM, which a model of ten layers may be."""
    assert find_windows(load(real_trace(f"../strangers2/{name}.json.gz"))).source == "whole"


def generated(length: int, tokens: int, each: int = 1) -> tuple[Any, ...]:
    """Return a prompt, and steps of `each` tokens on as many keys more.

    The model has two layers of 64 channels and 4 heads.
    """

    def forward(rows: int, keys: int) -> tuple[Op, ...]:
        table = op("aten::embedding", [99, 64], [1, rows], inner=[ran("index_select", 1)])
        q, kv = [1, 4, rows, 16], [1, 4, keys, 16]
        layer = (
            op("aten::mm", [rows, 64], [64, 64], kernels=[k(us=rows / 8)]),
            op("aten::_scaled_dot_product_flash_attention", q, kv, kv, [], [],
               kernels=[k(us=2, name="flash_kernel")]),
            op("aten::mm", [rows, 64], [64, 64], kernels=[k(us=rows / 8)]),
        )  # fmt: skip
        return (table, *layer * 2, op("aten::argmax", [1, 99], kernels=[k(us=1)]))

    lengths = [(length, length), *((each, length + each * (1 + i)) for i in range(tokens))]
    return tuple(part for rows, keys in lengths for part in forward(rows, keys))


@pytest.mark.parametrize("cpu", [False, True])
def test_prompt_and_tokens_of_generated_text_are_two_phases(tmp_path: Path, *, cpu: bool) -> None:
    """A prompt of 64 tokens: 1 + 4 * 8 + 2 * 2 + 1 us; a token: 1 + 4 / 8 + 4 + 1."""
    path = save(chrome(*generated(64, 3), cpu=cpu), tmp_path / "t.json")
    phases = analyze(path).report.phases
    assert list(phases) == ["prefill", "decode"]
    assert phases["prefill"].step_ns == [38_000]
    assert phases["decode"].step_ns == [6_500] * 3
    kinds = [phase.phase_kind and phase.phase_kind["kind"] for phase in phases.values()]
    assert kinds == ["prefill", "decode"]
    decode = phases["decode"].phase_kind
    assert decode is not None and "each step is one token a sequence" in decode["evidence"]
    assert {row.m for row in phases["decode"].gemms if row.role != "attention"} == {1}


def test_steps_of_several_tokens_are_said_to_be_checked_drafts(tmp_path: Path) -> None:
    """Four queries of one sequence a step: what a draft model proposed is checked at once."""
    phases = analyze(save(chrome(*generated(64, 3, each=4)), tmp_path / "t.json")).report.phases
    decode = phases["decode"].phase_kind
    assert decode is not None
    assert "or a few that were drafted and are checked together: M of" in decode["evidence"]


def test_what_is_called_before_each_prompt_belongs_to_it(tmp_path: Path) -> None:
    """A call of generate() begins with 3 us of checks, which are no part of the token before."""
    call = (ran("isin", 3), *generated(64, 3))
    phases = analyze(save(chrome(*call, *call), tmp_path / "t.json")).report.phases
    assert phases["prefill"].step_ns == [41_000] * 2
    assert phases["decode"].step_ns == [6_500] * 6
    phases = analyze(save(chrome(*call), tmp_path / "t.json")).report.phases
    assert phases["prefill"].step_ns == [41_000]


def product(rows: int) -> Op:
    return op("aten::mm", [rows, 64], [64, 64], kernels=[k(us=rows / 8)])


def attended(queries: int, keys: int) -> Op:
    q, kv = [1, 4, queries, 16], [1, 4, keys, 16]
    return op("aten::_scaled_dot_product_flash_attention", q, kv, kv, [], [],
              kernels=[k(us=2, name="flash_kernel")])  # fmt: skip


def translated(tokens: int, *, lookup: bool) -> tuple[Op, ...]:
    """Return an encoder of 64 tokens, and the tokens of a decoder.

    Without a lookup it encodes sounds. The first pass of the decoder multiplies what the encoder
    made. Both have two layers of 64 channels.
    """

    def table(rows: int) -> Op:
        return op("aten::embedding", [99, 64], [1, rows], inner=[ran("index_select", 1)])

    encoder = (table(64) if lookup else ran("conv1d", 1), *(product(64), attended(64, 64)) * 2)
    passes = []
    for i in range(tokens):
        encoded = (product(64),) * (i == 0)
        layer = (product(1), attended(1, i + 1), product(1), *encoded, attended(1, 64), product(1))
        passes += [table(1), *layer * 2, ran("argmax", 1)]
    return (*encoder, *passes)


@pytest.mark.parametrize("lookup", [True, False])
def test_an_encoder_and_the_first_token_are_the_prompt(tmp_path: Path, *, lookup: bool) -> None:
    """Encoder: 1 + 2 * (8 + 2) us. A token: 1 + 2 * (3 / 8 + 4) + 1, 2 * 8 more for the first."""
    path = save(chrome(*translated(4, lookup=lookup)), tmp_path / "t.json")
    phases = analyze(path).report.phases
    assert phases["prefill"].step_ns == [21_000 + 10_750 + 16_000]
    assert phases["decode"].step_ns == [10_750] * 3


def test_encoders_of_two_calls_are_two_prompts(tmp_path: Path) -> None:
    path = save(chrome(*translated(3, lookup=True) * 2), tmp_path / "t.json")
    phases = analyze(path).report.phases
    assert phases["prefill"].step_ns == [47_750] * 2
    assert phases["decode"].step_ns == [10_750] * 4


def test_generated_text_within_one_profiler_step(tmp_path: Path) -> None:
    trace = chrome(module("ProfilerStep#0", *generated(64, 3)))
    phases = analyze(save(trace, tmp_path / "t.json")).report.phases
    assert [phase.steps for phase in phases.values()] == [1, 3]


def test_a_phase_is_chosen(tmp_path: Path) -> None:
    path = save(chrome(*generated(64, 3)), tmp_path / "t.json")
    report = analyze(path, options=Options(phase="decode")).report
    assert list(report.phases) == ["decode"]
    assert not any("--phase" in warning for warning in report.warnings)
    pair = analyze(path, baseline=path, options=Options(phase="prefill")).report
    assert pair.phases["prefill"].ladder is not None
    names = ("execute_context_1(8)_generation_0(0)", "execute_context_1(8)_generation_1(1)")
    engine = save(chrome(*(module(name, ran("mm")) for name in names)), tmp_path / "e.json")
    with pytest.raises(PrunescopeError, match="has no step of phase decode") as error:
        analyze(engine, options=Options(phase="decode"))
    assert error.value.hint == "it has prefill and mixed"


def test_a_smaller_batch_of_images_is_no_token(tmp_path: Path) -> None:
    """The last batch holds an eighth as many: its attention has as many queries a head."""

    def forward(batch: int) -> tuple[Op, ...]:
        q = [batch, 4, 16, 16]
        layer = (
            op("aten::mm", [batch * 16, 64], [64, 64], kernels=[k(us=batch)]),
            op("aten::_scaled_dot_product_flash_attention", q, q, q, [], [],
               kernels=[k(us=2, name="flash_kernel")]),
        )  # fmt: skip
        return (*layer * 6, ran("topk", 1))

    steps = windows(tmp_path, *forward(16), *forward(16), *forward(2))
    assert (steps.source, len(steps)) == ("sequence", 3)
