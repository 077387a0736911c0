"""What the config, the weights or the GGUF header of a model say of its shape.

In: a decoded config.json, the header of a weights file. Out: `ModelShape`, whose dimensions are
elements. Exports: `config.read_config` and its parts, `stored_tensors.stored_tensors`.
"""
