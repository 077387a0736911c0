"""What a model does on a text, to choose what goes.

In: a model and token ids. Out: statistics, scores and fitted routers.
Exports: Point, Calibration, `collect.collect`, scores.
"""
