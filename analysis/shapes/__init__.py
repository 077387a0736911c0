"""Shapes of GEMMs that a trace did not record, from the model's config.

In: the kernels frame with kinds and roles, a ModelShape, a workload. Out: the frame with calls,
layers and roles of the rows that the config explains, and their work; nothing where it contradicts.
Exports: `config` (reads a config), `slots` (N and K of every role), `workload` and `grids` (M),
`fill` (the pass); `trial` holds a config against a trace, `place` puts GEMMs into layers: by
modules, else by `order` (`alternate` for hybrids, `loops` for experts one by one).
"""
