"""Hybrids and experts in a loop without modules: told by the order of kernels, or not at all.

orders.json holds the products that tiny models of transformers 5.24 ran, as torch.profiler recorded
them on a CPU: their order is transformers', not ours. Here they become kernels of a GPU, with
names, grids and times of their sizes.
"""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.wording.sentence import sentence
from tests.analysis.shapes.stripped import Case, save
from tests.analysis.shapes.test_damaged_traces import Damage, drop, kernels_of, merge, reorder
from tests.chrome import H100

ORDERS = json.loads(Path(__file__).with_name("orders.json").read_text(encoding="utf-8"))
CASE = Case("none", "none", "h100-sxm", {"batch": 2, "prompt_len": 32}, rows=64)
FLOP_PER_US = 1.2e6  # so that products of tiny matrices take tens of microseconds
MIXERS = {
    "qwen3_next": ["chunk_local_cumsum_scalar_kernel", "chunk_gated_delta_rule_fwd_kernel_h"],
    "bamba": ["_chunk_cumsum_fwd_kernel", "_chunk_scan_fwd_kernel"],
    "falcon_h1": ["_chunk_cumsum_fwd_kernel", "_chunk_scan_fwd_kernel"],
}
GROUPED = "void cutlass::device_kernel<cutlass::gemm::GroupProblemShape<...>>"
ATTENTION = "void pytorch_flash::flash_fwd_splitkv_kernel<pytorch_flash::Flash_fwd_kernel_traits<64"
Truth = tuple[int | None, int, int]  # M, N, K


class Writer:
    """A trace of kernels without ops, each with its number as its registers."""

    def __init__(self, model: str) -> None:
        self.rng = random.Random(model)
        self.events: list[dict[str, Any]] = []
        self.truth: dict[int, Truth] = {}
        self.ts = 1000.0

    def kernel(self, name: str, us: float, grid: list[int]) -> None:
        number = len(self.events) // 2
        us = round(us * self.rng.uniform(0.96, 1.04), 3)
        told = {"correlation": number + 1, "grid": grid, "block": [128, 1, 1], "device": 0,
                "registers per thread": number, "shared memory": 0, "stream": 7}  # fmt: skip
        launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 2,
                  "ts": self.ts - 500, "pid": 1, "tid": 1}  # fmt: skip
        self.events += [
            launch | {"args": {"correlation": number + 1}},
            {"ph": "X", "cat": "kernel", "name": name, "ts": self.ts, "dur": us, "pid": 0,
             "tid": 7, "args": told},
        ]  # fmt: skip
        self.ts += us + 1

    def linear(self, m: int, n: int, k: int, *, told: bool = True) -> None:
        self.truth[len(self.events) // 2] = (m if told else None, n, k)
        tile = 128 if n >= 128 else 64
        name = f"ampere_bf16_s16816gemm_bf16_{tile}x64_ldg8_f2f_stages_64x3_tn"
        self.kernel(name, 3 + 2 * m * n * k / FLOP_PER_US, [-(-n // tile), -(-m // 64), 1])

    def grouped(self, m: int, n: int, k: int) -> None:
        self.truth[len(self.events) // 2] = (None, n, k)
        self.kernel(GROUPED, 3 + 2 * m * n * k / FLOP_PER_US, [132, 1, 1])

    def experts(self, hidden: int, width: int, count: int) -> None:
        """As transformers before 5 ran them: each expert that has tokens, one after the other."""
        for _ in range(count):
            rows = self.rng.choice([0, 2, 5, 9, 14])
            for n, k in ((width, hidden), (width, hidden), (hidden, width)) if rows else ():
                self.linear(rows, n, k, told=False)


@cache
def traced(model: str, *, loop: bool = False) -> tuple[dict[str, Any], dict[int, Truth]]:
    writer, config = Writer(model), ORDERS[model]["config"]
    first = False
    for op, *sizes in ORDERS[model]["ops"]:
        if op == "linear":
            writer.linear(*sizes)
        elif op == "grouped" and loop:
            first = not first
            if first:
                width = config.get("moe_intermediate_size", config["intermediate_size"])
                writer.experts(config["hidden_size"], width, 8)
        elif op == "grouped":
            writer.grouped(*sizes)
        elif op == "attention":
            writer.kernel(ATTENTION, 5, [1, 8, 2])
        else:
            for name in ["void causal_conv1d_fwd_kernel<", *MIXERS.get(model, [])]:
                writer.kernel(name, 4, [2, 64, 1])
    return {"deviceProperties": [H100], "traceEvents": writer.events}, writer.truth


def read(trace: dict[str, Any], model: str, folder: Path) -> Kernels:
    config = folder / "config.json"
    config.write_text(json.dumps(ORDERS[model]["config"]), encoding="utf-8")
    path = save(trace, folder / "bare.json.gz")
    return kernels_of(path, CASE, model=str(config), **CASE.workload)


def widths(told: Kernels) -> dict[int, Truth]:
    """M, N and K of each product that is no attention, by the number of its kernel."""
    truths: dict[int, Truth] = {}
    for row in told.frame.filter("primary").iter_rows(named=True):
        work = None if row["call"] is None else told.shapes.works[row["call"]]
        if row["call"] in told.shapes.widths:
            truths[row["registers"]] = (None, *told.shapes.widths[row["call"]])
        elif work is not None and len(work.gemms) == 1:
            m = None if row["kind"] == "grouped_gemm" else work.gemms[0].m
            truths[row["registers"]] = (m, work.gemms[0].n, work.gemms[0].k)
    return truths


def without_head(truth: dict[int, Truth]) -> dict[int, Truth]:
    """Two rows or 64 are one tile: M of the head of the model is not known."""
    return truth | {max(truth): (None, *truth[max(truth)][1:])}


@pytest.mark.parametrize("model", ORDERS)
def test_every_kernel_gets_the_shape_that_it_ran(model: str, tmp_path: Path) -> None:
    trace, truth = traced(model)
    told = read(trace, model, tmp_path)
    assert widths(told) == without_head(truth)
    layers = ORDERS[model]["config"]["num_hidden_layers"]
    assert set(told.frame["layer"].drop_nulls()) == set(range(layers))


def test_experts_in_a_loop_have_widths_and_no_rows(tmp_path: Path) -> None:
    trace, truth = traced("mixtral", loop=True)
    assert widths(read(trace, "mixtral", tmp_path)) == without_head(truth)
    assert sum(m is None for m, *_ in truth.values()) > 48


def test_a_loop_with_a_shared_expert_is_refused(tmp_path: Path) -> None:
    trace, _ = traced("qwen2_moe", loop=True)
    told = read(trace, "qwen2_moe", tmp_path)
    assert not widths(told)
    assert "in addition to a shared one" in " ".join(map(sentence, told.warnings))


def test_mixers_in_another_order_are_refused(tmp_path: Path) -> None:
    trace, _ = traced("lfm2")
    config = tmp_path / "config.json"
    kinds = ORDERS["lfm2"]["config"]["layer_types"][::-1]
    config.write_text(json.dumps(ORDERS["lfm2"]["config"] | {
        "layer_types": kinds, "full_attn_idxs": [i for i, k in enumerate(kinds) if k[0] == "f"],
    }), encoding="utf-8")  # fmt: skip
    told = kernels_of(save(trace, tmp_path / "bare.json.gz"), CASE, model=str(config))
    assert not widths(told)
    said = " ".join(map(sentence, told.warnings))
    assert "3 attentions and 5 mixers in the trace, 3 and 5 in the config" in said


@pytest.mark.parametrize(
    ("model", "loop"), [("qwen3_next", False), ("falcon_h1", False), ("mixtral", True)]
)
@pytest.mark.parametrize("damage", [drop, merge, reorder])
@pytest.mark.parametrize("count", [1, 10])
def test_damage_leaves_the_truth_or_null(
    model: str, damage: Damage, count: int, tmp_path: Path, *, loop: bool
) -> None:
    trace, truth = traced(model, loop=loop)
    trace = copy.deepcopy(trace)
    kernels = [e for e in trace["traceEvents"] if e["cat"] == "kernel"]
    rng = random.Random(f"{model} {damage.__name__} {count}")
    launches = [e for e in trace["traceEvents"] if e["cat"] != "kernel"]
    trace["traceEvents"] = launches + damage(kernels, rng, count)
    got = widths(read(trace, model, tmp_path))
    true = without_head(truth)
    assert {n: shape for n, shape in got.items() if true.get(n) != shape} == {}
