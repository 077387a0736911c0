"""The places of kernels of graph replays, from records of the capture of their graph.

In: a Trace and linked rows. Out: the place of each replayed row. torch annotates kernels of a graph
with module paths (`torch.cuda.graph(enable_annotations=True)`, merged into the trace). An export of
Nsight Systems states when each node of a graph was captured, and so in which module's range.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.timeline.link import Linked, taken
from prunescope.analysis.timeline.module_scopes import Scopes, find_scopes, module_path
from prunescope.analysis.trace.collector import NONE, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.roles import locate_all


def find_graph_places(trace: Trace, linked: Linked) -> Scopes | None:
    """Find the places of replayed rows; None where none is known."""
    if not trace.on_device or not linked.replayed.any():
        return None
    device = trace.device
    label, captured, thread = (
        np.where(linked.replayed, taken(device[name], linked.event), NONE)
        for name in ("label", "captured", "captured_on")
    )
    place_of_row = np.full(len(label), NONE)
    paths = {i: module_path(trace.names[i]) for i in unique_ids(label[label >= 0]).tolist()}
    known = locate_all(path for path in paths.values() if path)
    places = list(dict.fromkeys(known.values()))
    number = {i: places.index(known[path]) for i, path in paths.items() if path}
    for i, place in number.items():
        place_of_row[label == i] = place
    rows = np.flatnonzero((place_of_row < 0) & (thread >= 0))
    if len(rows):
        scopes = find_scopes(trace, thread[rows], captured[rows])
        place_of_row[rows] = np.where(scopes.place >= 0, scopes.place + len(places), NONE)
        places += scopes.places
    if not (place_of_row >= 0).any():
        return None
    return Scopes(place_of_row, np.full(len(label), NONE), places, "graph")
