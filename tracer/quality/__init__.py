"""What pruning cost in quality.

In: a dense and a pruned model, a text. Out: perplexity with intervals, tasks.
Exports: `quality.compare`, `tasks`. What is kept of them is `Quality` of taxonomy/run_quality.py.
"""
