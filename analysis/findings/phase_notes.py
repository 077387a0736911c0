"""What a reader of a phase must know of its kernels: replays, roles by order, kernels side by side,
communication.

In: Kernels. Out: sentences.
"""

from __future__ import annotations

import polars as pl

from prunescope.analysis.findings.context import ms, shortened
from prunescope.analysis.kernels.frame import Kernels
from prunescope.analysis.kernels.replay import replayed_begin
from prunescope.analysis.schema.report import WHOLE_TRACE
from prunescope.analysis.timeline.intervals import alone_ns, carry_over_ns, union_ns

_HIDDEN = 0.05  # of the wall


def notes(kernels: Kernels) -> list[str]:
    """All that is to be said of the kernels of a phase."""
    said = list(kernels.notes)
    if kernels.windows.source == "whole":
        said.append(WHOLE_TRACE)
    if kernels.replay_note is not None:
        said.append(kernels.replay_note)
    elif kernels.linked.replayed.any():
        said.append(f"{replayed_begin(kernels.linked, kernels.frame)}{_whence(kernels)}")
    if _in_whole_us(kernels):
        said.append("every time of the trace is a whole µs: a short kernel's is off by up to one")
    if not kernels.calls:
        said.append(f"no host ops in the trace: kinds come from kernel names, {_unknown(kernels)}")
    if kernels.roles_from == "order":
        said.append("no module scopes in the trace: roles come from the order of kernels")
        said += _unequal_layers(kernels)
    return said + _ahead(kernels) + _hidden(kernels) + _communication(kernels)


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


def _ahead(kernels: Kernels) -> list[str]:
    """What steps launched so early that it ran before their wall, and no row has it as busy."""
    rows = kernels.frame.filter(pl.col("category").is_not_null())
    rows = rows.with_columns(early=carry_over_ns(rows)).filter(pl.col("early") > 0)
    if rows.is_empty():
        return []
    sums = rows.group_by("name").agg(pl.col("early").sum(), pl.len())
    parts = [
        f"{shortened(name or '?')} {ms(ns / kernels.num_steps)} "
        f"({count / kernels.num_steps:,.4g} events)"
        for name, ns, count in sums.sort("early", "name", descending=[True, False]).iter_rows()
    ]
    return [
        f"{len(rows) / kernels.num_steps:,.4g} events a step ran for "
        f"{ms(int(rows['early'].sum()) / kernels.num_steps)} before the step before had ended: no "
        f"busy time has that; the largest part is {parts[0]}"
    ]


def _hidden(kernels: Kernels) -> list[str]:
    """Kinds of kernels that ran beside others: what they are given of that time, their busy time,
    says less than they ran, or nothing of what else ran then."""
    rows = kernels.frame.filter(pl.col("category").is_not_null())
    rows = rows.with_columns(beside=pl.col("duration") - alone_ns(rows))
    sums = rows.group_by("kind").agg(pl.col("duration", "beside").sum())
    parts = [
        f"{kind} {ms(ran / kernels.num_steps)} ({ms(beside / kernels.num_steps)} of it "
        "beside others)"
        for kind, ran, beside in sums.sort("beside", "kind", descending=[True, False]).iter_rows()
        if beside > _HIDDEN * kernels.wall
    ]
    if not parts:
        return []
    return [
        f"kernels ran at once, and a moment counts for the one that began first; by kind they ran "
        f"{', '.join(parts)} a step"
    ]


def _communication(kernels: Kernels) -> list[str]:
    """What of communication ran beside nothing else, and what one trace cannot tell of kernels that
    wait for other ranks as they run."""
    rows = kernels.frame.filter(pl.col("category").is_not_null())
    is_comm = rows["kind"] == "comm"
    busy = int(rows.filter(is_comm)["busy"].sum())
    if busy <= _HIDDEN * kernels.wall:
        return []
    ran, others, either = (union_ns(rows.filter(which)) for which in (is_comm, ~is_comm, True))
    return [
        f"communication kernels ran {ms(ran / kernels.num_steps)} a step, "
        f"{ms((either - others) / kernels.num_steps)} of it with nothing else beside them; they "
        f"run until the last rank has come: the {ms(busy / kernels.num_steps)} of them that count "
        "as busy hold the wait for other ranks, which the trace of one rank does not tell apart"
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
