"""What a user named: runs, traces, folders of ranks.

In: paths and options. Out: a Side for each of subject and baseline, with its phases.
Exports: Side, Options, `resolve.resolve`.
"""
