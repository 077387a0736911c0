"""What pruning cost in quality.

In: a dense and a pruned model, a text. Out: perplexity with intervals, tasks.
Exports: `quality.compare`, `tasks`; `records` says what is kept of them, key by key.
"""
