"""The residual stream of a decoder and its sublayers.

In: a model. Out: the modules that read and write the stream; rotations, narrower norms, and models
without some sublayers. Exports: `stream.read_stream`, `sublayers.remove_sublayers`.
"""
