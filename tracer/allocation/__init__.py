"""Loss of a model without each of its parts, for `prunescope allocate`.

In: a model, calibration tokens and the sizes to try. Out: losses of every size of every layer, and
which heads and channels stay at each. Exports: `parts` (what can be cut), `losses`.
"""
