"""Speed against quality over a sweep.

In: the folder of a sweep. Out: points, frontier, winners, break-even, claims. Exports:
`pareto.judge`, `write.write_pareto`.
"""
