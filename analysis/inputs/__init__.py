"""The inputs that a user named: runs, traces, folders of ranks.

In: paths and options. Out: a Side each for the candidate and its baseline, with their phases.
Exports: Side, Options, `open.open_sides`.
"""
