"""The host events of a trace (modules, ops, launches) as a frame, for export to a timeline.

In: a Trace. Out: events in time order, ns; `category` is scope, op or launch.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.trace.collect import Ints
from prunescope.analysis.trace.events import Trace
from prunescope.taxonomy.scrub import scrub_all


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


def _shapes(trace: Trace, table: dict[str, Ints]) -> pl.Series:
    shapes = ([list(s) if isinstance(s, tuple) else s for s in c.shapes] for c in trace.calls)
    told = scrub_all([str(one) if one else "" for one in shapes])
    texts = pl.Series([one or None for one in told], dtype=pl.String)
    if "call" not in table or not len(texts):
        return pl.Series([None] * len(table["ts"]), dtype=pl.String)
    return texts.gather(pl.Series(np.maximum(table["call"], 0), dtype=pl.UInt32))
