"""Dense against pruned, in nanoseconds that add up.

In: the Kernels of both sides. Out: units, GEMM rows, ratios, ladder, ledger rows, noise and
overhead.
Exports: Units, Pair, Split; `gemms` names the axis that moved (2:4 where a sparse kernel replaces a
dense one), `noise` makes the intervals, `rows` and `ledger` the sums.
"""
