"""What is worth saying, and what to change.

In: a Context: phase, kernels, pairs, evidence. Out: findings with evidence, one change each, a
predicted gain.
Exports: `checks.find`, Context. Each check writes the words of its own finding.
"""
