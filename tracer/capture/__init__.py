"""One capture: time without the profiler, then profile, then write.

In: a TraceRequest, or a user's own loop. Out: a run folder, whole or not at all.
Exports: `trace.trace`, `user_capture.capture`, TraceRequest; `timing` takes samples (again, where
machine/disturbance.py saw something else run), `profiled` the steps, `placements` draws placement.
"""
