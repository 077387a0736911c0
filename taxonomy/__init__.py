"""The effect of pruning on the GEMMs of a decoder: shapes, axes, families, theory, run manifest.

Needs msgspec and the standard library. `tracer` and `analysis` import it; it imports neither.

In: a config, a preset or a run.json. Out: a ModelShape, the ops of a forward, dense or pruned, and
a Run. Exports: `shape` (from a config, which `config` reads; `sublayers` has its records),
`families` and `family.Family` (one file per family), `architecture_table` and `applies` (what fits
which model), `theory.forward`, `match.solve` (--set match=), `keep` (roundings),
`runs.run.read_run` with `run_blocks` (each key of a run.json), `formats` (versions and limits of
JSON that is read back), `roles` (a module's place in a decoder).
"""
