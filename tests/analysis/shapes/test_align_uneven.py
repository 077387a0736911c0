"""Traces without shapes of models whose layers differ: each layer gets its own M, N and K back.

Made up, with grids and times of each layer's sizes; and a real trace, edited so that its layers
differ.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prunescope.analysis.wording.sentence import sentence
from prunescope.taxonomy.presets import preset_config
from prunescope.taxonomy.shape import ModelShape
from tests.analysis.shapes.stripped import H100 as REAL
from tests.analysis.shapes.stripped import SHAPES, events, save
from tests.analysis.shapes.test_align import ATTENTION, CASE, Truth, Writer, widths
from tests.analysis.shapes.test_damaged_traces import drop, kernels_of, numbered, placed
from tests.chrome import H100
from tests.taxonomy.test_layer_shapes import folder_of

WIDTHS = [1408, 1024, 768, 512, 1024, 1280]
ROWS = 64
PLAIN: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096, "intermediate_size": WIDTHS,
}  # fmt: skip
HEADS = {
    **PLAIN,
    "num_attention_heads": [8, 4, 8, 6, 2, 8],
    "num_key_value_heads": [4, 2, 4, 3, 1, 4],
}
ABSENT = {
    **PLAIN,
    "num_attention_heads": [8, 8, 0, 8, 8, 8],
    "num_key_value_heads": [4, 4, 0, 4, 4, 4],
    "intermediate_size": [1408, 1024, 768, 0, 1024, 1280],
}


def written(
    config: dict[str, Any], *, fused: bool = False
) -> tuple[dict[str, Any], dict[int, Truth]]:
    """A trace of one prefill of ROWS tokens, without ops, and the truth by kernel."""
    writer, shape = Writer("uneven"), ModelShape.from_config(config)
    for number in range(shape.layers):
        layer, h = shape.repeat_layer(number), shape.hidden
        if layer.attention.kind == "usual":
            for n in (
                (
                    layer.attention.query_width
                    + layer.attention.key_width
                    + layer.attention.value_width,
                )
                if fused
                else (
                    layer.attention.query_width,
                    layer.attention.key_width,
                    layer.attention.value_width,
                )
            ):
                writer.linear(ROWS, n, h)
            writer.kernel(ATTENTION, 5, [1, 2, layer.attention.heads])
            writer.linear(ROWS, h, layer.attention.query_width)
        if layer.mlp.kind == "usual":
            f = layer.mlp.intermediate
            for n, k in ((2 * f, h), (h, f)) if fused else ((f, h), (f, h), (h, f)):
                writer.linear(ROWS, n, k)
    writer.linear(2, shape.embedding.vocab, shape.hidden, told=False)
    return {"deviceProperties": [H100], "traceEvents": writer.events}, writer.truth


def read(trace: dict[str, Any], config: dict[str, Any], folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = save(trace, folder / "bare.json.gz")
    return kernels_of(path, CASE, model=str(folder / "config.json"), **CASE.workload)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("config", [PLAIN, HEADS, ABSENT], ids=["widths", "heads", "absent"])
def test_each_layer_gets_its_own_shapes(
    config: dict[str, Any], tmp_path: Path, *, fused: bool
) -> None:
    trace, truth = written(config, fused=fused)
    told = read(trace, config, tmp_path)
    assert widths(told) == truth, told.warnings
    rows = told.frame.filter("primary").select("registers", "layer").rows()
    assert {layer for _, layer in rows} == {*range(6), None}


def test_the_weights_beside_a_config_count_and_it_is_said(tmp_path: Path) -> None:
    trace, truth = written(PLAIN)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (4096, 512)}
    for number, width in enumerate(WIDTHS):
        at = f"model.layers.{number}"
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (512, 512) for name in "qo"}
        shapes |= {f"{at}.self_attn.{name}_proj.weight": (256, 512) for name in "kv"}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (width, 512) for name in ("gate", "up")}
        shapes[f"{at}.mlp.down_proj.weight"] = (512, width)
    folder_of(tmp_path, shapes)
    told = read(trace, {**PLAIN, "intermediate_size": 1408}, tmp_path)
    assert widths(told) == truth
    assert any(
        "512–1408 MLP channels (config: 1408)" in sentence(notice) for notice in told.warnings
    )


def test_a_segment_that_lacks_a_kernel_is_left_out(tmp_path: Path) -> None:
    trace, truth = written(PLAIN)
    kernels = [e for e in trace["traceEvents"] if e["cat"] == "kernel"]
    launches = [e for e in trace["traceEvents"] if e["cat"] != "kernel"]
    trace["traceEvents"] = launches + drop(kernels, random.Random(1), 1)
    got = widths(read(trace, PLAIN, tmp_path))
    assert got and {n: shape for n, shape in got.items() if truth[n] != shape} == {}


def test_lists_of_another_model_are_refused(tmp_path: Path) -> None:
    trace, _ = written(PLAIN)
    told = read(trace, {**PLAIN, "intermediate_size": WIDTHS[1:] + WIDTHS[:1]}, tmp_path)
    assert not widths(told)
    assert any("no shapes are taken" in sentence(notice) for notice in told.warnings)


@pytest.mark.parametrize("modules", [True, False])
def test_a_real_trace_whose_layers_were_made_to_differ(tmp_path: Path, *, modules: bool) -> None:
    """Channels of each layer of its own, 1,408 to 2,816. The kernels are persistent, a block a
    multiprocessor: grids stay, and times fall with N or K; element-wise kernels get fewer
    blocks."""
    config = preset_config(REAL.model)
    full = config["intermediate_size"]
    channels = [full - 128 * (layer * 7 % 12) for layer in range(config["num_hidden_layers"])]
    trace = json.loads(events(REAL.name))
    kernels = numbered(trace)
    truth = placed(kernels_of(save(trace, tmp_path / "whole.json.gz"), REAL), REAL)
    wanted = {}
    for number, (role, layer, n, k) in truth.items():
        width = None if layer is None else channels[layer]
        if role in ("gate", "up", "down"):
            kernels[number]["dur"] *= width / full
            n, k = (n, width) if role == "down" else (width, k)
        if role == "gate":  # its activation, and the product with up two kernels later
            for kernel in kernels[number + 1 : number + 4]:
                grid = kernel["args"]["grid"]
                if "elementwise" in kernel["name"]:
                    kernel["args"]["grid"] = [-(-grid[0] * width // full), *grid[1:]]
        wanted[number] = (role, layer, n, k)
    if not modules:
        trace["traceEvents"] = [
            e for e in trace["traceEvents"] if e.get("cat") != "python_function"
        ]
    for event in trace["traceEvents"]:
        for key in SHAPES:
            event.get("args", {}).pop(key, None)
    (tmp_path / "config.json").write_text(json.dumps({**config, "intermediate_size": channels}))
    path = save(trace, tmp_path / "bare.json.gz")
    told = kernels_of(path, REAL, model=str(tmp_path / "config.json"), **REAL.workload)
    got = placed(told, REAL)
    wrong = {n: (kernel, wanted.get(n)) for n, kernel in got.items() if wanted.get(n) != kernel}
    assert not wrong
    assert len(got) >= 0.99 * len(wanted), told.warnings
    assert len({n for role, _, n, _ in got.values() if role == "gate"}) == 12
    works = [work for work in told.shapes.works if work is not None]
    rows = {work.gemms[0].m for work in works if len(work.gemms) == 1}
    assert REAL.rows in rows
