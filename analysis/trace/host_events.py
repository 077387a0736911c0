"""Events of a trace other than the kernels of the steps, as a frame, for export to a timeline.

In: a Trace. Out: events in time order, ns; `category` is scope, op or launch for the host's, and
carry-over or outside for those of the device that are in no step.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.trace.collect import Ints
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.scrub import scrub_all

CARRY_OVER, OUTSIDE = "carry-over", "outside"


def host_events(trace: Trace) -> pl.DataFrame:
    """Columns start, duration, name, category, thread, and the shapes of an op's inputs."""
    parts = [("scope", trace.annotations), ("op", trace.ops), ("launch", trace.launches)]
    names = pl.Series("name", trace.names, dtype=pl.String)
    frames = [
        pl.DataFrame(
            {
                "start": table["ts"],
                "duration": table["dur"],
                "name": names.gather(pl.Series(table["name"], dtype=pl.UInt32)),
                "category": [category] * len(table["ts"]),
                "thread": table["thread"],
                "shapes": _shapes(trace, table),
            },
            schema_overrides={"shapes": pl.String, "category": pl.String},
        )
        for category, table in parts
    ]
    ordered = pl.concat(frames).sort("start", "duration", descending=[False, True])
    return ordered.filter(pl.col("duration") >= 0)


def outside_steps(trace: Trace, kept: pl.Series) -> pl.DataFrame:
    """Device events that are not among the rows `kept` (numbers of events), with columns as those
    of the host; `thread` is the stream. A carry-over has no launch in the trace, and began before
    any event that has one."""
    device = trace.device
    out = np.ones(len(device["ts"]), bool)
    out[kept.filter(kept >= 0).to_numpy()] = False
    unlinked = ~np.isin(device["correlation"], trace.launches["correlation"])
    first = device["ts"][~unlinked].min() if not unlinked.all() else np.iinfo(np.int64).min
    earlier = unlinked & (device["ts"] < first)
    names = pl.Series("name", trace.names, dtype=pl.String)
    return pl.DataFrame(
        {
            "start": device["ts"][out],
            "duration": device["dur"][out],
            "name": names.gather(pl.Series(device["name"][out], dtype=pl.UInt32)),
            "category": np.where(earlier, CARRY_OVER, OUTSIDE)[out].tolist(),
            "thread": device["stream"][out],
            "shapes": [None] * int(out.sum()),
        },
        schema_overrides={"shapes": pl.String, "category": pl.String},
    ).sort("start", "duration", descending=[False, True])


def _shapes(trace: Trace, table: dict[str, Ints]) -> pl.Series:
    shapes = ([list(s) if isinstance(s, tuple) else s for s in c.shapes] for c in trace.calls)
    scrubbed = scrub_all([str(one) if one else "" for one in shapes])
    texts = pl.Series([one or None for one in scrubbed], dtype=pl.String)
    if "call" not in table or not len(texts):
        return pl.Series([None] * len(table["ts"]), dtype=pl.String)
    return texts.gather(pl.Series(np.maximum(table["call"], 0), dtype=pl.UInt32))
