"""The expected speed of a pruned model from shapes and peaks, without a run.

In: a PredictRequest.
Out: a bound, and an expected speedup with a range.
Exports: `request`, `predict.predict`, `rank.rank`. The other files, in the order of the flow:
`constants` (costs and their constants), `setting` (a request resolved), `side` (ops of a forward),
`kernels` (time of an op), `costs` (time of a forward), `ranges`, `break_even`, `phase`, `answers`.
"""
