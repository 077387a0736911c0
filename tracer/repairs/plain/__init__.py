"""The repairs themselves, in plain torch and transformers: repairs.py is made of their texts.

In: a model, which a repair changes in place. Out: the same model, or the one that takes its place.
Exports `linear_maps.DoesNotApply`, which a repair raises with the reason.
"""
