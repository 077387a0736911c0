"""The data dictionary: every column of the written tables with its unit and meaning.

Units: ns, FLOP, bytes, share (0..1), ratio, calls a step; an empty cell is unknown, never 0.
"""

from __future__ import annotations

_PHASE = ("phase", "", "prefill, decode, or trace for a bare trace")
_LOW = (
    "ci95_low",
    "ns",
    "lower end of the 95 % bootstrap interval over placements (of one: over steps and samples)",
)
_HIGH = ("ci95_high", "ns", "upper end of that interval")

# File to (column, unit, meaning), in the order in which the columns are written.
COLUMNS: dict[str, list[tuple[str, str, str]]] = {
    "ledger.csv": [
        _PHASE,
        ("row", "", "dense, promised, coverage, roofline_shift, shape, kernel_efficiency, "
                    "added_work, launch_idle, not_explained (without shapes only), pruned"),
        ("part", "", "empty: the whole row; else a part of it, and the parts sum to the row"),
        ("role", "", "where in the model: q, k, v, o, gate, up, down, lm_head and so on"),
        ("class", "", "matmul, attention, pointwise, or the kind of kernel"),
        ("ns", "ns", "time of a step; promised and the changes after it sum to pruned; "
                     "empty: unknown"),
        _LOW,
        _HIGH,
        ("noise_ns", "ns", "root mean square of the row for dense against dense, split in halves"),
        ("evidence", "", "the largest kernels of the part"),
    ],
    "ladder.csv": [
        _PHASE,
        ("rung", "", "nominal, flop, coverage, roofline, busy, realised"),
        ("speedup", "ratio", "dense over pruned"),
        ("ci95_low", "ratio", "lower end of the 95 % interval; empty for nominal and flop"),
        ("ci95_high", "ratio", "upper end of that interval"),
    ],
    "gemms.csv": [
        _PHASE,
        ("role", "", "where in the model"),
        ("group", "", "qkv, qk, pv, o, gate_up, down, lm_head, router, other, added"),
        ("layers", "", "indices of the layers, separated by spaces"),
        ("op", "", "the operator that launched it"),
        ("kind", "", "gemm, gemv, batched_gemm, sparse_gemm, grouped_gemm, attention"),
        ("batch", "", "matrices in a call"),
        ("m", "", "rows of a call: tokens"),
        ("n", "", "output features"),
        ("k", "", "input features"),
        ("dtype", "", "number format that the products are made in; 3xtf32: fp32 as three "
                      "products of TF32, bound by a third of that peak"),
        ("dense_m", "", "M of the dense GEMM it is paired with"),
        ("dense_n", "", "N of that GEMM"),
        ("dense_k", "", "K of that GEMM"),
        ("dense_batch", "", "matrices in a call of it"),
        ("dense_count", "calls a step", "calls of it"),
        ("axis", "", "what moved: none, M, N, K, NK, heads, rank, 2:4, gone, added, unknown"),
        ("keep", "share", "kept share of each axis that moved, as axis=share"),
        ("count", "calls a step", "calls"),
        ("flop", "FLOP", "of one call, 2·M·N·K·batch; 2:4: half of it; attention: of the pairs of "
                         "query and key that the mask leaves, causal prefill about half; where "
                         "steps differ, as keys in decode, the mean, as M, N and K are"),
        ("bytes", "bytes", "compulsory traffic of one call; where steps differ, the mean"),
        ("busy_ns", "ns", "device time of a step, helper kernels included"),
        ("helper_ns", "ns", "of which memsets, workspaces and reductions of the same operator"),
        ("ideal_ns", "ns", "roofline time of a step, the mean over steps: for each call the larger "
                           "of FLOP/peak and bytes/bandwidth"),
        ("bound", "", "compute, memory or latency"),
        ("efficiency", "ratio", "ideal_ns / busy_ns (/ duration_ns beside other kernels); may "
                                "pass 1"),
        ("duration_ns", "ns", "run time of a step's kernels, also where others ran beside them"),
        ("dense_busy_ns", "ns", "device time of the dense GEMMs that it is paired with"),
        ("promised_ns", "ns", "(1 − sparsity) · dense_busy_ns"),
        ("loss_ns", "ns", "busy_ns − promised_ns"),
        ("shapes", "", "whence: recorded, eager-trace or model (its config)"),
        ("simulated", "", "true: the device has no such kernel and a stand-in was timed"),
        ("split", "", "true: the time of a fused attention kernel, split by FLOPs"),
        ("kernels", "", "names of the kernels that ran"),
    ],
    "kernels.csv": [
        _PHASE,
        ("name", "", "kernel, or the operator on a CPU"),
        ("kind", "", "what the kernel does"),
        ("role", "", "where in the model"),
        ("count", "calls a step", "launches"),
        ("busy_ns", "ns", "device time of a step"),
        ("bound", "", "compute, memory or latency"),
        ("efficiency", "ratio", "roofline time / busy time"),
        ("duration_ns", "ns", "run time of a step, also where others ran beside them"),
    ],
    "bounds.csv": [
        _PHASE,
        ("kind", "", "what the kernels do"),
        ("bound", "", "compute, memory, latency or unknown; empty: not split"),
        ("busy_ns", "ns", "device time of a step, of all kernels: what bounds-PHASE draws"),
    ],
    "layers.csv": [
        _PHASE,
        ("layer", "", "index in the list of layers; empty: outside of all"),
        ("role", "", "where in the layer; empty: idle time before its kernels"),
        ("ns", "ns", "device time of a step, or idle time: what layers-PHASE draws"),
    ],
    "roofline.csv": [
        _PHASE,
        ("name", "", "the longest of the kernels"),
        ("kind", "", "what they do"),
        ("role", "", "where in the model"),
        ("dtype", "", "number format that the products are made in"),
        ("count", "calls a step", "calls of one shape: one point of roofline-PHASE"),
        ("flop", "FLOP", "of one call"),
        ("bytes", "bytes", "compulsory traffic of one call"),
        ("busy_ns", "ns", "device time of a step"),
        ("clock_ns", "ns", "time that the rate rests on: busy_ns, or how long kernels beside "
                           "others ran; flop · count / clock_ns is the height of the point"),
        ("bound", "", "compute, memory, latency or unknown"),
    ],
    "waves.csv": [
        _PHASE,
        ("role", "", "where in the model"),
        ("m", "", "rows of a call"),
        ("n", "", "output features that ran"),
        ("k", "", "input features"),
        ("dense_n", "", "N of the dense GEMM"),
        ("at_n", "", "a dimension on the curve of waves-PHASE"),
        ("predicted_ns", "ns", "time of a step that tiles, waves and roofline give there"),
    ],
}  # fmt: skip

# Columns of the kernels frame: one row a unit of device work, all steps. An unnamed one is empty.
FRAME: dict[str, str] = {
    "step": "index of the kept step",
    "start": "begin of the event, from the first event of the trace",
    "duration": "length of the event as recorded",
    "busy": "part of the union of events that this one covers first; nothing is counted twice",
    "gap": "idle time right before it, owned by it",
    "launched": "time of the launch on the host",
    "starved": "whether the device had run out of work before this was launched",
    "cause": "of most of the gap: host, sync (a call that waits for the device), memcpy (a "
    "copy call), blocked (its stream waited for another), device (launched in time), unknown, "
    "other_step (the device ran work of a later step)",
    "idle_memcpy": "part of the gap in which the launching thread was in a copy call that blocks",
    "idle_copy_launch": "part in a copy call that returns at once",
    "idle_sync": "part in a call that waits for the device",
    "idle_launch": "part in another runtime call, and from the launch to the start",
    "idle_computed": "part in a matrix product that the host computed itself",
    "idle_op": "part in another operator, outside of calls",
    "idle_nothing": "part in nothing that was recorded",
    "idle_blocked": "part after the launch, longer than any launch takes",
    "idle_device": "the gap, where it was launched in time",
    "idle_replay": "the gap within one graph replay, longer than any launch takes",
    "idle_unknown": "the gap, where no launch is known, or before a replay in a trace that lacks "
    "kernels of replays",
    "idle_other_step": "part in which the device ran work that a later step launched ahead",
    "host_activity": "annotation, Python frame or op of at least 1 ms that covers half or more of "
    "the host's part of the gap",
    "host_activity_ns": "how much of the host's part it covers",
    "host_ns": "host time from the previous launch, by any thread, to this one, without "
    "host_blocked_ns",
    "host_blocked_ns": "part of it in calls that copy or wait for the device",
    "first_of_launch": "whether it is the first row of its launch: a graph replay is one launch of "
    "many rows",
    "name": "kernel, or the operator on a CPU",
    "op": "operator that launched it",
    "kind": "what the kernel does",
    "role": "where in the model",
    "layer": "index in the list of layers",
    "class": "matmul, attention, pointwise, or the kind: what dense and pruned pair by",
    "primary": "whether it is the primary kernel of its operator: the longest that carries "
    "its work",
    "carries_work": "whether it carries its operator's work, or a share of it by duration; "
    "auxiliary kernels have time only",
    "parts": "how many rows share the operator's work",
    "flop": "work of the call",
    "bytes": "compulsory traffic of the call",
    "dtype": "number format that the products are made in; 3xtf32: fp32 as three of TF32",
    "modelled": "whether a work model exists for the call",
    "compute_ns": "FLOPs over the peak of their format",
    "memory_ns": "bytes over the bandwidth",
    "ideal": "roofline time, the larger of the two",
    "bound": "compute, memory, latency or unknown",
    "auxiliary": "whether it is an auxiliary kernel of a GEMM or an attention: memset, workspace",
    "stream": "stream of the device",
    "grid": "index of the launch's grid (x, y, z) in the trace",
    "block": "index of the launch's block (x, y, z) in the trace",
    "registers": "registers a thread",
    "shared_memory": "shared memory a block",
    "blocks": "blocks of the launch",
    "tile": "rows x columns of the output tile that the kernel's name states",
    "along_n": "which side of the tile lies along N",
    "tiles": "tiles of the GEMM, split-K and batch included",
    "split_k": "parts that K is split into",
    "shapes": "whence the shapes of a GEMM or an attention: recorded, eager-trace or model",
    "fit": "how the tiles explain the grid: exact, padded, split, persistent or unexplained",
    "waves": "tiles over resident blocks on the device",
    "tile_efficiency": "share of the tiles' area that is output",
    "wave_efficiency": "waves over waves rounded up",
    "shape_loss": "factor by which tiles and waves stretch the ideal time",
    "predicted": "ideal time with the shape loss",
    "instance": "the operator call that a row belongs to; rows of one call share it",
    "event": "index of the device event",
    "node": "node of the replayed graph",
    "category": "0 kernel, 1 memcpy, 2 memset",
    "name_id": "index of the name in the trace",
    "op_id": "index of the operator's name in the trace",
    "call": "index of the distinct call (operator, shapes, dtypes)",
}

_UNITS = {
    "start": "ns", "duration": "ns", "busy": "ns", "gap": "ns", "launched": "ns",
    "ideal": "ns", "predicted": "ns", "flop": "FLOP", "bytes": "bytes", "shared_memory": "bytes",
}  # fmt: skip


def unit_of(column: str) -> str:
    """The unit of a column of the kernels frame, by its name."""
    if column in _UNITS:
        return _UNITS[column]
    ending = column.rsplit("_", 1)[-1]
    return {"ns": "ns", "bytes": "bytes", "flop": "FLOP"}.get(ending, "")
