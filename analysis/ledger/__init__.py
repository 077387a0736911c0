"""Dense against pruned, in nanoseconds that add up.

In: the Kernels of both sides. Out: units, GEMM rows, ratios, ladder, ledger rows, noise and
overhead.
Exports: Units, Pair, Split, `ledger`, `rows`, `noise`.
"""
