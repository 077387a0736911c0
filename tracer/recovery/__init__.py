"""Recovery training: low-rank adapters on what pruning left, merged before anything is timed.

In: a pruned (or dense) model, a text and what `--recover` says. Out: the same model with other
weights of the same shapes, and a record for run.json.
Exports: `settings.Recovery`, `recover.recover`, `place.kept_in`.
"""
