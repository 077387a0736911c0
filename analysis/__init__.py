"""From profiler traces to a report: load, link, work, kind, role, bound, unit, axis, ledger."""
