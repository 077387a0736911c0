"""Everything that runs a model: load, prune, time, profile, and write a run folder.

In: a TraceRequest. Out: a folder with run.json and traces. Start reading at `capture/trace.py`.
Exports: `capture.trace.trace` (one run), `sweep.sweep.sweep` (many); the other rooms
are their parts.
"""
