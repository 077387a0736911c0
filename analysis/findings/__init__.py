"""What is worth saying, and what to change.

In: a Context: phase, kernels, pairs, evidence. Out: findings with evidence, one change each, a
predicted gain.
Exports: `checks.find`, Context. `checks` is the list and its order; each check stands in a file of
its subject (idle, shape, time, trust) and writes the words of its finding.
"""
