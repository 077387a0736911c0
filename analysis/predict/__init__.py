"""What shapes and peaks promise without a run.

In: a PredictRequest. Out: bound and expected speedup with a range, as a dict.
Exports: PredictRequest, Setting, `predict.predict`; `constants` are the numbers (dispatch, launch,
and the calibrated error of a range), `kernels` and `tiles` time a GEMM, `host` counts ops, `costs`
adds them up, `ranges` says how sure.
"""
