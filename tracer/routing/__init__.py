"""Decisions at run time: which rows, layers or blocks a forward computes.

In: a layer and a Point. Out: routed layers that count what they did. Exports: Sampler, Tally,
RowRouter, `rebuild.rebuild`.
"""
