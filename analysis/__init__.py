"""From profiler traces to a report: load, link, work, kind, role, bound, unit, axis, ledger.

In: a run folder, a trace, or several, and Options. Out: a Report, or a Comparison of them.
Exports: `pipeline.analyze` (start there: it calls the rooms in order), `compare_runs.compare`,
`predict_from`, `hta` (a second opinion); `phase` and `totals` put a phase together, `pool` and
`rank_jobs` are --jobs.
"""
