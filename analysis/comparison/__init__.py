"""Whether two sides compare: which settings differ, and what only one of them recorded.

In: both Sides, then a phase of both. Out: the sides with equal peaks and equal information, and a
PairComparison, which is the one answer to "do these two runs compare?". Exports:
`differences.pair_comparison`, `equal_information.make_comparable`,
`shared_peaks.with_shared_peaks`.
"""
