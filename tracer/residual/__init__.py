"""The residual stream and its sublayers.

In: a model. Out: who reads and writes the stream; rotations, narrower norms, sublayers removed.
Exports: `stream.read_stream`, `sublayers.remove_sublayers`.
"""
