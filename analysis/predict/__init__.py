"""What shapes and peaks promise without a run.

In: a PredictRequest. Out: bound and expected speed-up with a range, as a dict.
Exports: PredictRequest, Setting, `predict.predict`.
"""
