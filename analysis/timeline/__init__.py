"""The launches of device work, the ops that launched it, and the step that it belongs to.

In: a Trace. Out: kernels linked to launches, ops and module scopes; windows of steps; busy time,
gaps and trailing idle time. Exports: `Linked`, `Windows`, `link.link`, and
`step_windows.find_windows`, which takes steps from the first of these sources: annotations of
prunescope, those of --phase-pattern, those of a serving engine, ranges called prefill and decode,
frames of an engine's iterations, prompts and tokens of `generate()`, `ProfilerStep#N`, numbered
annotations, optimizers, and annotations, compiled code or work that repeats. Without any of these
the whole trace is one step.
"""
