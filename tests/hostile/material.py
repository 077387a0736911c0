"""What the hostile files are made from: two small traces that are whole, and a pair of runs.

In: nothing. Out: Chrome traces (dicts) and run folders whose manifests have every field.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prunescope.taxonomy.runs.run import PhaseRun, Run, sha256_of
from tests.chrome import Scope, chrome, gap, k, module, op, save, step

GEMM = "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x3_tn"
ROWS = 32


def _layer(index: int, width: int) -> Scope:
    half = "c10::BFloat16"

    def linear(role: str, n: int, k_in: int) -> Scope:
        kernel = k(us=7, name=GEMM, gap_us=1, grid=(4, 1, 1))
        ops = op("aten::mm", [ROWS, k_in], [k_in, n], dtype=half, kernels=[kernel], us=7)
        return module(f"model.layers.{index}.{role}", ops)

    attention = op(
        "aten::_scaled_dot_product_flash_attention", *[[1, 4, ROWS, 16]] * 3, dtype=half,
        kernels=[k(us=5, name="flash_fwd_kernel")], us=5,
    )  # fmt: skip
    return module(
        f"model.layers.{index}",
        linear("self_attn.q_proj", 64, 64),
        module(f"model.layers.{index}.self_attn", attention),
        linear("self_attn.o_proj", 64, 64),
        linear("mlp.up_proj", width, 64),
        op("aten::silu", [ROWS, width], dtype=half, kernels=[k(us=2, name="silu_kernel")], us=2),
        linear("mlp.down_proj", 64, width),
    )


def decoder(*, width: int = 96, cpu: bool = False, layers: int = 2) -> dict[str, Any]:
    """A trace of two steps of a small decoder, as the tracer writes it."""
    copy = op("aten::copy_", [ROWS], [ROWS], kernels=[k(us=1, name="copy", cat="gpu_memcpy")], us=1)
    body = [_layer(i, width) for i in range(layers)]
    return chrome(*(step(i, *body, copy, gap(us=2)) for i in range(2)), cpu=cpu)


def manifest(trace: Path, *, variant: str, twin: Path | None) -> Run:
    """A manifest with a value in every field that a run can have."""
    digest = sha256_of(trace)
    phase = PhaseRun(
        batch=1, prompt_len=ROWS, positions=[0, ROWS], context=ROWS, logits="last",
        cache="dynamic", attention="sdpa", mode="eager", steps=2, tokens_per_step=ROWS, warmup=3,
        samples_ns=[120_000, 121_000, 119_000, 122_000], trace=trace.name, sha256=digest,
        peak_memory_bytes=1 << 20, kv_bytes=4096,
    )  # fmt: skip
    shape = {
        "model_type": "llama", "hidden": 64, "layers": 2, "heads": 4, "kv_heads": 4,
        "head_dim": 16, "value_dim": 16, "intermediate": 96, "vocab": 512, "gated": False,
    }  # fmt: skip
    matrix = {
        "name": "model.layers.0.mlp.up_proj", "layer": 0, "role": "up", "shape": [96, 64],
        "zeros": 0.5 if variant == "pruned" else 0.0, "groups_2_of_4": 0.1, "zero_rows": 0.0,
        "zero_columns": 0.0,
    }  # fmt: skip
    counted = {"unit": "rows", "active": [16, 16], "total": [32, 32]}
    pruned = variant == "pruned"
    return Run(
        variant=variant,
        model={"id": "tiny", "source": "preset", "architecture": "LlamaForCausalLM",
               "config": {"hidden_size": 64}, "shape": shape, "notes": ["random weights"]},
        phases={"prefill": phase},
        dtype="bf16",
        device={
            "kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "threads": 1, "properties": {},
            "peaks": {"dense_flop_per_s": {"bf16": 9e14}, "byte_per_s": 3e12,
                      "kernel_floor_ns": 1500},
            "calibration": None,
            "clocks": {"before": {"sm_hz": 1.9e9}, "after": {"sm_hz": 1.9e9}},
        },
        versions={"torch": "2.13.0"}, seeds={"inputs": 0}, argv=["trace", "--model", "tiny"],
        weight_bytes=1 << 20, parameters=1 << 19, layer_map=[0, 1] if pruned else None,
        pruning={"method": "static-nk-mlp", "sparsity": 0.5, "knobs": {}, "selection": "random",
                 "notes": ["none"]} if pruned else None,
        census={"matrices": [matrix], "dynamic": {"prefill": {"model.layers.0.mlp": counted}}},
        twin={"path": "../dense/run.json", "sha256": sha256_of(twin)} if twin else None,
        tool="prunescope 0",
        timing={"notes": []}, quality={"loss": 2.5},
    )  # fmt: skip


def write_pair(folder: Path) -> Path:
    """F with F/dense and F/pruned; returns F."""
    dense = None
    for variant, width in (("dense", 96), ("pruned", 48)):
        run = folder / variant
        run.mkdir(parents=True)
        trace = save(decoder(width=width), run / "prefill.trace.json.gz")
        made = manifest(trace, variant=variant, twin=dense)
        (run / "run.json").write_text(made.to_json())
        dense = run / "run.json"
    return folder


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside plain JSON; of a list, its first entry stands for all."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))[:1]
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy of plain JSON with the value at `path` replaced; removed where `new` is `...`."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return copy
