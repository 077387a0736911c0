"""The numbers that arXiv 2606.09080 prints, as values: what `prunescope reproduce` compares with.

`paper.json` holds them as the paper does; a test recomputes what follows from others.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

import msgspec

FIGURE_2, FIGURE_5, FIGURE_6 = "Fig. 2", "Fig. 5", "Fig. 6"
STEP_TIME, ALL_SETTINGS = "Fig. 2, whole step", "Fig. 5, all settings"
ALIGNMENT, GEMM_STEPS, PERPLEXITY, TASKS = "alignment", "GEMM steps", "perplexity", "tasks"
# The quantity of each figure.
QUANTITIES = {
    FIGURE_2: "share of the dense step",
    STEP_TIME: "time of the dense step, ms",
    FIGURE_5: "speedup of the model",
    ALL_SETTINGS: "lowest and highest speedup of the model over batches and lengths",
    FIGURE_6: "speedup of one layer alone",
    ALIGNMENT: "speedup, relative to multiples of 16",
    GEMM_STEPS: "speedup of one GEMM alone",
    PERPLEXITY: "perplexity over dense, after recovery",
    TASKS: "mean relative change of the scores of tasks, after recovery",
}
# The setting of Figs. 2 and 6, and of the study of alignment.
_AT_32K: dict[str, Any] = {"batch": 1, "prompt_len": 32768}
LOWEST, HIGHEST = "lowest", "highest"


class Setup(msgspec.Struct, kw_only=True, frozen=True):
    """The settings with which the paper measured."""

    model: str
    device: str
    dtype: str
    torch: str
    mode: str
    logits: str
    flush: bool
    warmup: int
    repeats: int
    draws: int
    sparsities: list[float]
    batches: list[int]
    prompt_lens: list[int]
    phases: list[str]
    set: list[str]
    select: str
    recover: str
    text: str
    placements: str


class Step(msgspec.Struct, kw_only=True, frozen=True):
    """The dense step of Fig. 2: its time, and shares of it by category; `gap`: launches."""

    wall_ns: float
    shares: dict[str, float]
    gap: float


class GemmSteps(msgspec.Struct, kw_only=True, frozen=True):
    """The speedup of one GEMM over the pruned shares of N and of K."""

    m: int
    n: int
    k: int
    pruned: list[float]
    of_n: list[float] = msgspec.field(name="N")
    of_k: list[float] = msgspec.field(name="K")


class Paper(msgspec.Struct, kw_only=True, frozen=True):
    """The content of paper.json.

    Rows of `figure_5`: family, phase, batch, length, speedup at s = 0.5. Rows of `figure_5_ends`:
    family, phase, sparsity, the lowest and the highest speedup over batches and lengths.
    """

    source: str
    setup: Setup
    figure_2: dict[str, Step]
    figure_5: list[tuple[str, str, int, int, float]]
    figure_5_ends: list[tuple[str, str, float, float, float]]
    figure_6_ns: dict[str, dict[str, float]]
    alignment: list[tuple[str, str, float]]  # align, family, relative speedup
    gemm: GemmSteps
    dense_perplexity: float
    perplexity: list[tuple[str, float, float]]  # family, sparsity, perplexity
    tasks_percent: list[tuple[str, float, float]]  # family, sparsity, mean change of seven tasks


class PublishedValue(msgspec.Struct, kw_only=True, frozen=True):
    """One number of the paper.

    `name`: a family, a category, or an axis of a GEMM; `at`: what else places it, an alignment, a
    share, or which end.
    """

    figure: str
    name: str
    value: float
    phase: str | None = None
    batch: int | None = None
    prompt_len: int | None = None
    sparsity: float | None = None
    at: str | None = None


@cache
def paper() -> Paper:
    """Read the numbers of the paper."""
    data = resources.files("prunescope.taxonomy").joinpath("paper.json").read_bytes()
    return msgspec.json.decode(data, type=Paper)


def families_of(of: Paper) -> list[str]:
    """Return the families of the paper's Fig. 5, in its order."""
    return list(dict.fromkeys(family for family, *_ in of.figure_5))


def published(of: Paper) -> Iterator[PublishedValue]:
    """Yield every number of the paper, in the order of its figures."""
    yield from _values_of_steps(of)
    yield from _values_of_models(of)
    yield from _values_of_layers(of)
    yield from _values_of_shapes(of)
    yield from _values_of_quality(of)


def _values_of_steps(of: Paper) -> Iterator[PublishedValue]:
    """Yield the numbers of Fig. 2: shares of the dense step, and its time."""
    for phase, step in of.figure_2.items():
        for name, share in [*step.shares.items(), ("idle", step.gap)]:
            yield PublishedValue(figure=FIGURE_2, name=name, value=share, phase=phase, **_AT_32K)
    for phase, step in of.figure_2.items():
        ms = step.wall_ns / 1e6
        yield PublishedValue(figure=STEP_TIME, name="dense", value=ms, phase=phase, **_AT_32K)


def _values_of_models(of: Paper) -> Iterator[PublishedValue]:
    """Yield the numbers of Fig. 5: speedups of the model."""
    for family, phase, batch, length, speedup in of.figure_5:
        where: dict[str, Any] = {"phase": phase, "batch": batch, "prompt_len": length}
        yield PublishedValue(figure=FIGURE_5, name=family, value=speedup, sparsity=0.5, **where)
    for family, phase, sparsity, *ends in of.figure_5_ends:
        for at, speedup in zip((LOWEST, HIGHEST), ends, strict=True):
            where = {"phase": phase, "sparsity": sparsity, "at": at}
            yield PublishedValue(figure=ALL_SETTINGS, name=family, value=speedup, **where)


def _values_of_layers(of: Paper) -> Iterator[PublishedValue]:
    """Yield the numbers of Fig. 6: speedups of one layer."""
    for phase, layer in of.figure_6_ns.items():
        for family in [name for name in layer if name != "dense"]:
            speedup = layer["dense"] / layer[family]
            yield PublishedValue(
                figure=FIGURE_6, name=family, value=speedup, phase=phase, sparsity=0.5, **_AT_32K
            )


def _values_of_shapes(of: Paper) -> Iterator[PublishedValue]:
    """Yield the numbers of the studies of alignment and of single GEMMs."""
    usual = {family: value for align, family, value in of.alignment if align == "16"}
    where = {"phase": "prefill", "sparsity": 0.5, **_AT_32K}
    for align, family, value in of.alignment:
        relative = value / usual[family]
        yield PublishedValue(figure=ALIGNMENT, name=family, value=relative, at=align, **where)
    for axis, speedups in (("N", of.gemm.of_n), ("K", of.gemm.of_k)):
        for share, speedup in zip(of.gemm.pruned, speedups, strict=True):
            yield PublishedValue(figure=GEMM_STEPS, name=axis, value=speedup, at=f"{share:g}")


def _values_of_quality(of: Paper) -> Iterator[PublishedValue]:
    """Yield the perplexities and the changes of task scores."""
    for family, sparsity, perplexity in of.perplexity:
        ratio = perplexity / of.dense_perplexity
        yield PublishedValue(figure=PERPLEXITY, name=family, value=ratio, sparsity=sparsity)
    for family, sparsity, percent in of.tasks_percent:
        yield PublishedValue(figure=TASKS, name=family, value=percent / 100, sparsity=sparsity)
