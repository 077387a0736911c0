"""One capture: time without the profiler, then profile, then write.

In: a TraceRequest, or a user's own loop. Out: a run folder, whole or not at all. Exports:
`trace.trace`, `user_capture.capture` and TraceRequest. `placements` moves the weights, `timing`
takes samples and repeats disturbed ones, and `profiled` profiles steps.
"""
