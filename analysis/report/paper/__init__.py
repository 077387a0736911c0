"""The kinds of figure of the taxonomy paper (arXiv 2606.09080), plotted from one's own sweep.

In: a Pareto and the speedups of replayed GEMMs. Out: pictures, CSV and LaTeX by file name.
Exports: `paper_files.paper_set` and `paper_files.paper_files`. Nothing here has the paper's own
numbers; `prunescope reproduce` compares with those.
"""
