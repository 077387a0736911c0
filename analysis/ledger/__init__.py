"""Dense against pruned, in nanoseconds that add up.

In: the Kernels of both sides. Out: units, GEMM rows, ratios, ladder, ledger rows, noise and
overhead. Exports: Units, Pair, Split. `pairing` pairs the work of both sides, `alignment` their
layers. `gemm_calls` reads the GEMMs of each side, `gemms` pairs them and names the axis (2:4 where
a sparse kernel replaces a dense one), `reported_gemms` makes rows of them. `samples` makes W of
placements, `noise` the intervals (bootstrap), `rows` and `ledger` the sums, `ladder` the speedups.
"""
