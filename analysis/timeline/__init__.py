"""Launches of device work, the ops that launched it, and its step.

In: a Trace. Out: kernels linked to launches, ops and module scopes; windows of steps; busy, gap
and trailing idle time.
Exports: Linked, Windows, `link.link`; `steps.find_windows`, which takes steps from the first of
these sources: annotations of prunescope, those of --phase-pattern, those of a serving engine,
ranges called prefill and decode, frames of an engine's iterations, prompts and tokens of
`generate()`, `ProfilerStep#N`, numbered annotations, optimizers, annotations or compiled code or
work that repeats; else the whole trace is one step.
"""
