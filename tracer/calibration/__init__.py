"""Statistics of a model on a calibration text, which select the parts that stay.

In: a model and token ids. Out: statistics, scores and fitted routers. Exports: `point.Point`,
`point.Calibration`, `collect.collect`, `scores`.
"""
