"""Repairs: changes of a model that a finding advises, each applied to a copy, checked and timed.

In: a model with a fault. Out: the changed model with its loops and outputs, which the front door
times in turns with those before. Exports `table.apply_repair`, `sides.TimedModel`,
`subject.prepare_subject` and `outputs.difference`.

The modules of plain/ import torch and transformers alone: `repairs.py` is made of their texts.
"""
