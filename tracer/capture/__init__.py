"""One capture: time without the profiler, then profile, then write.

A TraceRequest, or a user's own loop, comes in; a run folder goes out, whole or not at all. The room
is used through `trace.trace`, `user_capture.capture` and TraceRequest. `placements` moves the
weights, `timing` takes samples and repeats disturbed ones, and `profiled` profiles steps.
"""
