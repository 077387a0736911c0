"""Attention taken apart and put together pruned.

In: an attention module. Out: its parts: projections, rotation, cache; pruned forwards.
Exports: AttentionParts, PlainAttention, `blocks`, `flex`.
"""
