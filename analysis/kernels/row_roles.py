"""What a trace itself says of the layer and role of each row.

In: the kernels frame with kinds and calls, and its linked rows. Out: RoleEvidence: of modules
or of the order of kernels, of the passes of a training step, of the graphs of replayed rows.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from prunescope.analysis.kernels.assignment import Names, RoleEvidence
from prunescope.analysis.kernels.columns import instance_numbers, is_one_of, is_true
from prunescope.analysis.kernels.role import PRODUCT_KINDS, find_roles
from prunescope.analysis.kernels.role_shapes import LaunchedRows
from prunescope.analysis.ops.call import OpCall
from prunescope.analysis.ops.kernel_kinds import op_kind
from prunescope.analysis.timeline.graph_places import find_graph_places
from prunescope.analysis.timeline.layer_parts import find_parts
from prunescope.analysis.timeline.link import Linked
from prunescope.analysis.timeline.module_scopes import Scopes, find_scopes, no_scopes
from prunescope.analysis.timeline.passes import Passes, find_passes
from prunescope.analysis.trace.collector import NONE, Ints
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.roles import BACKWARD


def find_evidence(
    frame: pl.DataFrame, trace: Trace, linked: Linked, calls: list[OpCall], *, takes_modules: bool
) -> list[RoleEvidence]:
    """Return what a trace itself says of the layers and roles of its rows.

    Of replayed rows, and of those without an op among modules, their graph does, else their kind.
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
    by_kind, nowhere = np.full(len(host), "unknown", object), np.full(len(host), NONE)
    by_kind[is_true(frame["kind"] == "attention")] = "attention"
    layer, role = nowhere.copy(), np.full(len(host), "unknown", object)
    layer[forward], role[forward] = roles.layer, roles.role
    says = ~linked.replayed
    if len(scopes.place) and scopes.source != "none":
        says &= linked.thread >= 0
    source = "kernel" if roles.source == "none" else roles.source
    own = RoleEvidence(source, layer[product], role[product], says, roles.confidence)
    evidence = [RoleEvidence("kernel", nowhere, by_kind, np.ones(len(host), bool)), own]
    if passes is not None:
        evidence.append(_read_passes(own, host, passes))
    if (graphs := find_graph_places(trace, linked)) is not None:
        evidence.append(_read_graphs(graphs, by_kind))
    return evidence


def _read_graphs(graphs: Scopes, by_kind: Names) -> RoleEvidence:
    """Return what graphs say of their replays: where their kernels belong."""
    layers = [NONE if place.layer is None else place.layer for place in graphs.places]
    roles = np.array([place.role for place in graphs.places], object)[graphs.place]
    return RoleEvidence(
        "graph",
        np.array(layers, np.int64)[graphs.place],
        np.where(roles == "unknown", by_kind, roles),
        graphs.place >= 0,
    )


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


def _read_passes(own: RoleEvidence, host: Ints, passes: Passes) -> RoleEvidence:
    """Return what a training step says of gradients and of the optimizer.

    A gradient has the layer and role of the op that it is of. `host` holds the rows of `passes`.
    """
    layer, role = own.layer.copy(), own.role.copy()
    says = np.zeros(len(role), bool)
    source = passes.source()
    known = np.flatnonzero(source >= 0)
    says[host[known]] = says[host[passes.optimizer]] = True
    role[host[passes.optimizer]] = "optimizer"
    layers, roles, forward = layer[host], role[host], source[known]
    layer[host[known]] = np.where(passes.alike(layers.tolist())[forward], layers[forward], NONE)
    forward_roles = np.where(passes.alike(roles.tolist())[forward], roles[forward], "unknown")
    role[host[known]] = [f"{name}{BACKWARD}" for name in forward_roles]
    return RoleEvidence("gradients", layer, role, says & own.says)


def multiplying_ops(frame: pl.DataFrame) -> list[str]:
    """Return the ops of a frame that are products or attention."""
    ops = (op for op in frame["op"].unique() if op is not None)
    return [op for op in ops if op_kind(op, None) in PRODUCT_KINDS]
