"""Everything that runs a model: load it, prune it, time it, profile it, and write a run folder.

In: a TraceRequest. Out: a folder with run.json and traces. Start reading at `capture/trace.py`.
Exports: `capture.trace.trace` (one run) and `sweep.sweep.sweep` (many runs); the other rooms are
their parts.
"""
