"""Everything that runs a model: load it, prune it, time it, profile it, and write a run folder.

A TraceRequest comes in; a folder with run.json and traces goes out. Start reading at
`capture/trace.py`. The package is used through `capture.trace.trace` (one run) and
`sweep.sweep.sweep` (many runs); the other rooms are their parts.
"""
