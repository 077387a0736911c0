"""What only the taxonomy paper (arXiv 2606.09080) needs: its figures, its numbers, its claims.

In: a Pareto and the speedups of replayed GEMMs. Out: figures of the paper's kinds from one's own
sweep, a Reproduction with the paper's numbers beside those of the sweep, and its claims as
hypotheses. Exports: `paper_files.paper_files`, `reproduce.reproduce`, `claims.hypotheses`.
"""
