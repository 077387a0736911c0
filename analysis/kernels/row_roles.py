"""The layer and role of each row: by modules, by order, or by the graph that it is in.

In: the kernels frame with kinds and calls, and its linked rows. Out: columns `layer` and `role`,
and where they come from.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.kernels.columns import instance_numbers, is_one_of, is_true, known_ids
from prunescope.analysis.kernels.role import PRODUCT_KINDS, find_roles
from prunescope.analysis.kernels.role_shapes import LaunchedRows
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.kernel_kinds import op_kind
from prunescope.analysis.timeline.graph_places import GraphPlaces, find_graph_places
from prunescope.analysis.timeline.layer_parts import find_parts
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.module_scopes import find_scopes, no_scopes
from prunescope.analysis.timeline.passes import Passes, find_passes
from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.roles import BACKWARD


def with_roles(
    frame: pl.DataFrame, trace: Trace, linked: Linked, calls: list[OpCall], *, takes_modules: bool
) -> tuple[pl.DataFrame, str]:
    """Return the frame with columns `layer` and `role`, and where both come from.

    Replayed rows have neither, unless their graph names them.
    """
    host = np.argsort(linked.launched, kind="stable")
    passes = find_passes(trace, linked.thread[host], linked.launched[host])
    forward = host if passes is None else host[~passes.backward & ~passes.optimizer]
    product = _products_of_rows(frame, host)
    forward = forward[product[forward] == forward]
    recorded_scopes = find_scopes(trace, linked.thread[forward], linked.launched[forward])
    scopes = recorded_scopes if takes_modules else no_scopes(len(forward))
    # The path of a module is that of a part too: of ignored modules neither counts.
    has_parts = scopes.source == "none" and recorded_scopes.source != "modules"
    call_ids, kinds = frame["call"].to_list(), frame["kind"].to_list()
    roles = find_roles(
        scopes,
        LaunchedRows.of(
            [kinds[i] for i in forward],
            [None if call_ids[i] is None else calls[call_ids[i]] for i in forward],
            every=trace.calls,
            step=linked.step[forward],
            busy=linked.busy[forward],
        ),
        find_parts(trace, linked.thread[forward], linked.launched[forward]) if has_parts else None,
    )
    layer = np.full(len(host), NONE)
    layer[forward] = roles.layer
    role = np.full(len(host), "unknown", object)
    role[forward] = roles.role
    layer, role = layer[product], role[product]
    if passes is not None:
        _set_roles_of_passes(layer, role, host, passes)
    lost = linked.replayed
    if len(scopes.place) and scopes.source != "none":
        lost = lost | (linked.thread < 0)
    layer[lost] = NONE
    # Without an op only the kind of a kernel gives its role.
    role[lost] = [
        "attention" if kinds[i] == "attention" else "unknown" for i in np.flatnonzero(lost)
    ]
    graph_places = find_graph_places(trace, linked)
    if graph_places is not None:
        _set_roles_of_graphs(layer, role, graph_places)
    roles_of_rows = pl.Series("role", role.tolist(), dtype=pl.String)
    return frame.hstack([known_ids(layer).alias("layer"), roles_of_rows]), roles.source


def _set_roles_of_graphs(layer: np.ndarray, role: np.ndarray, graphs: GraphPlaces) -> None:
    """Fill in the layers and roles of replays whose graph says where its kernels belong."""
    for row in np.flatnonzero(graphs.place >= 0).tolist():
        place = graphs.places[graphs.place[row]]
        layer[row] = NONE if place.layer is None else place.layer
        role[row] = place.role if place.role != "unknown" else role[row]


def _products_of_rows(frame: pl.DataFrame, host: Ints) -> Ints:
    """Return the row that gives each row its role.

    That is the row itself, but for a kernel that the op of a product launches in addition to its
    first product (a fill, the sum of a split K, a second part): it gets the role of that product.
    `host` holds the rows in the order of their launches.
    """
    product = is_true(is_one_of(frame["kind"], PRODUCT_KINDS))
    rows = host[is_true(is_one_of(frame["op"], multiplying_ops(frame)))[host]]
    number = instance_numbers(frame)
    rows = rows[np.lexsort((~product[rows], number[rows]))]  # else in order of their launches
    first = np.diff(number[rows], prepend=NONE) != 0
    primary = rows[first][np.cumsum(first) - 1]
    giver = np.arange(len(frame))
    giver[rows] = np.where(product[primary], primary, rows)
    return giver


def _set_roles_of_passes(
    layer: np.ndarray, role: np.ndarray, host: np.ndarray, passes: Passes
) -> None:
    """Fill in the roles of gradients and of the optimizer; `host` holds the rows of `passes`."""
    role[host[passes.optimizer]] = "optimizer"
    source = passes.source()
    known = np.flatnonzero(source >= 0)
    forward = source[known]
    layers, roles = layer[host], role[host]
    layer[host[known]] = np.where(passes.alike(layers.tolist())[forward], layers[forward], NONE)
    forward_roles = np.where(passes.alike(roles.tolist())[forward], roles[forward], "unknown")
    role[host[known]] = [f"{name}{BACKWARD}" for name in forward_roles]


def multiplying_ops(frame: pl.DataFrame) -> list[str]:
    """Return the ops of a frame that are products or attention."""
    ops = (op for op in frame["op"].unique() if op is not None)
    return [op for op in ops if op_kind(op, None) in PRODUCT_KINDS]
