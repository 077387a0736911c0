"""What a reader of a phase must know of its kernels: replays, roles by order, kernels side by side,
communication.

In: Kernels. Out: sentences.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import ms
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.schema.report import WHOLE_TRACE

_HIDDEN = 0.05  # of the wall


def notes(kernels: Kernels) -> list[str]:
    """All that is to be said of the kernels of a phase."""
    said = list(kernels.notes)
    if kernels.windows.source == "whole":
        said.append(WHOLE_TRACE)
    replayed = int(kernels.linked.replayed.sum())
    if kernels.replay_note is not None:
        said.append(kernels.replay_note)
    elif replayed:
        said.append(
            f"{replayed} kernels were launched by graph replays and have no op: {_whence(kernels)}"
        )
    if _in_whole_us(kernels):
        said.append("every time of the trace is a whole µs: a short kernel's is off by up to one")
    if not kernels.calls:
        said.append(f"no host ops in the trace: kinds come from kernel names, {_unknown(kernels)}")
    if kernels.roles_from == "order":
        said.append("no module scopes in the trace: roles come from the order of kernels")
        said += _unequal_layers(kernels)
    return said + _hidden(kernels) + _communication(kernels)


def _in_whole_us(kernels: Kernels) -> bool:
    """Whether the profiler wrote no fraction of a µs, as those of some years ago."""
    frame = kernels.frame
    times = (frame["start"] - frame["start"].min(), frame["duration"]) if len(frame) else ()
    return bool(times) and all(bool((ns % 1000 == 0).all()) for ns in times)


def _whence(kernels: Kernels) -> str:
    """Where shapes and roles of replayed kernels come from, or may come from."""
    if (kernels.frame["shapes"] == "model").any() or kernels.known:
        return "roles and shapes of their GEMMs are by the model's config"
    return "give --eager-trace, or --model with the model's config, for their shapes and roles"


def _unknown(kernels: Kernels) -> str:
    if (kernels.frame["shapes"] == "model").any() or kernels.known:
        return "shapes from the model's config"
    return "shapes are unknown (--model tells a decoder's)"


def _hidden(kernels: Kernels) -> list[str]:
    """Kinds of kernels that ran beside others, whose busy time says less than they ran."""
    rows = kernels.frame.filter(pl.col("category").is_not_null())
    sums = rows.group_by("kind").agg(pl.col("busy", "duration").sum())
    parts = [
        f"{kind} {ms(ran / kernels.num_steps)} ({ms((ran - busy) / kernels.num_steps)} of it "
        "beside others)"
        for kind, busy, ran in sums.sort("duration", descending=True).iter_rows()
        if ran - busy > _HIDDEN * max(kernels.wall, ran)
    ]
    if not parts:
        return []
    return [
        f"kernels ran at once, and a moment counts for the one that began first; by kind they ran "
        f"{', '.join(parts)} a step"
    ]


def _communication(kernels: Kernels) -> list[str]:
    """What one trace cannot tell of kernels that wait for other ranks as they run."""
    rows = kernels.frame.filter((pl.col("kind") == "comm") & pl.col("category").is_not_null())
    busy = int(rows["busy"].sum())
    if busy <= _HIDDEN * kernels.wall:
        return []
    return [
        "communication kernels run until the last rank has come: the "
        f"{ms(busy / kernels.num_steps)} of them that count as busy hold the wait for other ranks, "
        "which the trace of one rank does not tell apart"
    ]


def _unequal_layers(kernels: Kernels) -> list[str]:
    """Says so where steps, in which layers are numbered anew, do not hold as many of them."""
    layers = pl.col("layer").drop_nulls().n_unique()
    held = kernels.frame.group_by("step").agg(layers)["layer"].to_list()
    if len(set(held)) < 2:
        return []
    return [
        f"steps hold {min(held)} to {max(held)} layers, numbered from the front in each: which of "
        "them a step lacks is not known"
    ]
