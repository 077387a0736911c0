"""The labels and meanings of the rows of a ledger and of the bounds of a ladder, in their order."""

from __future__ import annotations

from prunescope.analysis.schema.report import Row

NOT_EXPLAINED = "not_explained"  # only where no shapes are known
# Rows of the ledger in order: label and meaning.
LEDGER = {
    "dense": ("dense, measured", "wall time of a step of the dense model"),
    "promised": ("promised", "dense × (1 − sparsity): what the sparsity promises"),
    "coverage": ("coverage", "time that pruning did not touch, or touched less than promised"),
    "roofline_shift": ("roofline shift", "FLOPs fell, bytes did not: memory-bound kernels"),
    "shape": ("shape", "tiles, waves and alignment of the new dimensions"),
    "kernel_efficiency": ("kernel efficiency", "the rest of the kernels' slowdown or speedup"),
    "added_work": ("added work", "kernels only the pruned model has: routers, gathers, casts"),
    "launch_idle": ("launch and idle", "the device waits: more or longer gaps between kernels"),
    NOT_EXPLAINED: ("not explained", "the sum of the unknown rows above"),
    "pruned": (
        "pruned, measured",
        "wall time of the pruned model: promised plus the rows below it",
    ),
}
CHANGES = tuple(LEDGER)[2:-1]  # the rows that lead from the promised to the pruned time
# Bounds of the ladder in order: field, label, and what the bound assumes.
LADDER = {
    "nominal": ("nominal", "1/(1 − s), or the FLOP ratio where no sparsity was given"),
    "flop": ("FLOP ratio", "dense FLOPs ÷ pruned FLOPs"),
    "coverage": ("coverage bound", "kernels speed up by their FLOPs, the gaps stay"),
    "roofline": ("roofline bound", "kernels speed up by their roofline time"),
    "busy": ("kernel (busy)", "measured kernel time, without gaps"),
    "realised": ("realised", "measured wall time"),
}
# Bounds that the ladder also shows of a family that keeps FLOPs: its promise, and at this batch.
INSTEAD_OF_FLOPS = {
    "parameters": ("parameters", "dense parameters ÷ pruned parameters: memory, no time by itself"),
    "gemms": (
        "parameters in GEMMs",
        "dense ÷ pruned numbers of the weights of GEMMs, embeddings and norms left out: memory",
    ),
    "bytes": ("bytes", "dense bytes ÷ pruned bytes of a step, at this batch"),
}


def label_of(row: Row) -> str:
    """Return the name of a ledger row that readers see; its id where the table has none."""
    return LEDGER.get(row.row, (row.row, ""))[0]
