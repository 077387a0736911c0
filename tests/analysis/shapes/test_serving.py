"""Traces of serving engines: iterations found and told apart, M from what annotates them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import prunescope
from prunescope.analysis.shapes.workload import DECODE, PREFILL, UNKNOWN, GivenWorkload, annotated
from prunescope.analysis.timeline.engine_steps import engine_step
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape
from tests.analysis.shapes.stripped import save
from tests.chrome import H100

MODEL = "qwen3-0.6b"
SHAPE = ModelShape.from_config(preset_config(MODEL))
BLOCK = [128, 1, 1]


class Engine:
    """Writes iterations as vLLM's worker runs them: a frame, launches, kernels without ops."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.host = self.device = 1_000_000.0
        self.correlation = 0

    def iteration(
        self, rows: int, *, frame: str, cat: str, attention: str | tuple[str, ...]
    ) -> None:
        begin = self.host
        for _ in range(SHAPE.layers):
            self.gemm(
                SHAPE.attention.query_width + 2 * SHAPE.attention.key_width, SHAPE.hidden, rows
            )
            for name in (attention,) if isinstance(attention, str) else attention:
                self.kernel(name, [1, rows, 8], 4.0 + rows / 50)
            self.gemm(SHAPE.hidden, SHAPE.attention.query_width, rows)
            self.gemm(2 * SHAPE.mlp.intermediate, SHAPE.hidden, rows)
            self.gemm(SHAPE.hidden, SHAPE.mlp.intermediate, rows)
        self.gemm(SHAPE.embedding.vocab, SHAPE.hidden, 4)
        self.host = max(self.host, self.device) + 20
        self.add(frame, cat, begin, self.host - begin)
        self.host += 50

    def gemm(self, n: int, k: int, rows: int) -> None:
        width = 128 if rows > 64 else 32
        name = f"ampere_bf16_s16816gemm_bf16_128x{width}_ldg8_f2f_stages_64x3_tn"
        grid = [math.ceil(n / 128), math.ceil(rows / width), 1]
        self.kernel(name, grid, 1.5 + max(2 * rows * n * k / 5e8, 2 * n * k / 2.5e6))

    def kernel(self, name: str, grid: list[int], us: float) -> None:
        self.correlation += 1
        at = {"correlation": self.correlation}
        self.add("cudaLaunchKernel", "cuda_runtime", self.host, 2.0, at)
        self.host += 3
        self.device = max(self.device, self.host + 5)
        told = {"grid": grid, "block": BLOCK, "registers per thread": 64, "shared memory": 0}
        self.add(name, "kernel", self.device, us, at | told | {"device": 0, "stream": 7}, tid=7)
        self.device += us + 1

    def add(
        self, name: str, cat: str, ts: float, dur: float, args: Any = None, tid: int = 1
    ) -> None:
        event = {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "pid": 0, "tid": tid}
        self.events.append(event | {"args": args or {}})

    def write(self, path: Path) -> Path:
        return save({"deviceProperties": [H100], "traceEvents": self.events}, path)


SPLIT = "void flash::flash_fwd_splitkv_kernel<Flash_fwd_kernel_traits<128, 64, 128, 4>>"
FRAME = "vllm/v1/worker/gpu_model_runner.py(1234): execute_model"


@pytest.mark.parametrize(
    ("frame", "cat"), [(FRAME, "python_function"), ("execute_model", "user_annotation")]
)
def test_ten_iterations_are_one_prefill_and_nine_decodes(
    frame: str, cat: str, tmp_path: Path
) -> None:
    engine = Engine()
    for rows in (512, *[4] * 9):
        engine.iteration(rows, frame=frame, cat=cat, attention=SPLIT)
    told = prunescope.analyze(
        engine.write(tmp_path / "vllm.json.gz"), model=MODEL, device="h100-sxm"
    )
    assert {name: phase.steps for name, phase in told.phases.items()} == {"prefill": 1, "decode": 9}
    for phase in told.phases.values():
        assert {g.shapes for g in phase.gemms if g.n} == {"model"}
        assert {(g.n, g.k) for g in phase.gemms if g.role == "gate_up"} == {(6144, 1024)}


def test_each_phase_has_its_rows_and_tokens(tmp_path: Path) -> None:
    engine = Engine()
    for rows in (512, *[4] * 9):
        engine.iteration(rows, frame=FRAME, cat="python_function", attention=SPLIT)
    path = engine.write(tmp_path / "vllm.json.gz")
    told = prunescope.analyze(path, model=MODEL, device="h100-sxm", batch=4, prompt_len=128)
    for name, rows in (("prefill", 512), ("decode", 4)):
        phase = told.phases[name]
        assert {g.m for g in phase.gemms if g.role == "qkv"} == {rows}
        assert phase.tokens_per_s == pytest.approx(rows * 1e9 / phase.wall_ns)


def test_rows_of_a_part_of_the_steps_are_not_those_of_all(tmp_path: Path) -> None:
    engine = Engine()
    for name, rows in (("execute_context_0(0)_generation_4(4)", 4),
                       ("execute_context_0(0)_generation_3(3)", 3)):  # fmt: skip
        engine.iteration(rows, frame=name, cat="user_annotation", attention=SPLIT)
    path = engine.write(tmp_path / "shrinks.json.gz")
    (mean,) = prunescope.analyze(path, model=MODEL, device="h100-sxm").phases.values()
    assert {g.m for g in mean.gemms if g.role == "qkv"} == {4}  # 3.5: the mean of known rows
    (phase,) = prunescope.analyze(path, model=MODEL, device="h100-sxm", batch=4).phases.values()
    rows = [g for g in phase.gemms if g.role in ("qkv", "o", "gate_up", "down")]
    assert {(g.m, g.flop) for g in rows} == {(None, None)} and all(g.n for g in rows)
    assert phase.tokens_per_s is None


def test_an_iteration_that_was_cut_off_costs_no_shapes_of_the_others(tmp_path: Path) -> None:
    engine = Engine()
    for rows in (512, *[4] * 9):
        engine.iteration(rows, frame=FRAME, cat="python_function", attention=SPLIT)
    kernels = [e for e in engine.events if e["cat"] == "kernel"]
    gone = {id(e) for e in kernels[-60:]}
    engine.events = [e for e in engine.events if id(e) not in gone]
    path = engine.write(tmp_path / "cut.json.gz")
    told = prunescope.analyze(path, model=MODEL, device="h100-sxm", batch=4, prompt_len=128)
    phase = told.phases["decode"]
    known = [g for g in phase.gemms if g.shapes == "model"]
    assert {(g.m, g.n, g.k) for g in known if g.role == "gate_up"} == {(4, 6144, 1024)}
    assert phase.shapes["model"] > 0.8 and phase.tokens_per_s is None
    assert any("1 of 9 steps" in said and "28 in the config" in said for said in told.warnings)


def test_attention_kernels_tell_phases_of_one_size(tmp_path: Path) -> None:
    engine = Engine()
    for kind in ("BatchPrefillWithPagedKVCacheKernel", *["BatchDecodeWithPagedKVCacheKernel"] * 3):
        engine.iteration(64, frame=FRAME, cat="python_function", attention=f"flashinfer::{kind}")
    told = prunescope.analyze(engine.write(tmp_path / "vllm.json.gz"), device="h100-sxm")
    assert {name: phase.steps for name, phase in told.phases.items()} == {"prefill": 1, "decode": 3}


def test_auto_names_the_preset_and_takes_nothing_from_it(tmp_path: Path) -> None:
    engine = Engine()
    for rows in (512, 4, 4):
        engine.iteration(rows, frame=FRAME, cat="python_function", attention=SPLIT)
    told = prunescope.analyze(
        engine.write(tmp_path / "vllm.json.gz"), model="auto", device="h100-sxm"
    )
    assert any(f"would be of {MODEL}" in said and "28 layers" in said for said in told.warnings)
    assert not any(g.n for phase in told.phases.values() for g in phase.gemms)


SGLANG = "execute_15360_context_15(sq15360sk15360sqsq15728640sqsk15728640)_generation_0(sq0sk0)"
GRAPH = "execute_32_context_0(sq0sk0sqsq0sqsk0)_generation_32(sq32sk32785sqsq32sqsk32785)"


@pytest.mark.parametrize(
    ("name", "phase", "rows", "heads", "queries"),
    [
        ("execute_context_1(888_788544)_generation_0(0)", PREFILL, 888, (1, 888), 888),
        ("execute_context_2(900_500000)_generation_0(0)", PREFILL, 900, (2, 900), None),
        ("execute_context_1(512_262144)_generation_3(3)", "mixed", 515, (4, 515), None),
        (SGLANG, PREFILL, 15360, (15, 15360), 1024),
        (GRAPH, DECODE, 32, (32,), 1),
        ("step[DECODE bs=8 toks=8]", DECODE, 8, (8,), 1),
        ("step[EXTEND bs=2 toks=300]", PREFILL, 300, (2,), None),
        ("step[EXTEND bs=2 toks=300 c_sq=300 c_sqsq=45000 c_sqsk=45000 c_sk=300]", PREFILL, 300,
         (2, 300), 150),
        ("step[DECODE bs=8 g_sq=8 g_sqsq=8 g_sqsk=900 g_sk=900]", DECODE, 8, (8,), 1),
        ("step[DECODE bs=4 g_sq=16 g_sqsq=64 g_sqsk=900 g_sk=225]", DECODE, 16, (4, 16), 4),
        ("step[MIXED bs=5 c=2 g=3 c_sq=300 c_sk=300 c_sqsq=45000 c_sqsk=45000 g_sq=3 g_sk=90 "
         "g_sqsq=3 g_sqsk=90]", "mixed", 303, (5, 303), None),
        ("step[DRAFT_EXTEND_V2 bs=5]", None, None, (), None),
        ("[Executor] _forward_step 7: 0 ctx reqs, 16 gen reqs", DECODE, 16, (16,), 1),
        ("[Executor] _forward_step 7: 2 ctx reqs, 3 gen reqs", "mixed", None, (5,), None),
    ],
)  # fmt: skip
def test_an_annotation_tells_rows(
    name: str, phase: str | None, rows: int | None, heads: tuple[int, ...], queries: int | None
) -> None:
    told = annotated(name, replayed=False)
    assert (told.phase, told.rows, told.heads, told.queries) == (phase, rows, heads, queries)
    assert engine_step(name) == (phase or "unknown")


def test_a_replayed_batch_that_no_engine_captures_was_padded() -> None:
    assert annotated("step[DECODE bs=13]", replayed=True).rows is None
    assert annotated("step[DECODE bs=13]", replayed=False).rows == 13
    assert annotated("step[DECODE bs=24]", replayed=True).rows == 24


def test_a_workload_tells_each_phase() -> None:
    told = GivenWorkload(batch=4, prompt_len=128, context=200)
    assert told.tokens("prefill").rows == 512 and told.tokens("decode").rows == 4
    assert told.tokens("decode").keys == 200 and told.tokens("decode").queries == 1
    assert GivenWorkload(prompt_len=128).tokens(None).heads == (1, 128)
    assert GivenWorkload(batch=4).tokens(None) is UNKNOWN
    assert GivenWorkload(batch=4, phase="decode").tokens("prefill").rows == 4


FOR_PROMPTS = "flashinfer::BatchPrefillWithPagedKVCacheKernel<128>"
FOR_TOKENS = "flashinfer::BatchDecodeWithPagedKVCacheKernel<128>"


@pytest.mark.parametrize("model", [MODEL, None])
def test_a_mixed_step_is_split_by_its_tokens(model: str | None, tmp_path: Path) -> None:
    engine = Engine()
    for name in ("execute_context_1(508_258064)_generation_4(4)",
                 "execute_context_2(252_33000)_generation_4(4)"):  # fmt: skip
        attention = (FOR_PROMPTS, FOR_TOKENS)
        engine.iteration(512 if "508" in name else 256, frame=name, cat="user_annotation",
                         attention=attention)  # fmt: skip
    path = engine.write(tmp_path / "mixed.json.gz")
    (phase,) = prunescope.analyze(path, model=model, device="h100-sxm").phases.values()
    assert phase.phase_kind is not None and phase.phase_kind["kind"] == "mixed"
    if model:
        assert {g.m for g in phase.gemms if g.role == "qkv"} == {384}  # the mean of two steps
    split = phase.phase_kind["split"]
    assert split["tokens"] == {"prompts": (508 + 252) / 2, "single": 4}
    both = split["linear_ns"]["prompts"] + split["linear_ns"]["single"]
    gemms = sum(g.busy_ns for g in phase.gemms if g.role not in ("lm_head", "attention"))
    assert model is None or both == pytest.approx(gemms)
    assert 4 / 512 < split["linear_ns"]["single"] / both < 4 / 256
    took = split["attention_ns"]
    assert took["prompts"] + took["single"] == pytest.approx(phase.kinds["attention"])
    assert any("380 of 384 tokens of a mixed step are of prompts" in n for n in phase.notes)


def test_attention_of_one_kernel_is_not_split(tmp_path: Path) -> None:
    engine = Engine()
    for _ in range(2):
        engine.iteration(512, frame="execute_context_1(508_258064)_generation_4(4)",
                         cat="user_annotation", attention=SPLIT)  # fmt: skip
    (phase,) = prunescope.analyze(engine.write(tmp_path / "one.json.gz")).phases.values()
    assert phase.phase_kind is not None
    assert "attention_ns" not in phase.phase_kind["split"]
    assert any("attention is not split" in note for note in phase.notes)


def test_prefills_decodes_and_mixed_steps_are_three_phases(tmp_path: Path) -> None:
    engine = Engine()
    for name, rows in (("execute_context_1(512_262144)_generation_0(0)", 512),
                       ("execute_context_1(888_788544)_generation_3(3)", 891),
                       ("execute_context_0(0)_generation_4(4)", 4)):  # fmt: skip
        engine.iteration(rows, frame=name, cat="user_annotation", attention=SPLIT)
    told = prunescope.analyze(engine.write(tmp_path / "three.json.gz"), model=MODEL)
    got = {
        name: {g.m for g in phase.gemms if g.role == "qkv"} for name, phase in told.phases.items()
    }
    assert got == {"prefill": {512}, "mixed": {891}, "decode": {4}}
    assert [name for name, p in told.phases.items() if "split" in (p.phase_kind or {})] == ["mixed"]
