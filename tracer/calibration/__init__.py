"""Statistics of a model on a calibration text, to select the parts that stay.

In: a model and token ids. Out: statistics, scores and fitted routers.
Exports: Point, Calibration, `collect.collect`, scores.
"""
