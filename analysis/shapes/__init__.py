"""The shapes of GEMMs that a trace did not record, from the model's config.

In: the kernels frame with kinds and roles, a ModelShape, a workload. Out: the frame with calls,
layers and roles of the rows that the config explains, and their work; nothing where the trace
contradicts the config.

Exports: `config` (reads a config), `slots` (N and K of every role), `workload`, `grids` and
`counts` (M), `fill` (the pass). `trial` compares a config with a trace: `by_modules` or, without
modules, `align` finds which GEMM of which layer a kernel runs, `align_uneven` does so where layers
differ, and `config_evidence` finds what contradicts a config.
"""
