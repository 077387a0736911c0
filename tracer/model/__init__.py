"""Models: where they come from and where their parts are.

In: a folder, hub id, GGUF or preset. Out: a model in eval mode; its layers, heads, channels and
weights, and how to narrow them.
Exports: `load.load_model`, layers, heads, channels, weights, `compat`.
"""
