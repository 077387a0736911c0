"""Speed against quality over a sweep.

In: a sweep's folder. Out: points, frontier, winners, break-even, claims.
Exports: `pareto.judge`, `write.write_pareto`.
"""
