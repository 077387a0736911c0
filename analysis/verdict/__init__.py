"""Which family was it: read from shapes and census, never from what a run says it did.

In: both sides, pairs and units. Out: a Family with confidence, evidence and caveats.
One file a family (its id with `_` for `-`) holds its detector; `detectors` puts them in order, and
`outside` the reasons for "this is no pruning"; `zeros` reads 2:4 and masks from weights.
Exports: Evidence, `verdict.verdict`, `caveats`.
"""
