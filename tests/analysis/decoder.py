"""A small decoder as a trace, and runs made of such traces. No test in it.

In: the layers, one `Layer` each. Out: a Chrome trace with our annotations, and run folders. Kernel
times are those of the dense shapes unless `slow` says otherwise, so that a test can sum them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunescope.taxonomy.runs.run import PhaseRun, sha256_of
from tests.analysis import run_folder
from tests.chrome import chrome, k, module, op, step

HEAD = 16  # head_dim
TOKENS_32 = {"prompt_len": 32, "positions": [0, 32], "context": 32, "tokens_per_step": 32,
             "steps": 2}  # fmt: skip
SPARSE_KERNEL = "sm80_xmma_sparse_gemm_bf16_sptensor_kernel"


@dataclass(frozen=True)
class Layer:
    """Dimensions of one layer. `rank`: roles that are two GEMMs through a rank. `sparse`: roles
    that are 2:4. `maps`: residual maps. `out`: N of o, where the pruning is broken."""

    h: int = 64
    heads: int = 4
    kv_heads: int = 2
    f: int = 96
    f_down: int | None = None
    attention: bool = True
    mlp: bool = True
    rank: Mapping[str, int] = field(default_factory=dict)
    sparse: tuple[str, ...] = ()
    maps: bool = False
    added: tuple[Any, ...] = ()  # ops in q's scope
    stands: tuple[Any, ...] = ()  # ops of what stands in attention's place


@dataclass(frozen=True)
class Setting:
    """How a decoder is run: rows T, dtype, attention ("sdpa" | "eager"), CPU, steps."""

    rows: int = 32
    dtype: str = "c10::BFloat16"
    attention: str = "sdpa"
    cpu: bool = False
    steps: int = 2
    us: float = 10.0  # of every GEMM
    gap_us: float = 1.0  # before every GEMM
    head: bool = True  # an lm_head
    vocabulary: int = 128


def gemm(setting: Setting, n: int, k_in: int) -> Any:
    kernel = k(us=setting.us, name="gemm", gap_us=setting.gap_us)
    return op("aten::mm", [setting.rows, k_in], [k_in, n], dtype=setting.dtype, kernels=[kernel])


def sparse_gemm(setting: Setting, n: int, k_in: int) -> Any:
    kernel = k(us=setting.us, name=SPARSE_KERNEL, gap_us=setting.gap_us)
    return op("aten::_cslt_sparse_mm", [n * k_in * 9 // 16], [k_in, setting.rows],
              dtype=setting.dtype, kernels=[kernel])  # fmt: skip


def pointwise(setting: Setting, name: str, width: int, inputs: int = 2) -> Any:
    shape = [setting.rows, width]
    return op(name, *[shape] * inputs, dtype=setting.dtype, kernels=[k(us=2, name="elementwise")])


def _linear(at: str, role: str, layer: Layer, setting: Setting, *dims: int) -> Any:
    n, k_in = dims
    if role in layer.rank:
        rank = layer.rank[role]
        work = [gemm(setting, rank, k_in), gemm(setting, n, rank)]
    else:
        work = [(sparse_gemm if role in layer.sparse else gemm)(setting, n, k_in)]
    added = layer.added if role == "q" else ()
    return module(f"{at}.{role}_proj", *work, *added)


def _attend(layer: Layer, setting: Setting) -> list[Any]:
    s = setting.rows
    if setting.attention == "sdpa":
        shapes = ([1, layer.heads, s, HEAD], *[[1, layer.kv_heads, s, HEAD]] * 2)
        return [op("aten::_scaled_dot_product_flash_attention", *shapes, dtype=setting.dtype,
                   kernels=[k(us=8, name="flash_fwd")])]  # fmt: skip

    def bmm(n: int, k_in: int) -> Any:
        return op("aten::bmm", [layer.heads, s, k_in], [layer.heads, k_in, n], dtype=setting.dtype,
                  kernels=[k(us=3, name="gemm")])  # fmt: skip

    soft = op("aten::_softmax", [1, layer.heads, s, s], dtype=setting.dtype,
              kernels=[k(us=2, name="softmax")])  # fmt: skip
    return [bmm(s, HEAD), soft, bmm(HEAD, s)]


def layer_scope(number: int, layer: Layer, setting: Setting) -> Any:
    at = f"model.layers.{number}"
    h, q, kv = layer.h, layer.heads * HEAD, layer.kv_heads * HEAD
    inputs = (("q", q), ("k", kv), ("v", kv))
    items: list[Any] = []
    residual = pointwise(setting, "aten::add", h)
    if layer.attention:
        attn = f"{at}.self_attn"
        items += [
            module(f"{at}.input_layernorm", pointwise(setting, "aten::mul", h)),
            module(attn, *(_linear(attn, r, layer, setting, n, h) for r, n in inputs),
                   *_attend(layer, setting), _linear(attn, "o", layer, setting, h, q)),
            *([module(f"{at}.attn_shortcut", gemm(setting, h, h))] if layer.maps else []),
            residual,
        ]  # fmt: skip
    if layer.stands:
        items += [module(f"{at}.self_attn", *layer.stands), residual]
    if layer.mlp:
        mlp = f"{at}.mlp"
        items += [
            module(f"{at}.post_attention_layernorm", pointwise(setting, "aten::mul", h)),
            module(mlp, *(_linear(mlp, r, layer, setting, layer.f, h) for r in ("gate", "up")),
                   pointwise(setting, "aten::mul", layer.f),
                   _linear(mlp, "down", layer, setting, h, layer.f_down or layer.f)),
            *([module(f"{at}.mlp_shortcut", gemm(setting, h, h))] if layer.maps else []),
            residual,
        ]  # fmt: skip
    return module(at, *items)


def decoder(layers: Mapping[int, Layer] | Sequence[Layer], setting: Setting | None = None) -> Any:
    """The trace of a decoder: a step that is thrown away, then `setting.steps` equal ones."""
    setting = setting or Setting()
    numbered = dict(layers) if isinstance(layers, Mapping) else dict(enumerate(layers))
    scopes = [layer_scope(i, x, setting) for i, x in numbered.items()]
    width = next(iter(numbered.values())).h
    head = [module("lm_head", gemm(setting, setting.vocabulary, width))] if setting.head else []
    model = [
        module("model", *scopes, module("model.norm", pointwise(setting, "aten::mul", width))),
        *head,
    ]
    steps = [step(i, *model) for i in range(setting.steps)]
    return chrome(module("prunescope.step#warmup", *model), *steps, cpu=setting.cpu)


def matrix(layer: int, role: str, zeros: float, groups: float = 0.0) -> dict[str, Any]:
    """One row of a census."""
    scope = "self_attn" if role in "qkvo" else "mlp"
    name = f"model.layers.{layer}.{scope}.{role}_proj.weight"
    return {"name": name, "layer": layer, "role": role,
            "shape": [64, 64], "zeros": zeros, "groups_2_of_4": groups, "zero_rows": 0.0,
            "zero_columns": 0.0}  # fmt: skip


def census(zeros: float, groups: float = 0.0, *, layers: int = 4) -> dict[str, Any]:
    roles = ("q", "k", "v", "o", "gate", "up", "down")
    return {"matrices": [matrix(i, r, zeros, groups) for i in range(layers) for r in roles]}


def write_run(folder: Path, trace: dict[str, Any], **more: Any) -> Path:
    """A run of one phase, "prefill". `more`: fields of the phase, or else of the run."""
    phase = {k: v for k, v in more.items() if k in PhaseRun.__struct_fields__}
    plain: dict[str, Any] = {
        "model": {"id": "a-model"}, "dtype": "bfloat16", "versions": {}, "seeds": {},
        "device": {"kind": "cuda", "name": "NVIDIA H100 80GB HBM3"},
    }  # fmt: skip
    run = plain | {k: v for k, v in more.items() if k not in phase}
    return run_folder.write_run(folder, trace, phase_fields=TOKENS_32 | phase, **run)


def write_pair(folder: Path, dense: dict[str, Any], pruned: dict[str, Any], **more: Any) -> Path:
    """F/dense and F/pruned; `more` of the pruned run, or of both where it says `both_<field>`, or
    of the dense one where it says `dense_<field>`."""
    both = {k[5:]: v for k, v in more.items() if k.startswith("both_")}
    of_dense = {k[6:]: v for k, v in more.items() if k.startswith("dense_")}
    own = {k: v for k, v in more.items() if not k.startswith(("both_", "dense_"))}
    twin = write_run(folder / "dense", dense, **both, **of_dense)
    manifest = twin / "run.json"
    link = {"path": "../dense/run.json", "sha256": sha256_of(manifest)}
    write_run(folder / "pruned", pruned, twin=link, **both, **own)
    return folder
