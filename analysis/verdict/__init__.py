"""The pruning family, read from shapes and weight statistics, never from what a run says it did.

In: both sides, pairs and units. Out: a Family with confidence, evidence and caveats. `detectors/`
holds one function per family and puts them in order. `detectors/run_time.layer_shares` computes the
share of each layer that still runs, and `outside` holds the reasons for "this is no pruning".
Exports: Evidence, `verdict.verdict`, `caveats`.
"""
