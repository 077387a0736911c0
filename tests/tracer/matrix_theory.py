"""FLOPs executed in a trace beside those of the theory, at the routes and blocks that were counted.

In: the kernels of a phase and the run, with what it counted. Out: Work, FLOPs a step of the
linears and of attention. Masked query-key pairs are executed too, so that they count on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from analysis.frame import Kernels
from taxonomy.errors import PrunescopeError
from taxonomy.family import family
from taxonomy.plan import Op, Workload
from taxonomy.run import Run
from taxonomy.shape import ModelShape

PROMPT, STEPS = 16, 2
_LINEARS = (
    "q", "k", "v", "qkv", "q_a", "q_b", "kv_a", "kv_b", "o", "gate", "up", "gate_up", "down",
    "experts", "shared_expert", "residual", "lm_head",
)  # fmt: skip
_COUNTED = ("dynamic-m", "dynamic-depth")  # drawn: the dense theory at the routes that were taken
_MASKED = ("static-k-24", "static-k-mask")  # zeros on dense kernels: executed in full
_ROUTED = {"self_attn": ("q", "o"), "mlp": ("gate", "up", "down")}  # of dynamic-m
BLOCK = 2  # of dynamic-nk

Counts = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """FLOPs a step, (executed, theory); attention is None where the counts do not tell it."""

    linears: tuple[float, float]
    attention: tuple[float, float] | None

    @property
    def deviation(self) -> float:
        """The largest |executed / theory − 1|."""
        both = [self.linears, *([self.attention] if self.attention else [])]
        return max(abs(seen / told - 1) if told else float(seen > 0) for seen, told in both)


def compared(
    config: dict[str, Any], name: str, phase: str, kernels: Kernels, run: Run
) -> Work | None:
    """None where the theory does not cover the architecture."""
    counts: Counts = ((run.census or {}).get("dynamic") or {}).get(phase) or {}
    try:
        shape = ModelShape.from_config(config)
        if run.layer_map is not None:
            shape, name = _left(shape, config, run.layer_map), "dense"
        steps = [_theory(shape, name, work) for work in _works(phase)]
    except PrunescopeError:
        return None
    parts = ("router", *_LINEARS) if shape.experts else _LINEARS
    linears = [_linears(ops, parts, name, counts, step) for step, ops in enumerate(steps)]
    pairs = [_attention(shape, ops, name, phase, counts, step) for step, ops in enumerate(steps)]
    dynamic = family(name).dynamics == "dynamic"
    seen = _executed(kernels, parts), _executed(kernels, ("attention",), fused=dynamic)
    known = [one for one in pairs if one is not None]
    attention = (seen[1], sum(known) / len(known)) if known else None
    return Work((seen[0], sum(linears) / len(linears)), attention)


def _works(phase: str) -> list[Workload]:
    """One forward of the prompt, or each decode step with its own context."""
    if phase == "prefill":
        return [Workload(phase=phase, prompt_len=PROMPT, itemsize=4)]
    contexts = range(PROMPT + 1, PROMPT + 1 + STEPS)
    return [Workload(phase=phase, prompt_len=PROMPT, context=n, itemsize=4) for n in contexts]


def _theory(shape: ModelShape, name: str, work: Workload) -> list[Op]:
    one = family("dense" if name in (*_COUNTED, *_MASKED) else name)
    knobs = {"after": 1} if name == "token-drop" else {}
    return one.theory(shape, work, one.point(0.0 if one.id == "dense" else 0.5, knobs))


def _share(counts: Counts, end: str, step: int) -> float:
    """Of what the modules with this end of a name could have done in a step, what they did."""
    rows = [row for name, row in counts.items() if name.endswith(end)]
    return sum(row["active"][step] for row in rows) / sum(row["total"][step] for row in rows)


def _linears(ops: list[Op], parts: tuple[str, ...], name: str, counts: Counts, step: int) -> float:
    total = 0.0
    for op in ops:
        if op.cls != "matmul" or op.role not in parts or (op.added and op.role == "router"):
            continue
        share = 1.0
        if name == "dynamic-depth" and op.role != "lm_head":
            share = _share(counts, "", step)
        elif name == "dynamic-m":
            ends = [end for end, roles in _ROUTED.items() if op.role in roles]
            share = _share(counts, ends[0], step) if ends else 1.0
        total += share * op.layers * op.flop
    return total


def _attention(
    shape: ModelShape, ops: list[Op], name: str, phase: str, counts: Counts, step: int
) -> float | None:
    each = 2 * shape.heads * (shape.head_dim + shape.value_dim)
    active = [row["active"][step] for row in counts.values()]
    keys = PROMPT + 1 + step
    if name == "dynamic-nk":
        if phase == "prefill":
            return each * BLOCK**2 * sum(active)
        own = (keys - 1) % BLOCK + 1
        return each * sum((blocks - 1) * BLOCK + own for blocks in active)
    if name == "kv-evict" and phase == "decode":
        return each * sum(active)
    if name == "dynamic-depth" and phase == "decode":
        return None  # which steps before it filled a layer's cache was not counted in this phase
    share = 1.0
    if name in _COUNTED:
        share = _share(counts, "self_attn" if name == "dynamic-m" else "", step)
    gemms = [(op.layers, gemm) for op in ops if op.cls == "attention" for gemm in op.gemms]
    return share * sum(layers * gemm.flop for layers, gemm in gemms)


def _executed(kernels: Kernels, roles: tuple[str, ...], *, fused: bool = False) -> float:
    """2·M·N·K of every call: what a kernel without a causal mask would do. `fused`: of fused
    attention alone, beside which estimators multiply too."""
    rows = kernels.frame.filter(pl.col("main") & pl.col("role").is_in(roles))
    if fused:
        rows = rows.filter(pl.col("kind") == "attention")
    works = (kernels.works[call] for call in rows["call"].drop_nulls())
    return sum(gemm.flop for work in works if work for gemm in work.gemms) / kernels.num_steps


def _left(shape: ModelShape, config: dict[str, Any], kept: list[int]) -> ModelShape:
    """The dense shape of the layers that were kept, each of its own kind."""
    usual = "sliding_attention" if shape.sliding_layers == shape.layers else "full_attention"
    kinds = config.get("layer_types") or [usual] * shape.layers
    dense = int(config.get("first_k_dense_replace") or 0)
    moe = sum(i >= dense for i in kept) if 0 < shape.moe_layers < shape.layers else None
    return replace(
        shape,
        layers=len(kept),
        sliding_layers=sum(kinds[i] == "sliding_attention" for i in kept) if shape.window else 0,
        moe_layers=len(kept) * bool(shape.moe_layers) if moe is None else moe,
    )
