"""The events of a trace other than the kernels of its steps, as a frame for export to a timeline.

In: a Trace. Out: events in time order, in ns. Their `category` is scope, op or launch on the host,
and carry-over or outside for device events that are in no step.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.trace.collector import Ints
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.scrub import scrub_all

CARRY_OVER, OUTSIDE = "carry-over", "outside"
MOST = 20_000  # events of a step that `step_events` returns, the longest


def host_events(trace: Trace) -> pl.DataFrame:
    """Return the annotations, ops and launches of the host, in time order.

    Returns:
        A frame with the columns start and duration (ns), name, category, thread, and shapes
        (those of an op's inputs; null for others).
    """
    parts = {"scope": trace.annotations, "op": trace.ops, "launch": trace.launches}
    frames = [
        _events(trace, category, table).with_columns(shapes=_input_shapes(trace, table))
        for category, table in parts.items()
    ]
    ordered = pl.concat(frames).sort("start", "duration", descending=[False, True])
    return ordered.filter(pl.col("duration") >= 0)


def step_events(trace: Trace, kernels: pl.DataFrame) -> pl.DataFrame:
    """Return what the host did in the first step of a kernels frame, in time order.

    Args:
        trace: The trace.
        kernels: The kernels frame; on a trace without a device its rows are the ops themselves, and
            only annotations are returned.

    Returns:
        A frame with the columns start and duration (ns), name, category and thread; the longest
        events where there are more than MOST.
    """
    first = kernels.filter(pl.col("step") == pl.col("step").min())
    begins = (first["start"].min(), first["launched"].min())
    begin = min((time for time in begins if isinstance(time, int)), default=0)
    end = (first["start"] + first["duration"]).max()
    end = end if isinstance(end, int) else 0
    tables = {"scope": trace.annotations}
    if trace.on_device:
        tables |= {"op": trace.ops, "launch": trace.launches}
    rows = []
    for number, table in enumerate(tables.values()):
        is_open = (table["ts"] < end) & (table["ts"] + table["dur"] > begin)
        inside = np.flatnonzero(is_open & (table["dur"] >= 0))
        columns = [table[name][inside] for name in ("ts", "dur", "name", "thread")]
        rows.append(np.stack([*columns, np.full(len(inside), number)]))
    ts, dur, name, thread, category = np.concatenate(rows, axis=1)
    longest = np.argsort(-dur, kind="stable")[:MOST]
    kept = longest[np.lexsort((-dur[longest], ts[longest]))]
    categories = list(tables)
    return pl.DataFrame(
        {
            "start": ts[kept],
            "duration": dur[kept],
            "name": [trace.names[i] for i in name[kept].tolist()],
            "category": [categories[i] for i in category[kept].tolist()],
            "thread": thread[kept],
        },
        schema_overrides={"name": pl.String, "category": pl.String},
    )


def _events(trace: Trace, category: str, table: dict[str, Ints]) -> pl.DataFrame:
    """Return the events of a table as rows, with their names."""
    names = pl.Series("name", trace.names, dtype=pl.String)
    return pl.DataFrame(
        {
            "start": table["ts"],
            "duration": table["dur"],
            "name": names.gather(pl.Series(table["name"], dtype=pl.UInt32)),
            "category": pl.repeat(category, len(table["ts"]), dtype=pl.String, eager=True),
            "thread": table["thread"],
        }
    )


def outside_steps(trace: Trace, kept: pl.Series) -> pl.DataFrame:
    """Return the device events that are in no step, with the columns of `host_events`.

    A carry-over has no launch in the trace, and began before any event that has one; the category
    of the others is outside.

    Args:
        trace: The trace.
        kept: Rows of `trace.device` that are in a step; negative ones are ignored.

    Returns:
        The events in time order; `thread` is the stream.
    """
    device = trace.device
    outside = np.ones(len(device["ts"]), bool)
    outside[kept.filter(kept >= 0).to_numpy()] = False
    unlinked = ~np.isin(device["correlation"], trace.launches["correlation"])
    first = device["ts"][~unlinked].min() if not unlinked.all() else np.iinfo(np.int64).min
    earlier = unlinked & (device["ts"] < first)
    names = pl.Series("name", trace.names, dtype=pl.String)
    return pl.DataFrame(
        {
            "start": device["ts"][outside],
            "duration": device["dur"][outside],
            "name": names.gather(pl.Series(device["name"][outside], dtype=pl.UInt32)),
            "category": np.where(earlier, CARRY_OVER, OUTSIDE)[outside].tolist(),
            "thread": device["stream"][outside],
            "shapes": [None] * int(outside.sum()),
        },
        schema_overrides={"shapes": pl.String, "category": pl.String},
    ).sort("start", "duration", descending=[False, True])


def _input_shapes(trace: Trace, table: dict[str, Ints]) -> pl.Series:
    """Return the shapes of the inputs of each event as text; null for an event that has none."""
    shapes = ([list(s) if isinstance(s, tuple) else s for s in c.shapes] for c in trace.calls)
    scrubbed = scrub_all([str(sizes) if sizes else "" for sizes in shapes])
    texts = pl.Series([text or None for text in scrubbed], dtype=pl.String)
    if "call" not in table or not len(texts):
        return pl.Series([None] * len(table["ts"]), dtype=pl.String)
    return texts.gather(pl.Series(np.maximum(table["call"], 0), dtype=pl.UInt32))
