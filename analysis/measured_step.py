"""What a dense phase measured, in the terms of a prediction: its parts, its sizes, its devices.

In: a phase of a report, its kernels frame, the shape of its model. Out: ns by part, the sizes of
the step, and over how many devices tensor parallelism splits it, all as the analysis read them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from msgspec.structs import replace

from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.role import GEMM_KINDS
from prunescope.analysis.ledger.ledger import SideTimes, subtract_profiler_overhead
from prunescope.analysis.ledger.pairing import RecordWeight
from prunescope.analysis.predict.scaled_times import (
    COMMUNICATION,
    IN_LAYERS,
    ROUTING,
    Measured,
    part_of,
)
from prunescope.analysis.schema.report import GemmRow, Phase
from prunescope.analysis.shapes.workload import annotated
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.plan import Op, Workload
from prunescope.taxonomy.roles import LINEARS, UNPLACED
from prunescope.taxonomy.shape import ModelShape
from prunescope.taxonomy.words import percent

MOST_UNKNOWN = 0.2  # of the busy time: with more, the parts that pruning shrinks are not known
_LEAST_EXPLAINED = 0.5  # of the time of GEMMs: with less, the model is another one
_UNKNOWN = ("unknown", IN_LAYERS)  # parts
_DEGREES = (1, 2, 4, 8, 16, 32)  # of tensor parallelism
# The part of kernels whose role is unknown, by what they compute.
_PART_OF_KIND = {
    "norm": "norms", "activation": "activation", "rope": "rope", "attention": "attention",
    "routing": ROUTING, "embedding": "embedding", "sampling": "sampling",
}  # fmt: skip


def parts_of(frame: pl.DataFrame, steps: int, layers: int) -> dict[str, float]:
    """Return the busy time of a frame by part, ns per step.

    A kernel belongs to the part of its role. Communication is a part of its own wherever it is
    fused, and so is what moves tokens to experts and back. Kernels without a role belong to the
    part of what they compute; what is then left is in layers where its kernel runs once per layer.
    """
    parts: defaultdict[str, float] = defaultdict(float)
    for part, row in _kernel_groups(frame, (), steps * layers):
        parts[part] += row["busy"] / steps
    return dict(parts)


def unprofiled_parts_of(
    frame: pl.DataFrame, steps: int, layers: int, *, tail_ns: float, wall_ns: float
) -> tuple[dict[str, float], float]:
    """Return the busy time of a CPU's frame by part, and its gaps, without the profiler's overhead.

    A record slows what it lies in: an op without inner ops hardly, the gaps with their module spans
    most. So scaling all times alike would leave too much of a step in gaps, which no pruning
    shrinks. The ledger subtracts the cost of a record from what each one lies in
    (`ledger.subtract_profiler_overhead`), and so does this, by part and layer.

    Args:
        frame: The frame of a phase.
        steps: Its steps.
        layers: The layers of the model.
        tail_ns: The trailing idle time of a step, ns.
        wall_ns: The unprofiled wall, ns per step.

    Returns:
        ns per step by part, and of the gaps with the trailing idle time.
    """
    groups = list(_kernel_groups(frame, ("layer",), steps * layers))
    busy, gap, inside, before = (
        np.array([float(row[name]) for _, row in groups]) / steps
        for name in ("busy", "gap", "recorded_inside", "recorded_before")
    )
    times = subtract_profiler_overhead(
        SideTimes(busy[:, None], gap[:, None], np.array([tail_ns])),
        np.array([wall_ns]),
        RecordWeight(inside, before, 0.0),
    )
    parts: defaultdict[str, float] = defaultdict(float)
    for (part, _), ns in zip(groups, times.busy[:, 0], strict=True):
        parts[part] += float(ns)
    return dict(parts), float(times.idle[0])


def _kernel_groups(
    frame: pl.DataFrame, apart: Sequence[str], runs_of_layers: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the groups of equal kernels, each with its part and sums; columns `apart` split them.

    The part is that of all kernels of a group over these columns.
    """
    rows = frame.with_columns(
        pl.col("name").fill_null("").alias("name"),
        is_one_of(frame["role"], UNPLACED).fill_null(value=True).alias("unplaced"),
    )
    keys = ["role", "kind", "name", "unplaced"]
    sums = ("busy", "gap", "recorded_inside", "recorded_before")
    groups = (
        rows.with_columns(pl.len().over(keys).alias("count"))
        .group_by([*keys, *apart])
        .agg(pl.col("count").first(), *(pl.col(name).sum() for name in sums))
    )
    for row in groups.sort([*keys, *apart]).iter_rows(named=True):
        yield _part_of_kernels(row, runs_of_layers), row


def _part_of_kernels(row: Mapping[str, object], runs_of_layers: int) -> str:
    """Return the part of a group of equal kernels that ran `count` times."""
    role, kind, count = str(row["role"]), str(row["kind"]), row["count"]
    if kind == "comm":
        return COMMUNICATION
    if not row["unplaced"]:
        if role != "experts" or kind in GEMM_KINDS or kind == "unknown":
            return part_of(role)
        return "activation" if kind == "activation" else ROUTING
    if kind in _PART_OF_KIND:
        return _PART_OF_KIND[kind]
    assert isinstance(count, int)
    return IN_LAYERS if count >= runs_of_layers > 0 else "unknown"


def check_known(measured: Measured, phase: str) -> None:
    """Raise PrunescopeError where too much of the busy time is in kernels of no known part."""
    busy = sum(measured.parts.values())
    unknown = sum(measured.parts.get(part, 0.0) for part in _UNKNOWN)
    if busy and unknown > MOST_UNKNOWN * busy:
        raise PrunescopeError(
            f"{percent(unknown / busy)} of the busy time of its {phase} is in kernels whose role "
            "is unknown, so that what a pruning shrinks is unknown too",
            hint="give the model with --model; for CUDA graphs, the trace of the capture or of an "
            "eager step with --eager-trace; or record modules. `prunescope analyze` with the same "
            "options says what the trace lacks",
        )


def measured_sizes(phase: Phase, work: Workload, names: Collection[str]) -> Workload:
    """Return a workload with the sizes of a step that its GEMMs and names show.

    The rows of the linears are the batch of a decode step, and all tokens of a prompt; attention,
    or an engine's annotation, shows how many keys a sequence has. Sizes that neither shows stay.
    """
    rows = _most_time((gemm.m, gemm.busy_ns) for gemm in phase.gemms if gemm.role in LINEARS)
    scores = [gemm for gemm in phase.gemms if gemm.group == "qk"]
    if rows is None:
        return work
    if not work.prefill:
        counted = [annotated(name, replayed=False).mean_keys for name in names]
        keys = _most_time((gemm.n, gemm.busy_ns) for gemm in scores)
        keys = keys or _most_time((mean, 1.0) for mean in counted)
        return replace(work, batch=rows, context=keys or work.context)
    length = _most_time((gemm.m, gemm.busy_ns) for gemm in scores) or work.prompt_len
    if rows % length:
        return replace(work, batch=1, prompt_len=rows)
    return replace(work, batch=rows // length, prompt_len=length)


def _most_time(values: Iterable[tuple[int | None, float]]) -> int | None:
    """Return the known value with the most time; None where none is known."""
    times: defaultdict[int, float] = defaultdict(float)
    for value, ns in values:
        if value is not None:
            times[value] += ns
    return max(times, key=lambda value: times[value]) if times else None


def tensor_degree(phase: Phase, ops_at: Mapping[int, Collection[Op]], model: str) -> int:
    """Return over how many devices tensor parallelism splits the step, by the sizes of its GEMMs.

    That is the degree at which most GEMM time has the N and K of the model's ops; 1 where no other
    explains more.

    Args:
        phase: The measured phase.
        ops_at: The ops of one device, by degree.
        model: The name of the model, for an error.

    Raises:
        PrunescopeError: Most of the time is in GEMMs of sizes that the model has at no degree.
    """
    explained = {degree: _explained_ns(phase, ops) for degree, ops in ops_at.items()}
    degree = max(explained, key=lambda degree: (explained[degree], -degree), default=1)
    sized = sum(gemm.busy_ns for gemm in _sized(phase))
    if explained and explained[degree] < _LEAST_EXPLAINED * sized:
        seen = max(_sized(phase), key=lambda gemm: gemm.busy_ns)
        raise PrunescopeError(
            f"{percent(1 - explained[degree] / sized)} of the time of its GEMMs is in sizes that "
            f"{model} does not have, as N {seen.n:,} and K {seen.k:,}",
            hint="give the config of the model that was measured with --model; `prunescope analyze "
            "--model auto` names those that fit",
        )
    return degree


def check_layers(phase: Phase, shape: ModelShape, model: str) -> None:
    """Raise PrunescopeError where a step attends in no whole number of passes over the model."""
    runs = sum(gemm.count for gemm in phase.gemms if gemm.role == "o")
    layers = shape.attention_layers
    if layers and runs and runs % layers:
        raise PrunescopeError(
            f"its step runs the output projection of {runs:g} layers, and {model} has {layers}",
            hint="give the config of the model that was measured with --model",
        )


def _sized(phase: Phase) -> list[GemmRow]:
    """Return the products by a weight whose N and K are known."""
    return [gemm for gemm in phase.gemms if gemm.n and gemm.k and gemm.group not in ("qk", "pv")]


def possible_degrees(shape: ModelShape) -> list[int]:
    """Return the degrees of tensor parallelism that the heads of a model allow."""
    heads = shape.attention.heads
    return [degree for degree in _DEGREES if degree == 1 or (heads and heads % degree == 0)]


def _explained_ns(phase: Phase, ops: Collection[Op]) -> float:
    """Return the time of the measured GEMMs that have the sizes of a model's op, or of its group.

    An engine multiplies q, k and v, or gate and up, in one GEMM.
    """
    fused: defaultdict[tuple[bool, str, int], int] = defaultdict(int)
    sizes: set[tuple[bool, str, int, int]] = set()
    for op in ops:
        if op.cls != "attention" and op.gemms and not op.added:
            key = op.role == "experts", op.group, op.gemms[0].k
            sizes.add((*key, op.gemms[0].n))
            fused[key] += op.gemms[0].n
    sizes |= {(*key, n) for key, n in fused.items()}
    return sum(
        gemm.busy_ns
        for gemm in _sized(phase)
        if (gemm.role == "experts", gemm.group, gemm.k, gemm.n) in sizes
    )
