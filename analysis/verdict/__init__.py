"""Which family was it: read from shapes and census, never from what a run says it did.

In: both sides, pairs and units. Out: a Family with confidence, evidence and doubts.
Exports: Evidence, `verdict.verdict`, `doubts`.
"""
