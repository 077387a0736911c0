"""Decisions at run time: rows, layers, blocks.

In: a layer and a Point. Out: routed layers that count what they did.
Exports: Sampler, Tally, RowRouter, `prenorm.rebuilt`.
"""
