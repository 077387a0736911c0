"""Recovery training: low-rank adapters on a pruned model, merged before anything is timed.

In: a pruned (or dense) model, a text and the settings of `--recover`. Out: the same model with new
weights of the same shapes, and a record for run.json. Exports: `settings.Recovery`,
`recover.recover`, `storage.trainings_stored`.
"""
