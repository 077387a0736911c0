"""The loss of a model without each of its parts, for `prunescope allocate`.

In: a model, calibration tokens and the sizes to try. Out: the loss at every size of every layer,
and which heads and channels stay at each. Exports: `parts` (what can be cut), `losses`.
"""
