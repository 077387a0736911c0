"""The loss of quality by pruning.

In: a dense and a pruned model, a text. Out: perplexity with intervals, tasks.
Exports: `quality.compare`, `tasks`. Results are stored as `Quality` of taxonomy/run_quality.py.
"""
