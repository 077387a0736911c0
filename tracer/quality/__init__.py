"""The loss of quality by pruning.

In: a dense and a pruned model, and a text. Out: perplexity with intervals, and scores of tasks.
Exports: `quality.compare`, `tasks`. Results are stored as
`Quality` of taxonomy/runs/run_quality.py.
"""
