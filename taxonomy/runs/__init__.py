"""The run folder: the manifest run.json, its blocks, and the files of a sweep.

In: JSON of a stranger. Out: msgspec structs whose times are ns and whose sizes are bytes.
Exports: `run.Run`, `run.read_run`, the blocks of `run_blocks`, `sweep_files`.
"""
