"""The recorder: one file that records runs where prunescope cannot be installed.

`record.py` and the modules of ours that it imports come in; their text in one file goes out, whose
runs are those of `tracer/capture`. The room is used through `assembled.assembled` and
`record.record`.
"""
