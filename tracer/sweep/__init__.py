"""Many captures, which can be resumed.

In: the config of a sweep. Out: a folder of runs with their quality and state. Exports:
`sweep.sweep`, SweepRequest, engines. `job` marks a result as begun before it works on it. `state`
reads what is on disk, also after a kill: failed/ID.json of a result that was begun.
"""
