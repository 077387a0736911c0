"""Many captures, resumable.

In: a sweep's config. Out: a folder of runs with their quality and state.
Exports: `sweep.sweep`, SweepRequest, engines.
"""
