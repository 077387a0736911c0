"""Attention split into its parts, so that dynamic families can change one of them.

In: an attention module. Out: its projections, rotation and cache, and pruned forwards. Exports:
AttentionParts, PlainAttention, `blocks`, `flex`.
"""
