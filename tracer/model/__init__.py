"""Models: how they are loaded, where their parts are, and how each part is narrowed.

In: a folder, hub id, GGUF file or preset. Out: a model in eval mode; its layers, heads, channels,
experts and weights, each of which can be cut in place. Exports: `load.load_model`, layers, heads,
channels, weights, `compat`.
"""
