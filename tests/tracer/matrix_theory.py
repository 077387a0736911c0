"""FLOPs executed in a trace beside those of the theory, at the routes and blocks that were counted.

In: the kernels of a phase and the run, with what it counted. Out: Work, FLOPs a step of the
linears and of attention. Masked query-key pairs are executed too, so that they count on both sides.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from msgspec.structs import replace

from prunescope.analysis.kernels.frame import Kernels
from prunescope.taxonomy.families import family
from prunescope.taxonomy.families.token_drop import ranked
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run import Run
from prunescope.taxonomy.runs.run_blocks import ModuleCounts
from prunescope.taxonomy.shape import ModelShape

PROMPT, STEPS = 16, 2
_LINEARS = (
    "q", "k", "v", "qkv", "q_a", "q_b", "kv_a", "kv_b", "o", "gate", "up", "gate_up", "down",
    "experts", "shared_expert", "mixer_in", "mixer_out", "residual", "lm_head",
)  # fmt: skip
_COUNTED = ("dynamic-m", "dynamic-depth")  # drawn: the dense theory at the routes that were taken
_MASKED = ("static-k-24", "static-k-mask")  # zeros on dense kernels: executed in full
_ROUTED = {  # of dynamic-m
    "attention": ("q", "q_a", "q_b", "kv_b", "o"),
    "mlp": ("gate", "up", "down", "experts", "shared_expert", "router"),
}
BLOCK = 2  # of dynamic-nk

Counts = dict[str, ModuleCounts]
Layers = Collection[int] | None


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


@dataclass(frozen=True)
class Case:
    """A family with some of its knobs, in a phase with `batch` sequences."""

    name: str
    phase: str
    batch: int = 1
    knobs: dict[str, str] = field(default_factory=dict)


def compared(config: dict[str, Any], case: Case, kernels: Kernels, run: Run) -> Work:
    """A family's work in a phase."""
    counts: Counts = run.census.dynamic.get(case.phase, {}) if run.census else {}
    shape = ModelShape.from_config(config)
    if run.layer_map is not None:
        shape, case = _left(shape, config, run.layer_map), dataclasses.replace(case, name="dense")
    steps = [_theory(shape, case, work) for work in _works(case)]
    parts = _parts(shape, case)
    linears = [_linears(shape, ops, case, counts, step) for step, ops in enumerate(steps)]
    pairs = [_attention(shape, ops, case, counts, step) for step, ops in enumerate(steps)]
    seen = _executed(kernels, parts), _executed(kernels, ("attention",))
    known = [one for one in pairs if one is not None]
    attention = (seen[1], sum(known) / len(known)) if known else None
    return Work((seen[0], sum(linears) / len(linears)), attention)


def _works(case: Case) -> list[Workload]:
    """One forward of the prompt, or each decode step with its own context."""
    work = Workload(phase=case.phase, batch=case.batch, prompt_len=PROMPT, itemsize=4)
    if work.prefill:
        return [work]
    return [replace(work, context=n) for n in range(PROMPT + 1, PROMPT + 1 + STEPS)]


def _drawn(case: Case) -> bool:
    """Whether what runs is drawn: then the theory is the dense one at the counted routes."""
    if case.knobs.get("exit") == "lower":
        return False
    if case.knobs.get("keys") == "routed" and case.phase == "prefill":
        return False  # int(p·S) rows of each sequence, whichever they are
    return case.name in _COUNTED


def _theory(shape: ModelShape, case: Case, work: Workload) -> list[Op]:
    dense = case.name in _MASKED or _drawn(case)
    one = family("dense" if dense else case.name)
    knobs: dict[str, Any] = {} if dense else dict(case.knobs)
    if case.name == "token-drop":
        knobs = {"after": ranked(shape).start, **knobs}
    return one.theory(shape, work, one.point(0.0 if one.id == "dense" else 0.5, knobs))


def _share(counts: Counts, step: int, *, scope: str = "", layers: Layers = None) -> float:
    """Of what the modules of a scope in these layers (all: None) could have done in a step, what
    they did."""
    places = {name: locate(name) for name in counts}
    rows = [
        counts[name]
        for name, place in places.items()
        if scope in ("", place.scope) and (layers is None or place.layer in layers)
    ]
    return sum(row.active[step] for row in rows) / sum(row.total[step] for row in rows)


def _parts(shape: ModelShape, case: Case) -> tuple[str, ...]:
    """Roles of the linears that are compared. Latents of a cache with holes are expanded by kv_b:
    how many there are was not counted in decode."""
    parts = ("router", *_LINEARS) if shape.experts.count else _LINEARS
    if (case.name, case.phase) == ("dynamic-depth", "decode"):
        return tuple(role for role in parts if role != "kv_b")
    return parts


def _linears(shape: ModelShape, ops: list[Op], case: Case, counts: Counts, step: int) -> float:
    total, name = 0.0, case.name if _drawn(case) else ""
    parts = _parts(shape, case)
    for op in ops:
        if op.cls != "matmul" or op.role not in parts or (op.added and op.role == "router"):
            continue
        share, layers = 1.0, _layers_with(shape, op.role)
        if name == "dynamic-depth" and op.role != "lm_head":
            share = _share(counts, step, layers=layers)
        elif name == "dynamic-m":
            scopes = [scope for scope, roles in _ROUTED.items() if op.role in roles]
            if op.role in ("k", "v") and case.knobs.get("keys") == "routed":
                scopes = ["attention"]
            if op.role == "kv_b" and case.phase == "prefill":
                scopes = []  # every latent is expanded there
            share = _share(counts, step, scope=scopes[0], layers=layers) if scopes else 1.0
        total += share * op.layers * op.flop
    return total


def _layers_with(shape: ModelShape, role: str) -> Layers:
    """The layers that have a linear of this role."""
    letters = list(enumerate(shape.layout))
    if role in _ROUTED["mlp"]:
        experts = role not in ("gate", "up", "down")
        return [i for i, letter in letters if letter.isupper() == experts]
    if role.startswith("mixer_") and shape.other_layers:
        return [i for i, letter in letters if letter in "mM"]
    return None if role.startswith("mixer_") else [i for i, letter in letters if letter not in "mM"]


def _attention(
    shape: ModelShape, ops: list[Op], case: Case, counts: Counts, step: int
) -> float | None:
    name, phase = case.name, case.phase
    each = 2 * shape.attention.heads * (shape.attention.head_dim + shape.attention.value_dim)
    active = [row.active[step] for row in counts.values()]
    keys = PROMPT + 1 + step
    works: dict[str, float] = defaultdict(float)
    for op in ops:
        if op.cls == "attention":
            kind = op.name.partition(".")[2]
            works[kind] += op.layers * sum(gemm.flop for gemm in op.gemms)
    windowed = works.get("sliding", 0.0)  # these layers stay as they are
    if name == "dynamic-nk":
        if phase == "prefill":
            return windowed + each * BLOCK**2 * sum(active)
        own = (keys - 1) % BLOCK + 1
        return windowed + each * sum((blocks - 1) * BLOCK + own for blocks in active)
    routed = case.knobs.get("keys") == "routed"
    if (name == "dynamic-depth" or routed) and phase == "decode" and _drawn(case):
        return None  # which steps before it filled a layer's cache was not counted in this phase
    if not _drawn(case):
        return sum(works.values())
    scope = "attention" if name == "dynamic-m" else ""
    letters = {"full": "fF", "sliding": "sS"}
    layers = {k: [i for i, one in enumerate(shape.layout) if one in letters[k]] for k in works}
    return sum(
        work * _share(counts, step, scope=scope, layers=layers[kind])
        for kind, work in works.items()
    )


def _executed(kernels: Kernels, roles: tuple[str, ...]) -> float:
    """2·M·N·K of every call: what a kernel without a causal mask would do."""
    rows = kernels.frame.filter(pl.col("primary") & pl.col("role").is_in(roles))
    # A batch of products is an estimator's, not that of a router of experts.
    rows = rows.filter((pl.col("role") != "router") | (pl.col("kind") != "batched_gemm"))
    works = (kernels.shapes.works[call] for call in rows["call"].drop_nulls())
    return sum(gemm.flop for work in works if work for gemm in work.gemms) / kernels.num_steps


def _left(shape: ModelShape, config: dict[str, Any], kept: list[int]) -> ModelShape:
    """The dense shape of the layers that were kept, each of its own kind."""
    usual = "sliding_attention" if shape.sliding_layers == shape.layers else "full_attention"
    kinds = config.get("layer_types") or [usual] * shape.layers
    dense = int(config.get("first_k_dense_replace") or 0)
    moe = sum(i >= dense for i in kept) if 0 < shape.moe_layers < shape.layers else None
    other = sum(kinds[i] in ("linear_attention", "conv") for i in kept)
    return replace(
        shape,
        layers=len(kept),
        sliding_layers=sum(kinds[i] == "sliding_attention" for i in kept)
        if shape.attention.window
        else 0,
        other_layers=other,
        mixer_layers=other if shape.other_layers else len(kept) * bool(shape.mixer_layers),
        moe_layers=len(kept) * bool(shape.moe_layers) if moe is None else moe,
    )
