"""Many captures, resumable.

In: a sweep's config. Out: a folder of runs with their quality and state.
Exports: `sweep.sweep`, SweepRequest, engines. `job` marks a result as begun before it works on it;
`state` is what lies on disk, also after a kill: failed/ID.json of what was begun.
"""
