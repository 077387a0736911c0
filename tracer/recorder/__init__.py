"""The recorder: one file that records runs where prunescope cannot be installed.

In: `record.py` and the modules of ours that it imports. Out: their text in one file, whose runs are
those of `tracer/capture`. Exports: `assembled.assemble` and `record.record`.
"""
