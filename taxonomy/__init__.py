"""What pruning does to the GEMMs of a decoder: shapes, axes, families, theory and the run manifest.

Standard library only. `tracer` and `analysis` import it; it imports neither of them.
"""
