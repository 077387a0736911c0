"""Findings: what is worth knowing about a phase, and what to change.

In: a Context: phase, kernels, pairs, evidence. Out: findings, each with evidence, one change and
the predicted gain of it.
Exports: `checks.find`, `context.Context`, `registry.finding`, `registry.registered`. A finding is
one function with the decorator `@finding`, in the file of its subject.
"""
