"""One side of a phase in numbers: totals, coverage, bounds, and the kernels with the most time.

In: a phase of a side. Out: `Totals` and `KernelRow`s; times are in ns per step.
"""

from __future__ import annotations

from collections import Counter
from statistics import median
from typing import Any

import msgspec
import polars as pl

from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.kernels.columns import is_one_of
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.role import PRODUCT_KINDS
from prunescope.analysis.ledger.noise import wall_interval
from prunescope.analysis.ledger.samples import Samples, samples_of
from prunescope.analysis.schema.report import KernelRow, clock
from prunescope.analysis.schema.sides import ColdSteps, TimeScale, Totals, Unprofiled
from prunescope.taxonomy.roles import UNPLACED
from prunescope.taxonomy.runs.run import PhaseRun

_MOST = 0.5  # of the busy time
_PASSES = ("forward", "training")  # kinds of phases that decode nothing
_COLOURS = 3  # channels of an image; latents of a diffusion model have others
_IMAGE_RANK = 4  # [B, C, H, W]


def totals(phase: SidePhase) -> Totals:
    """Sum up a side; memory, tokens and samples are those of its manifest."""
    frame, steps, run = phase.kernels.frame, phase.kernels.num_steps, phase.run
    cold = phase.kernels.host.cold_steps
    wall = phase.kernels.wall / steps
    unprofiled = _unprofiled(samples_of(run), run)
    images = _images(phase)
    rows = images or (run.tokens_per_step if run else phase.kernels.shapes.tokens)
    took = unprofiled.median if unprofiled else wall
    rate = rows * 1e9 / took if rows and took else None
    of_items = images is not None or (run is not None and _is_of_items(run))
    return Totals(
        steps=steps,
        wall_ns=wall,
        busy_ns=total(frame, "busy") / steps,
        gap_ns=total(frame, "gap") / steps,
        tail_ns=phase.kernels.trailing_idle / steps,
        tokens_per_s=None if of_items else rate,
        items_per_s=rate if of_items else None,
        weight_bytes=phase.side.run.weight_bytes if phase.side.run else None,
        peak_memory_bytes=run.peak_memory_bytes if run else None,
        kv_bytes=run.kv_bytes if run else None,
        unprofiled_ns=unprofiled,
        profiler_overhead_ratio=wall / unprofiled.median if unprofiled else None,
        coverage=_coverage(frame),
        bound=_bounds(frame, steps),
        kinds=_sums(frame, "kind", steps),
        roles=_sums(frame, "role", steps),
        kernels_per_step=phase.kernels.kernels_per_step,
        step_ns=phase.kernels.linked.wall.tolist(),
        cold_steps=ColdSteps(step_ns=cold.walls, first_call_ns=cold.first_calls)
        if cold.walls
        else None,
        first_call_ns=phase.kernels.host.first_call_ns / steps,
        earlier_work_ns=phase.kernels.linked.earlier_work_ns / steps,
        shapes=_shape_sources(frame),
        phase_kind=msgspec.UNSET if phase.kind is None else phase.kind,
    )


def time_scale(sums: Totals, *, on_device: bool) -> TimeScale | None:
    """Return the factors from recorded times to the unprofiled step, as the ledger scales them.

    On a CPU all times are scaled, on a device the idle ones. None without samples, or without idle
    time that could be scaled.
    """
    unprofiled, idle = sums.unprofiled_ns, sums.wall_ns - sums.busy_ns
    if unprofiled is None or sums.wall_ns <= 0:
        return None
    if not on_device:
        whole = unprofiled.median / sums.wall_ns
        return TimeScale(busy=whole, idle=whole)
    if idle <= 0 or unprofiled.median <= sums.busy_ns:  # no idle time that could be scaled
        return None
    return TimeScale(busy=1.0, idle=(unprofiled.median - sums.busy_ns) / idle)


def _images(phase: SidePhase) -> float | None:
    """Return the images per step of a trace alone, whose model decodes no tokens; else None."""
    if phase.run is not None or phase.kernels.shapes.tokens is not None or phase.kind is None:
        return None
    return _images_of_convolutions(phase.kernels) if phase.kind["kind"] in _PASSES else None


def _images_of_convolutions(kernels: Kernels) -> float | None:
    """Return the images per step by the convolution that reads them, [B, 3, H, W].

    That is B times its calls per step. None where no convolution reads images, several that differ
    do (views of one image, say), or tokens are embedded as well.
    """
    frame = kernels.frame
    if (frame["kind"] == "embedding").any() or (frame["role"] == "embedding").any():
        return None
    convolutions = frame["call"].filter((frame["kind"] == "conv") & frame["primary"])
    read: dict[tuple[object, ...], int] = {}  # images of all steps, by the weights that read them
    for call, count in Counter(convolutions.drop_nulls()).items():
        image, weight = (*kernels.shapes.calls[call].shapes, (), ())[:2]
        if not isinstance(image, tuple) or not isinstance(weight, tuple):
            continue
        if len(image) == _IMAGE_RANK and image[1] == _COLOURS and isinstance(image[0], int):
            read[weight] = read.get(weight, 0) + image[0] * count
    return sum(read.values()) / kernels.num_steps if len(read) == 1 else None


def pass_kind(phase: SidePhase) -> str | msgspec.UnsetType:
    """Return "forward" or "training" where a step is one; unset where it decodes."""
    if phase.run is None:
        kind = phase.kind["kind"] if phase.kind is not None else None
        return kind if kind in _PASSES else msgspec.UNSET
    decodes = phase.name in ("prefill", "decode") and not _is_of_items(phase.run)
    if phase.name == "training":
        return phase.name
    return msgspec.UNSET if decodes or phase.run.cache != "none" else "forward"


def _is_of_items(run: PhaseRun) -> bool:
    """Return whether a model without a cache was given one row per item, as images are.

    It was given them in one call of a step or in several, as a loop that denoises them makes.
    """
    return run.cache == "none" and run.prompt_len == 1


def total(frame: pl.DataFrame, column: str) -> int:
    """Sum a column of whole ns."""
    return int(frame[column].sum())


def is_known(kernels: Kernels) -> bool:
    """Return whether sums of work say something.

    They do where no large work is hidden in most of the busy time.
    """
    share = _coverage(kernels.frame)
    largest = min(share["kind"], share["gemm_work"])  # where there is no GEMM, all the work counts
    return kernels.has_shapes and max(share["work"], largest) >= _MOST


def kernel_rows(frame: pl.DataFrame, steps: int, count: int) -> list[KernelRow]:
    """Return the `count` kernels with the most time, by name, kind and role."""
    if frame.is_empty():
        return []
    keys = ["name", "kind", "role"]
    rows = frame[[*keys, "op", "bound", "busy", "duration", "category", "ideal"]]
    sums = (
        rows.group_by(keys)
        .agg(
            pl.col("busy").sum(),
            pl.len().alias("count"),
            pl.col("duration").filter(pl.col("category").is_not_null()).sum().alias("ran"),
            pl.col("ideal").sum(),
            pl.col("ideal").is_null().any().alias("unclear"),
        )
        .sort(["busy", "name", "role", "kind"], descending=[True, False, False, False])
        .head(count)
    )
    bounds, ops = _largest_part(rows, keys, "bound"), _largest_part(rows, keys, "op")
    return [
        KernelRow(
            name=row["name"] or "?",
            kind=row["kind"],
            role=row["role"],
            count=row["count"] / steps,
            busy_ns=row["busy"] / steps,
            bound=bounds[row["name"], row["kind"], row["role"]],
            efficiency=_efficiency(row),
            duration_ns=row["ran"] / steps or None,
            op=ops[row["name"], row["kind"], row["role"]],
        )
        for row in sums.iter_rows(named=True)
    ]


def _largest_part(rows: pl.DataFrame, keys: list[str], column: str) -> dict[Any, Any]:
    """Return, for each group of rows, the value of a column with the most busy time.

    Of equal times none comes first, else the first value by name.
    """
    parts = rows.group_by(*keys, column).agg(pl.col("busy").sum())
    parts = parts.sort("busy", column, descending=[False, True], nulls_last=True)
    return {tuple(key): value for *key, value, _ in parts.iter_rows()}  # the last of each stays


def _efficiency(row: dict[str, Any]) -> float | None:
    known = clock(row["busy"], row["ran"])
    return row["ideal"] / known if known and not row["unclear"] else None


def _unprofiled(samples: Samples, run: PhaseRun | None) -> Unprofiled | None:
    """Return the statistics of the samples without a profiler; None without samples."""
    if not len(samples):
        return None
    costs = [placement.cost_ns for placement in run.placements] if run else []
    has_costs = samples.has_placements and any(costs)
    return Unprofiled(
        median=samples.wall,
        mean=float(samples.ns.mean()),
        ci95=wall_interval(samples),
        samples=samples.ns.tolist(),
        placements=list(samples.per_placement) if samples.has_placements else msgspec.UNSET,
        placements_requested=(run and run.placements_requested) or msgspec.UNSET,
        until=(run and run.until) or msgspec.UNSET,
        placement_cost_ns=float(median(costs)) if has_costs else msgspec.UNSET,
    )


def _coverage(frame: pl.DataFrame) -> dict[str, float]:
    """Return the shares of busy time with a kind, a work model and a role.

    Auxiliary kernels count with their op. `gemm_work` is the share of the products with a work
    model.
    """
    busy, modelled = frame["busy"], frame["modelled"]
    product = is_one_of(frame["class"], ("matmul", "attention"))

    def share(known: pl.Series, of: int) -> float:
        return int(busy.filter(known).sum()) / of if of else 0.0

    of_all, of_products = int(busy.sum()), int(busy.filter(product).sum())
    return {
        "kind": share(frame["kind"] != "unknown", of_all),
        "work": share(modelled, of_all),
        "role": share(~is_one_of(frame["role"], UNPLACED), of_all),
        "gemm_work": share(product & modelled, of_products),
    }


def _shape_sources(frame: pl.DataFrame) -> dict[str, float]:
    """Return the shares of the time of GEMMs and attention by where their shapes come from.

    The softmax of an attention of separate ops and the auxiliary kernels of a GEMM have no M, N and
    K.
    """
    product = is_one_of(frame["kind"], PRODUCT_KINDS)
    busy, sources = frame["busy"].filter(product), frame["shapes"].filter(product)
    of_all = int(busy.sum())
    named = sorted(sources.drop_nulls().unique()) if of_all else ()
    return {name: int(busy.filter(sources == name).sum()) / of_all for name in named}


def _bounds(frame: pl.DataFrame, steps: int) -> dict[str, float]:
    busy, bound = frame["busy"], frame["bound"]
    names = ("compute", "memory", "latency", "unknown")
    bounds = {name: int(busy.filter(bound == name).sum()) / steps for name in names}
    bounds["launch"] = int(frame["gap"].filter(frame["starved"]).sum()) / steps
    return bounds


def _sums(frame: pl.DataFrame, column: str, steps: int) -> dict[str, float]:
    sums = frame[[column, "busy"]].group_by(column).agg(pl.col("busy").sum())
    sums = sums.sort(["busy", column], descending=[True, False])
    return {name: ns / steps for name, ns in sums.iter_rows()}
